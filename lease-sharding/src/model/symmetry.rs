//! States that differ only in names, or in what nothing depends on any more, count as one.

use super::{Event, NAMES, State};
use crate::protocol::{Precondition, View};
use std::hash::{Hash, Hasher};

const PAIR: [[usize; 3]; 2] = [[0, 1, 2], [1, 0, 2]];
const TRIPLE: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Collects what is hashed.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Most numbers are small: less to hash.
    fn write_u64(&mut self, number: u64) {
        match u8::try_from(number) {
            Ok(small) if small < u8::MAX => self.0.push(small),
            _ => {
                self.0.push(u8::MAX);
                self.write(&number.to_le_bytes());
            }
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_usize(number.cast_unsigned());
    }

    fn finish(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0)
    }
}

/// The same for all states that count as one.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.kind().hash(hasher);
    }
}

impl State {
    /// The same number for all states that behave alike, as [`tests`] checks.
    fn kind(&self) -> u64 {
        let orders = if self.members.len() == 2 { &PAIR[..] } else { &TRIPLE[..] };
        let numbers = if self.partitions == 2 { &[[0, 1], [1, 0]][..] } else { &[[0, 1]][..] };
        let mut bytes = Bytes::default();
        // Only where members differ in nothing but names does it take more than one order.
        let nameless = self.nameless(&mut bytes);
        let sorted = |order: &&[usize; 3]| order.is_sorted_by_key(|at| nameless[*at]);
        let orders = orders.iter().filter(sorted);
        let views = orders.flat_map(|order| numbers.iter().map(move |n| (order, n)));
        let least = views.map(|(order, numbers)| {
            bytes.0.clear();
            self.hash_in(order, numbers, &mut bytes);
            bytes.finish()
        });
        least.min().unwrap_or_default()
    }

    /// A number for each member that says something of it, whatever it is called.
    fn nameless(&self, bytes: &mut Bytes) -> [u64; 3] {
        let mut numbers = [u64::MAX; 3];
        for (at, member) in self.members.iter().enumerate() {
            bytes.0.clear();
            (member.incarnation, member.seen, member.process.is_some()).hash(bytes);
            (member.outstanding.is_some(), member.late.is_some()).hash(bytes);
            if let Some(process) = &member.process {
                process.hash_nameless(bytes);
            }
            let record = self.server[at].as_ref().map(|lease| &lease.record);
            let said = record.map(|r| (r.holder.is_some(), r.stage, r.transitions, r.claims.len()));
            said.hash(bytes);
            numbers[at] = bytes.finish() >> 1;
        }
        numbers
    }

    /// Hashes the state with its members in this order, and with these numbers for partitions.
    fn hash_in(&self, order: &[usize; 3], partitions: &[u32], state: &mut Bytes) {
        let all = self.members.len();
        let names = order.map(|at| &NAMES[at]);
        let server = order.map(|at| self.server.get(at)?.as_ref());
        let processes = order.map(|at| Some(self.members.get(at)?.process.as_ref()?.newest()));
        let view =
            View { members: &names[..all], partitions, server: &server, processes: &processes };
        let order = &order[..all];
        (self.writes, self.crashes, self.losses, self.reached).hash(state);
        self.last_owner.map(|last| order.iter().position(|at| *at == last)).hash(state);
        for lease in &server[..all] {
            lease.is_some().hash(state);
            if let Some(lease) = lease {
                view.lease(lease, state);
            }
        }
        self.log.len().hash(state);
        for lease in &self.log {
            view.lease(lease, state);
        }
        for (at, member) in order.iter().map(|at| &self.members[*at]).enumerate() {
            (member.incarnation, member.seen, member.process.is_some()).hash(state);
            if let Some(process) = &member.process {
                process.hash_in(&view, state);
            }
            let on = |on: Precondition| match on {
                Precondition::Absent => u64::MAX,
                Precondition::Nothing => u64::MAX - 1,
                Precondition::Is(version) => view.version(at, version),
            };
            // What it says is in the process, which waits for it.
            let outcome = |outcome: &Option<Event>| match outcome {
                Some(Event::Written(version)) => Some(view.version(at, *version)),
                Some(_) => Some(u64::MAX),
                None => None,
            };
            let outstanding = member.outstanding.as_ref();
            outstanding.map(|(write, what)| (on(write.on), outcome(what))).hash(state);
            member.late.as_ref().map(|write| on(write.on)).hash(state);
            if let Some(write) = &member.late {
                view.record(at, &write.record, state);
            }
        }
    }
}

mod tests {
    use super::super::{Bounds, checks};
    use super::*;
    use stateright::Model;
    use std::collections::{BTreeSet, HashMap, HashSet, hash_map::Entry};

    /// Visits every state, names and all, and compares those that count as one: they satisfy the
    /// same properties, and lead to the same.
    fn behave_alike(model: &Bounds) {
        let mut alike: HashMap<_, (Vec<bool>, BTreeSet<_>)> = HashMap::new();
        let (mut seen, mut queue, mut merged) = (HashSet::new(), model.init_states(), 0);
        while let Some(state) = queue.pop() {
            if !seen.insert(xxhash_rust::xxh3::xxh3_64(format!("{state:?}").as_bytes())) {
                continue;
            }
            let next: Vec<_> = model.next_steps(&state).into_iter().map(|(_, next)| next).collect();
            let successors: BTreeSet<_> = next.iter().map(State::kind).collect();
            let properties = checks::properties(false);
            let holds = properties.iter().map(|p| (p.condition)(model, &state)).collect();
            match alike.entry(state.kind()) {
                Entry::Vacant(place) => drop(place.insert((holds, successors))),
                Entry::Occupied(place) => {
                    assert!(*place.get() == (holds, successors), "{state:#?}");
                    merged += 1;
                }
            }
            queue.extend(next);
        }
        println!("{} states behave as {}", seen.len(), alike.len());
        assert!(merged > 0);
    }

    #[test]
    fn states_that_count_as_one_behave_as_one() {
        for numbers in [[2, 1, 2, 1, 0], [2, 1, 2, 0, 1], [2, 2, 2, 0, 0], [3, 1, 2, 0, 0]] {
            behave_alike(&checks::bounds(numbers));
        }
        behave_alike(&Bounds { keyspaces: [0, 1, 1], ..checks::bounds([2, 1, 2, 1, 0]) });
    }
}
