//! YAML and JSON as people write them: documents, and the place of each field.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned};
use std::{collections::BTreeMap, fmt};

/// Where something begins in a file. Both numbers count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The object.
    pub json: Value,
    /// Where it begins.
    pub begin: Place,
    places: BTreeMap<String, Place>,
}

impl Document {
    /// The place of a field, such as `spec.sharding.shardCount`, or of the nearest field above it
    /// that is there.
    #[must_use]
    pub fn place_of(&self, field: &str) -> Place {
        let mut path = field;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.begin,
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
            let own = self.places.iter().filter_map(|(path, place)| {
                Some((path.strip_prefix(&prefix)?.strip_prefix('.')?.to_owned(), *place))
            });
            Self { json: json.clone(), begin: self.place_of(&prefix), places: own.collect() }
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
        let mut places = BTreeMap::new();
        let begin = document.referenced.into();
        let json = document.value.into_json("", &mut places);
        Document { json, begin, places }
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
    fn into_json(self, path: &str, places: &mut BTreeMap<String, Place>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => {
                let item = |(at, item): (usize, Spanned<Self>)| {
                    let path = format!("{path}[{at}]");
                    places.insert(path.clone(), item.referenced.into());
                    item.value.into_json(&path, places)
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
                    places.insert(path.clone(), name.referenced.into());
                    map.insert(name.value, value.into_json(&path, places));
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
    fn o2_documents_are_read_with_the_places_of_their_fields() {
        let [a, b] =
            documents(TEXT).unwrap().try_into().expect("two documents, the empty one left out");
        assert_eq!(a.json["spec"]["sharding"]["counts"], json!([1, 2.5]));
        let place = |field: &str| (a.place_of(field).line, a.place_of(field).column);
        assert_eq!(place("spec.sharding.counts"), (6, 5));
        assert_eq!(place("spec.sharding.counts[1]"), (6, 17));
        assert_eq!(place("spec.sharding.shardCount"), (4, 3), "the nearest field that is there");
        assert_eq!(b.json, json!({"kind": "B", "spec": null}));
        assert_eq!(b.place_of("spec.nodes"), Place { line: 10, column: 2 });
    }

    #[test]
    fn o2_a_list_is_its_items_each_with_its_own_lines() {
        let text = "kind: List\nitems:\n- kind: A\n  spec: {}\n- kind: B\n  spec:\n    x: 1\n";
        let [list] = documents(text).unwrap().try_into().expect("one document");
        let [_, b] = list.objects().try_into().expect("two objects");
        assert_eq!((b.begin.line, b.place_of("spec.x").line), (5, 7));
    }

    #[test]
    fn o2_what_is_no_yaml_is_an_error_with_its_line() {
        let error = documents("a: b\nc: [1,\n").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
    }
}
