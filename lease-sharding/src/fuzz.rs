//! Targets of the fuzzer (`fuzz/`): for any input at all, no panic, and what is promised holds.

use crate::{
    hash::KeyHash,
    lease::leases,
    partitions::PartitionSet,
    placement::{Candidate, Load, Placement},
    protocol::{
        Effect, Event, Holder, Identity, Lease, Now, Protocol, Record, Stage, Timing, TimingConfig,
        Version,
    },
    ring::{Compat, Ring, RingConfig},
};
use std::sync::Arc;

/// Takes any input, and panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Each by its name.
pub const TARGETS: [(&str, Target); 4] =
    [("leases", leases), ("placement", placement), ("protocol", protocol), ("ring", ring)];

/// What an input says; after its end, zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// Small, or anything.
    fn some_number(&mut self) -> u64 {
        if self.byte() < 200 { self.byte().into() } else { self.number() }
    }

    fn set(&mut self) -> PartitionSet {
        (0..self.below(6)).map(|_| u32::from(self.byte())).collect()
    }

    /// One of few, so that some are the same.
    fn name(&mut self) -> String {
        (0..self.below(4)).map(|_| char::from(b"ab01"[usize::from(self.below(4))])).collect()
    }

    fn lease(&mut self) -> Lease {
        let holder = |input: &mut Self| Holder {
            pod: input.below(3).into(),
            incarnation: input.below(3).into(),
        };
        let stage = [Stage::Joining, Stage::Active, Stage::Draining, Stage::Left];
        Lease {
            member: self.name().into(),
            version: Version(self.some_number()),
            record: Arc::new(Record {
                holder: (self.byte() < 200).then(|| holder(self)),
                lease: self.some_number(),
                keyspace: self.below(3).into(),
                placement: self.below(3).into(),
                claims: self.set(),
                seq: self.some_number(),
                stage: stage[usize::from(self.below(4))],
                generation: self.some_number(),
                transitions: u32::from(self.byte()) << 24,
            }),
        }
    }

    fn event(&mut self) -> Event {
        match self.below(14) {
            0 => Event::Ready,
            1 | 2 => Event::Want(self.set()),
            3 => Event::Stopped(self.set()),
            4 => Event::Leave,
            5 => Event::Listed((0..self.below(4)).map(|_| self.lease()).collect()),
            6 | 7 => Event::Seen(self.lease()),
            8 => Event::Gone(self.name().into()),
            9 | 10 => Event::Written(Version(self.some_number())),
            11 => Event::Refused((self.byte() < 128).then(|| self.lease())),
            12 => Event::Failed,
            _ => Event::Tick,
        }
    }
}

/// Every partition has an owner if there is any, the order of members does not matter, and the
/// bound holds.
fn placement(input: &[u8]) {
    let mut input = Input(input);
    let (partitions, load) = (u32::from(input.byte()), Load::percent(input.byte().into()));
    let members: Vec<_> =
        (0..input.below(12)).map(|_| (input.name(), input.set(), input.some_number())).collect();
    let candidate = |(name, claims, generation): &'_ (String, PartitionSet, u64)| {
        (name.clone(), claims.clone(), *generation)
    };
    let members: Vec<_> = members.iter().map(candidate).collect();
    let mut candidates: Vec<_> = members
        .iter()
        .map(|(name, claims, generation)| Candidate { name, claims, generation: *generation })
        .collect();
    for placement in [Placement::Rendezvous(load), Placement::Sticky(load)] {
        let one = placement.place(partitions, &candidates);
        candidates.reverse();
        assert_eq!(placement.place(partitions, &candidates), one, "the order of members matters");
        assert_eq!(one.owners().count(), if members.is_empty() { 0 } else { partitions as usize });
        let loads: Vec<_> = one.loads().collect();
        // While generations are mixed, the larger of them is there to stay: half of all at least.
        let stay = match placement {
            Placement::Rendezvous(_) => loads.len(),
            Placement::Sticky(_) => loads.len().div_ceil(2),
        };
        let most = load.capacity(partitions, stay);
        assert!(loads.iter().all(|(name, load)| *load <= most && one.share(name).len() == *load));
    }
}

/// A ring is built or refused; no member has more than it may, and every key has its owner.
fn ring(input: &[u8]) {
    let mut input = Input(input);
    let hashes = [KeyHash::Xxh3, KeyHash::Xxh64, KeyHash::Fnv1, KeyHash::Blake3];
    let few = |input: &mut Input<'_>| {
        if input.byte() < 250 { input.byte().into() } else { u32::MAX }
    };
    let config = RingConfig {
        compat: if input.byte() < 128 { Compat::V0_10 } else { Compat::V1_0 },
        hash: hashes[usize::from(input.below(4))],
        partitions: few(&mut input),
        replication: few(&mut input) % 64,
        load: match input.byte() {
            250.. => f64::from_bits(input.number()),
            load => f64::from(load) / 64.0,
        },
    };
    let members: Vec<_> = (0..input.below(12)).map(|_| input.name()).collect();
    for built in
        [Ring::new(config, members.clone()), Ring::in_order_of_addition(config, members.clone())]
    {
        let Ok(ring) = built else { continue };
        assert!(ring.loads().all(|(_, load)| load as u64 <= ring.capacity()));
        let total: usize = ring.loads().map(|(_, load)| load).sum();
        assert_eq!(total, ring.partitions() as usize);
        let closest = ring.closest(input.0, members.len()).expect("so many");
        assert_eq!(closest.first(), Some(&ring.owner(input.0)));
        assert_eq!(ring.relocated(&ring), 0);
    }
}

/// Whatever happens in whatever order, one write is outstanding at most, and a member acts only on
/// what it is to have.
fn protocol(input: &[u8]) {
    let mut input = Input(input);
    let holder = Holder { pod: 1, incarnation: 1 };
    let (keyspace, generation) = (input.below(3).into(), input.some_number());
    let me = Identity { member: "a".into(), holder, keyspace, placement: 1, generation };
    let timing = Timing::try_from(TimingConfig::FAST).expect("the profile is safe");
    let mut now = Now { steady: input.some_number(), wall: input.some_number() };
    let mut protocol = Protocol::new(me, timing, now);
    let mut outstanding = false;
    while !input.0.is_empty() {
        let event = input.event();
        now.steady = now.steady.saturating_add(input.some_number());
        now.wall = if input.byte() < 200 { now.steady } else { input.number() };
        outstanding &= !matches!(event, Event::Written(_) | Event::Refused(_) | Event::Failed);
        for effect in protocol.step(now, event) {
            if matches!(effect, Effect::Write(_)) {
                assert!(!outstanding, "a second write");
                outstanding = true;
            }
        }
        assert!(protocol.active().is_subset(protocol.wanted()));
        assert!(protocol.deadline().is_none_or(|due| due >= now.steady));
        let acts = |partition: &u32| protocol.acts_until(*partition).is_some();
        assert!(!protocol.is_fenced() || !(0..256).any(|partition| acts(&partition)));
    }
}

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use std::{collections::BTreeSet, fs, path::Path};

    /// Everything in the corpora, each cut short everywhere and with each byte changed.
    #[test]
    fn s1_nothing_in_the_corpora_breaks_a_promise() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, target) in TARGETS {
            let mut inputs = BTreeSet::new();
            for file in fs::read_dir(corpora.join(name)).expect("a corpus") {
                inputs.insert(fs::read(file.expect("an entry").path()).expect("an input"));
            }
            assert!(inputs.len() > 4, "the corpus of {name} is gone");
            for input in inputs {
                for at in 0..input.len() {
                    target(&input[..at]);
                    for other in [0, input[at] ^ 1, input[at] ^ 0x80, 0xff] {
                        let mut changed = input.clone();
                        changed[at] = other;
                        target(&changed);
                    }
                }
                target(&input);
            }
        }
    }
}
