//! Among whom partitions are placed: newcomers wait a moment, so that several move things once.

use crate::protocol::{MemberName, Millis};
use std::collections::BTreeSet;

/// The members among whom partitions are placed.
///
/// A departure counts at once, and so does everything else then. A join counts after a wait, along
/// with all joins during it. The member itself never waits for its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    me: MemberName,
    wait: Millis,
    placed: BTreeSet<MemberName>,
    /// When, on the steady clock, the first newcomer was seen.
    since: Option<Millis>,
}

impl Roster {
    /// Nobody yet. `wait` is for how long a join is held back.
    pub fn new(me: MemberName, wait: Millis) -> Self {
        Self { me, wait, placed: BTreeSet::new(), since: None }
    }

    /// Takes note of who is active at the time `now` of the steady clock.
    pub fn see(&mut self, now: Millis, active: BTreeSet<MemberName>) {
        let starts = !self.placed.contains(&self.me);
        let departed = !self.placed.is_subset(&active);
        if !starts && !departed && active.len() > self.placed.len() {
            let since = *self.since.get_or_insert(now);
            if now < since.saturating_add(self.wait) {
                return;
            }
        }
        (self.placed, self.since) = (active, None);
    }

    /// When newcomers count, if nothing happens before.
    pub fn deadline(&self) -> Option<Millis> {
        self.since.map(|since| since.saturating_add(self.wait))
    }

    /// Whether a member is to get partitions.
    pub fn contains(&self, member: &str) -> bool {
        self.placed.contains(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &str) -> BTreeSet<MemberName> {
        names.split_terminator(' ').map(Into::into).collect()
    }

    fn roster(sights: &[(Millis, &str)]) -> Roster {
        let mut roster = Roster::new("a".into(), 1_000);
        for (now, names) in sights {
            roster.see(*now, members(names));
        }
        roster
    }

    #[test]
    fn s1_several_joins_count_together_a_second_after_the_first() {
        let waits = roster(&[(0, "a"), (100, "a b"), (900, "a b c")]);
        assert_eq!((waits.placed.clone(), waits.deadline()), (members("a"), Some(1_100)));
        let placed = roster(&[(0, "a"), (100, "a b"), (900, "a b c"), (1_100, "a b c")]);
        assert_eq!((placed.placed.clone(), placed.deadline()), (members("a b c"), None));
    }

    #[test]
    fn s1_a_departure_counts_at_once() {
        assert_eq!(roster(&[(0, "a b c"), (5, "a c")]).placed, members("a c"));
        // A rolling update: the new one is there before the old one leaves.
        let replaced = roster(&[(0, "a b"), (100, "a b c"), (200, "a c")]);
        assert_eq!((replaced.placed.clone(), replaced.deadline()), (members("a c"), None));
    }

    #[test]
    fn s1_a_member_does_not_wait_for_its_own_start_and_a_join_that_is_undone_is_forgotten() {
        assert_eq!(roster(&[(0, "b c"), (1, "a b c")]).placed, members("a b c"));
        let undone = roster(&[(0, "a"), (100, "a b"), (200, "a"), (1_150, "a b")]);
        assert_eq!((undone.placed.clone(), undone.deadline()), (members("a"), Some(2_150)));
    }
}
