//! From an object to its partition.

use crate::hash::KeyHash;
use kube::Resource;

/// What is owned as a whole: an object of the work that is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The parts are kept apart, so that no two objects share a key. A cluster-wide object has no
    /// namespace, that is an empty one. For a duty that is no object, choose a kind of your own.
    pub fn new(group: &str, kind: &str, namespace: &str, name: &str) -> Self {
        // None of them can contain a slash.
        Self([group, kind, namespace, name].join("/"))
    }

    /// The key of an object of the cluster.
    ///
    /// For work on behalf of another object, take that one's key: a child is worked on by the
    /// owner of its parent.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let (namespace, name) = (object.meta().namespace.as_deref(), object.meta().name.as_deref());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        Self::new(&K::group(&()), &K::kind(&()), namespace, name)
    }
}

/// How keys become partitions. Members that differ in it never act at the same time: a claim under
/// another keyspace stands against every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keyspace {
    hash: KeyHash,
    partitions: u32,
}

/// Changes with the protocol or with the text of keys, so that old and new replicas of a roll-out
/// don't mistake each other's claims.
const VERSION: u32 = 1;

impl Default for Keyspace {
    fn default() -> Self {
        Self { hash: KeyHash::Xxh3, partitions: 4_096 }
    }
}

impl Keyspace {
    /// So many partitions, at least one and at most 2^16: a Lease has to hold a bit for each.
    #[must_use]
    pub fn new(hash: KeyHash, partitions: u32) -> Self {
        Self { hash, partitions: partitions.clamp(1, 1 << 16) }
    }

    /// The number of partitions.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The partition of a key.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "smaller than the number of partitions")]
    pub fn partition_of(&self, key: &Key) -> u32 {
        (self.hash.hash(key.0.as_bytes()) % u64::from(self.partitions)) as u32
    }

    /// Identifies this keyspace, for [`crate::protocol::Record::keyspace`].
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let text = format!("lease-sharding {VERSION} {:?} {}", self.hash, self.partitions);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_key_counts_and_the_result_is_pinned() {
        let keys = Keyspace::default();
        let parts = [["apps", "Deployment", "a", "b"], ["", "Deployment", "a", "b"]];
        let [one, two] = parts.map(|[g, k, ns, n]| keys.partition_of(&Key::new(g, k, ns, n)));
        assert_ne!(one, two);
        assert_ne!(Key::new("", "Pod", "a", "b"), Key::new("", "Pod", "b", "a"));
        assert_eq!(one, 978);
    }

    #[test]
    fn keyspaces_that_differ_have_different_fingerprints() {
        let of = |hash, partitions| Keyspace::new(hash, partitions).fingerprint();
        assert_ne!(of(KeyHash::Xxh3, 509), of(KeyHash::Xxh3, 1_009));
        assert_ne!(of(KeyHash::Xxh3, 509), of(KeyHash::Xxh64, 509));
        assert_eq!(Keyspace::new(KeyHash::Xxh3, 0).partitions(), 1);
    }
}
