//! YAML and JSON as people write them: documents, and the line of each field.

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fmt};

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The object.
    pub json: Value,
    /// The line where it begins, from 1.
    pub line: u64,
    lines: BTreeMap<String, u64>,
}

impl Document {
    /// The line of a field, such as `spec.sharding.shardCount`, or of the nearest field above it
    /// that is there.
    #[must_use]
    pub fn line_of(&self, field: &str) -> u64 {
        let mut path = field;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.line,
            }
        }
    }

    /// The objects of a `List`, as `kubectl get -o yaml` prints it; any other object is itself.
    #[must_use]
    pub fn objects(self) -> Vec<Self> {
        let Value::Array(items) = &self.json["items"] else { return vec![self] };
        if self.json["kind"].as_str().is_none_or(|kind| !kind.ends_with("List")) {
            return vec![self];
        }
        let item = |(at, json): (usize, &Value)| {
            let prefix = format!("items[{at}]");
            let own = self.lines.iter().filter_map(|(path, line)| {
                Some((path.strip_prefix(&prefix)?.strip_prefix('.')?.to_owned(), *line))
            });
            Self { json: json.clone(), line: self.line_of(&prefix), lines: own.collect() }
        };
        items.iter().enumerate().map(item).collect()
    }
}

/// Reads every document of a file. Empty ones are left out.
///
/// # Errors
/// What is not YAML, with its line.
pub fn documents(text: &str) -> Result<Vec<Document>, serde_saphyr::Error> {
    let documents: Vec<Spanned<Node>> = serde_saphyr::from_multiple(text)?;
    let read = |document: Spanned<Node>| {
        let mut lines = BTreeMap::new();
        let line = document.referenced.line();
        let json = document.value.into_json("", &mut lines);
        Document { json, line, lines }
    };
    Ok(documents.into_iter().map(read).filter(|document| !document.json.is_null()).collect())
}

/// A YAML value that knows where its parts stand.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn into_json(self, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => {
                let item = |(at, item): (usize, Spanned<Self>)| {
                    let path = format!("{path}[{at}]");
                    lines.insert(path.clone(), item.referenced.line());
                    item.value.into_json(&path, lines)
                };
                items.into_iter().enumerate().map(item).collect()
            }
            Self::Map(fields) => {
                let mut map = Map::new();
                for (name, value) in fields {
                    let path = match path {
                        "" => name.value.clone(),
                        path => format!("{path}.{}", name.value),
                    };
                    lines.insert(path.clone(), name.referenced.line());
                    map.insert(name.value, value.into_json(&path, lines));
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str = "# a comment\nkind: A\nspec:\n  sharding:\n    enabled: yes\n    counts: [1, 2.5]\n---\n---\n{\"kind\": \"B\",\n \"spec\": null}\n";

    #[test]
    fn o2_documents_are_read_with_the_lines_of_their_fields() {
        let [a, b] =
            documents(TEXT).unwrap().try_into().expect("two documents, the empty one left out");
        assert_eq!(a.json["spec"]["sharding"]["counts"], json!([1, 2.5]));
        assert_eq!(a.line_of("spec.sharding.counts"), 6);
        assert_eq!(a.line_of("spec.sharding.counts[1]"), 6);
        assert_eq!(a.line_of("spec.sharding.shardCount"), 4, "the nearest field that is there");
        assert_eq!(b.json, json!({"kind": "B", "spec": null}));
        assert_eq!(b.line_of("spec.nodes"), 10);
    }

    #[test]
    fn o2_a_list_is_its_items_each_with_its_own_lines() {
        let text = "kind: List\nitems:\n- kind: A\n  spec: {}\n- kind: B\n  spec:\n    x: 1\n";
        let [list] = documents(text).unwrap().try_into().expect("one document");
        let [_, b] = list.objects().try_into().expect("two objects");
        assert_eq!((b.line, b.line_of("spec.x")), (5, 7));
    }

    #[test]
    fn o2_what_is_no_yaml_is_an_error_with_its_line() {
        let error = documents("a: b\nc: [1,\n").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
    }
}
