//! What `plan` says of a change, counted over the objects that are there.

use super::*;
use ksm_scale_operator::{
    coverage::{Slice, shard_of},
    forecast,
    observed::ObservedPod,
    plan::Change,
    validate::{Scale, Valid, validate},
};

fn scale(spec: &Value) -> Valid<Scale> {
    validate(&json!({"metadata": {"name": "x", "uid": "u"}, "spec": spec})).expect("a valid spec")
}

/// The UID of each object that the sampler looks for, by the name that it gives it.
pub(super) async fn objects(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut uids = BTreeMap::new();
    for kind in ["ConfigMap", "Namespace", "Node", "Secret"] {
        let list = cluster.dynamic("v1", kind).list_metadata(&ListParams::default()).await;
        for object in list.expect("objects") {
            let namespace = object.namespace().map(|name| name + "/").unwrap_or_default();
            let name = format!("{kind} {namespace}{}", object.name_any());
            uids.insert(name, object.uid().expect("a UID"));
        }
    }
    uids
}

/// The most exposures beyond the first of each object at any step of a change, which begins at rest.
pub(super) fn most_duplicates(from: &Value, to: &Value, uids: &BTreeMap<String, String>) -> usize {
    let (from, to, nodes) = (scale(from), scale(to), u32::try_from(NODES).expect("a few"));
    let named = |pod: &ObservedPod| {
        let key = (pod.namespace.clone(), pod.name.clone());
        (key, pod.slice().expect("arguments that make sense"))
    };
    let mut pods: BTreeMap<_, _> = forecast::at_rest(&from, nodes).iter().map(named).collect();
    let duplicates = |pods: &BTreeMap<_, Slice>| {
        let of = |uid: &String| {
            let exposed = pods.values().filter(|s| shard_of(uid, s.total()) == s.ordinal()).count();
            exposed.saturating_sub(1)
        };
        uids.values().map(of).sum::<usize>()
    };
    let mut most = duplicates(&pods);
    for step in forecast::steps(&from, &to, nodes) {
        match &step.change {
            Change::CreatePod(pod, _) => pods.extend([named(&ObservedPod::new(pod))]),
            Change::DeletePod(pod, _) => {
                pods.remove(&(pod.namespace.clone(), pod.name.clone()));
            }
            _ => {}
        }
        most = most.max(duplicates(&pods));
    }
    most
}
