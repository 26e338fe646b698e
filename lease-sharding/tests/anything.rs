//! Whatever the input: an answer or an error, never a panic.

use lease_sharding::{
    hash::KeyHash,
    partitions::PartitionSet,
    protocol::{
        Effect, Event, Holder, Identity, Lease, Now, Protocol, Record, Stage, Timing, TimingConfig,
        Version,
    },
    ring::{Compat, Ring, RingConfig},
};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::Arc};

fn ring_config() -> impl Strategy<Value = RingConfig> {
    let compat = prop_oneof![Just(Compat::V0_10), Just(Compat::V1_0)];
    let hash = prop_oneof![
        Just(KeyHash::Xxh3),
        Just(KeyHash::Xxh64),
        Just(KeyHash::Fnv1),
        Just(KeyHash::Blake3)
    ];
    let partitions = prop_oneof![0_u32..40, Just(u32::MAX)];
    let replication = prop_oneof![0_u32..40, Just(u32::MAX)];
    let load = prop_oneof![0.0..3.0, any::<f64>()];
    (compat, hash, partitions, replication, load).prop_map(
        |(compat, hash, partitions, replication, load)| RingConfig {
            compat,
            hash,
            partitions,
            replication,
            load,
        },
    )
}

fn lease() -> impl Strategy<Value = Lease> {
    let claims = proptest::collection::vec(0_u32..100, 0..5);
    let holder = proptest::option::of((0_u128..3, 0_u128..3));
    let stage = prop_oneof![Just(Stage::Joining), Just(Stage::Active), Just(Stage::Draining)];
    ("[a-c]", any::<u8>(), holder, any::<u64>(), claims, stage, 0_u64..3).prop_map(
        |(member, version, holder, lease, claims, stage, keyspace)| Lease {
            member: member.as_str().into(),
            version: Version(version.into()),
            record: Arc::new(Record {
                holder: holder.map(|(pod, incarnation)| Holder { pod, incarnation }),
                lease,
                keyspace,
                placement: keyspace,
                claims: claims.into_iter().collect(),
                seq: lease,
                stage,
                generation: lease,
                transitions: u32::MAX,
            }),
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let set = || proptest::collection::vec(0_u32..100, 0..5).prop_map(PartitionSet::from_iter);
    prop_oneof![
        4 => Just(Event::Tick),
        1 => Just(Event::Ready),
        3 => set().prop_map(Event::Want),
        2 => set().prop_map(Event::Stopped),
        1 => Just(Event::Leave),
        2 => proptest::collection::vec(lease(), 0..4).prop_map(Event::Listed),
        3 => lease().prop_map(Event::Seen),
        1 => "[a-c]".prop_map(|name| Event::Gone(name.as_str().into())),
        3 => any::<u64>().prop_map(|version| Event::Written(Version(version))),
        2 => proptest::option::of(lease()).prop_map(Event::Refused),
        1 => Just(Event::Failed),
    ]
}

proptest! {
    #[test]
    fn a_ring_is_built_or_refused_and_order_never_matters(
        config in ring_config(),
        members in proptest::collection::vec("[a-b1]{0,3}", 0..8),
        key in any::<Vec<u8>>(),
    ) {
        let ring = Ring::new(config, members.clone());
        let reversed = Ring::new(config, members.iter().rev().cloned());
        prop_assert!(ring.is_err() == reversed.is_err());
        let Ok(ring) = ring else { return Ok(()) };
        prop_assert_eq!(Ok(&ring), reversed.as_ref());
        prop_assert!(members.iter().all(|m| ring.load(m) as u64 <= ring.capacity()));
        let closest = ring.closest(&key, members.len()).expect("so many members");
        prop_assert_eq!(closest[0], ring.owner(&key));
        prop_assert_eq!(closest.into_iter().collect::<BTreeSet<_>>().len(), members.len());
    }

    #[test]
    fn the_protocol_takes_any_event_at_any_time_and_has_one_write_outstanding(
        events in proptest::collection::vec((any::<u64>(), 0_u64..20_000, event()), 0..60),
    ) {
        let holder = Holder { pod: 1, incarnation: 1 };
        let me =
            Identity { member: "b".into(), holder, keyspace: 1, placement: 1, generation: 1 };
        let timing = Timing::try_from(TimingConfig::DEFAULT).expect("the default is safe");
        let mut protocol = Protocol::new(me, timing, Now::default());
        let (mut steady, mut outstanding) = (0, false);
        for (wall, elapsed, event) in events {
            steady += elapsed;
            outstanding &= !matches!(event, Event::Written(_) | Event::Refused(_) | Event::Failed);
            for effect in protocol.step(Now { steady, wall }, event) {
                if matches!(effect, Effect::Write(_)) {
                    prop_assert!(!outstanding, "a second write");
                    outstanding = true;
                }
            }
            prop_assert!(protocol.active().is_subset(protocol.wanted()));
            prop_assert!(protocol.deadline().is_none_or(|due| due >= steady));
        }
    }
}
