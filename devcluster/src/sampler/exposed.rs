//! Objects, as they stand in an exposition.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A kind of object whose exposure is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// By `kube_node_info`.
    Node,
    /// By `kube_pod_info`.
    Pod,
    /// By `kube_configmap_info`.
    ConfigMap,
    /// By `kube_secret_info`.
    Secret,
    /// By `kube_namespace_created`.
    Namespace,
}

/// An object: its kind, and the values of the labels that name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    names: Vec<String>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.names.join("/"))
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Namespace => "Namespace",
        }
    }

    /// The family with one series for each object, and the labels that name it.
    fn family(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Node => ("kube_node_info", &["node"]),
            Self::Pod => ("kube_pod_info", &["namespace", "pod", "uid"]),
            Self::ConfigMap => ("kube_configmap_info", &["namespace", "configmap"]),
            Self::Secret => ("kube_secret_info", &["namespace", "secret"]),
            Self::Namespace => ("kube_namespace_created", &["namespace"]),
        }
    }
}

impl Key {
    pub(super) fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        let value = |label: &&str| match *label {
            "uid" => meta.uid.clone(),
            "namespace" if kind != Kind::Namespace => meta.namespace.clone(),
            _ => meta.name.clone(),
        };
        let names = kind.family().1.iter().map(|label| value(label).unwrap_or_default()).collect();
        Self { kind, names }
    }
}

/// The objects in an exposition, each as often as it stands there.
pub(super) fn keys(kinds: &[Kind], text: &str) -> Vec<Key> {
    let of_line = |line: &str| {
        kinds.iter().find_map(|&kind| {
            let (family, labels) = kind.family();
            let rest = line.strip_prefix(family)?.strip_prefix('{')?;
            let names = labels.iter().map(|label| value(rest, label)).collect::<Option<_>>()?;
            Some(Key { kind, names })
        })
    };
    text.lines().filter_map(of_line).collect()
}

/// The value of a label in `name="value",…}`. Names of objects need no escapes; values of other
/// labels that have them are passed over.
fn value(labels: &str, wanted: &str) -> Option<String> {
    let mut rest = labels;
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        if name == wanted {
            return Some(after[..end].to_owned());
        }
        rest = after[end + 1..].strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_the_labels_that_name_them_and_cut_lines_are_nothing() {
        let text = "# HELP kube_node_info x\n\
                    kube_node_info{node=\"a\",os=\"\\\"node=\\\"b\"} 1\n\
                    kube_node_info_more{node=\"c\"} 1\n\
                    kube_pod_info{namespace=\"n\",pod=\"p\",uid=\"u\"} 1\n\
                    kube_pod_info{namespace=\"n\",pod=\"q\"";
        let found: Vec<_> =
            keys(&[Kind::Node, Kind::Pod], text).iter().map(Key::to_string).collect();
        assert_eq!(found, ["Node a", "Pod n/p/u"]);
        let meta = ObjectMeta {
            name: Some("p".to_owned()),
            namespace: Some("n".to_owned()),
            uid: Some("u".to_owned()),
            ..ObjectMeta::default()
        };
        assert_eq!(Key::of(Kind::Pod, &meta).to_string(), "Pod n/p/u");
        assert_eq!(Key::of(Kind::Namespace, &meta).to_string(), "Namespace p");
    }
}
