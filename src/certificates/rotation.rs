//! How one CA follows another without a moment in which a client refuses a replica's leaf.
//!
//! [`State`] is what one Secret holds for all replicas. It goes through four phases: *announce* (a
//! next CA is in the bundles to be), *soak* (it is in both, and API servers are given time to read
//! them), *switch* (it signs, which is one write) and *retire* (the old CA stays in the bundles
//! until no leaf of it can be alive). Every step is a compare-and-swap that any replica may make;
//! there is no leader. See docs/adr/0006-overlapping-trust-without-a-leader.md.
//!
//! What holds it together, and what callers promise:
//!
//! 1. A bundle is written only if it is unchanged since before the state was read. So bundles follow
//!    states in their order, however late a writer is.
//! 2. What is decided, is decided at a `now` after everything was read: a soak begins when both
//!    bundles are known to be right. A leaf's life is counted from before that, so it ends within one
//!    leaf's life of the moment in which its CA was replaced, however late it is signed.
//! 3. What was read is not stored upon after half a soak, and the replicas' clocks differ by less than
//!    that.

use super::{Authority, AuthorityError, Certificate, Damage, Leaf};
use jiff::Timestamp;
use lifetimes::later;

mod lifetimes;

pub use lifetimes::{Lifetimes, LifetimesError};

/// What all replicas share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// How many CAs there have been, the active one included.
    pub generation: u64,
    /// The CA that signs leaves.
    pub active: Announced,
    /// The CA that will.
    pub next: Option<Announced>,
    /// CAs that sign no more, and whose leaves may still be served.
    pub old: Vec<Old>,
}

/// A CA that has to be in every bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// It.
    pub authority: Authority,
    /// Since when it is in every bundle, as read back; `None` if it is not yet.
    pub trusted_since: Option<Timestamp>,
}

/// A CA that signs no more. Its key is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// It.
    pub certificate: Certificate,
    /// When its last leaf is dead.
    pub until: Timestamp,
}

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One CA.
    Steady,
    /// A next CA is to be in the bundles.
    Announce,
    /// It is, and API servers are given time to read them.
    Soak,
    /// It has been switched to; the old one is still trusted.
    Retire,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Steady, Self::Announce, Self::Soak, Self::Retire];

    /// In one word, for metrics and people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Announce => "announce",
            Self::Soak => "soak",
            Self::Retire => "retire",
        }
    }
}

/// What a replica sees when it decides.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The Secret: absent, damaged or a state.
    pub stored: Result<Option<&'a State>, &'a Damage>,
    /// The last state this replica read.
    pub remembered: Option<&'a State>,
    /// The CAs in each `caBundle`, read before the Secret. None at all for what is not there.
    pub live: &'a [Vec<Certificate>],
    /// What this replica serves.
    pub serving: Option<&'a Leaf>,
    /// Whether a new CA is asked for.
    pub rotate: bool,
    /// Name of the CA of which every replica that may serve is known to serve a leaf. Old CAs then
    /// go a soak after the switch instead of when their leaves are dead. The soak is for replicas
    /// that have left and finish what they were asked, and for new ones that have said nothing yet.
    pub everyone_serves: Option<&'a str>,
}

impl Seen<'_> {
    fn is_trusted(&self, ca: &Certificate) -> bool {
        self.live.iter().all(|bundle| bundle.contains(ca))
    }
}

impl Leaf {
    /// Whether clients accept it at `now`, if they trust its CA.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.pair.not_before <= now && now < self.pair.not_after
    }
}

impl State {
    /// Where the rotation is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.next {
            Some(Announced { trusted_since: None, .. }) => Phase::Announce,
            Some(_) => Phase::Soak,
            None if self.old.is_empty() => Phase::Steady,
            None => Phase::Retire,
        }
    }

    /// The certificate of the CA that signs.
    #[must_use]
    pub fn ca(&self) -> &Certificate {
        &self.active.authority.certificate
    }

    /// What has to be in every bundle, oldest first, so that a switch changes no bundle.
    pub fn trusted(&self) -> impl Iterator<Item = &Certificate> {
        let next = self.next.iter().map(|next| &next.authority.certificate);
        self.old.iter().map(|old| &old.certificate).chain([self.ca()]).chain(next)
    }

    /// The bundle, byte by byte.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.trusted().map(Certificate::pem).collect()
    }

    /// Whether every API server knows the CA of `leaf` by now. While there is no other CA there is
    /// nothing better to wait for.
    ///
    /// `before` is what this said of the same leaf last. A CA that does not sign any more tells by
    /// itself nothing: it is known if it was when it did, and may not have been when it was lost early.
    #[must_use]
    pub fn is_established(
        &self,
        leaf: &Leaf,
        before: bool,
        now: Timestamp,
        lifetimes: &Lifetimes,
    ) -> bool {
        if leaf.issuer == *self.ca() {
            self.old.is_empty() || self.active.is_soaked(now, lifetimes)
        } else {
            before
        }
    }

    fn keep(&mut self, certificate: &Certificate, until: Timestamp) {
        if let Some(old) = self.old.iter_mut().find(|old| old.certificate == *certificate) {
            old.until = old.until.max(until);
        } else if !self.trusted().any(|trusted| trusted == certificate) {
            self.old.push(Old { certificate: certificate.clone(), until });
        }
    }

    /// From now on `next` signs.
    fn switch(&mut self, next: Announced, now: Timestamp, lifetimes: &Lifetimes) {
        let old = std::mem::replace(&mut self.active, next).authority.certificate;
        self.generation += 1;
        if now < dead(&old, lifetimes) {
            self.old.push(Old { certificate: old, until: lifetimes.outlived(now) });
        }
    }
}

impl Announced {
    fn generate(
        generation: u64,
        now: Timestamp,
        lifetimes: &Lifetimes,
    ) -> Result<Self, AuthorityError> {
        let authority = Authority::generate(generation, now, lifetimes.ca)?;
        Ok(Self { authority, trusted_since: None })
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.authority.certificate.is_expired(now)
    }

    fn is_soaked(&self, now: Timestamp, lifetimes: &Lifetimes) -> bool {
        self.trusted_since.is_some_and(|since| later(since, lifetimes.soak) <= now)
    }
}

/// What has to be stored next; `None` if what is stored is right. Until it is stored, nothing may
/// follow from it, and no bundle from what is stored.
///
/// - The CA of a leaf that this replica serves never leaves the bundles.
/// - Stored and seen again without a change, it gives `None`, until time passes.
///
/// # Errors
/// If a CA cannot be made.
pub fn step(
    seen: &Seen<'_>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Result<Option<State>, AuthorityError> {
    let Ok(Some(stored)) = seen.stored else {
        return recover(seen, now, lifetimes).map(Some);
    };
    let mut state = stored.clone();
    let everyone = seen.everyone_serves.is_some_and(|ca| ca == state.ca().name);
    state.old.retain(|old| {
        let until = if everyone { lifetimes.soaked(old) } else { old.until };
        now < until.min(dead(&old.certificate, lifetimes))
    });
    protect(&mut state, seen, now, lifetimes);
    replace_expired(&mut state, now, lifetimes)?;
    if state.next.is_none() && (seen.rotate || is_due(state.ca(), now, lifetimes)) {
        state.next = Some(Announced::generate(state.generation + 1, now, lifetimes)?);
    }
    advance(&mut state, seen, now, lifetimes);
    Ok((state != *stored).then_some(state))
}

/// Whether what is due can't wait for the one replica whose duty it is, as this one could not serve
/// meanwhile: nothing is stored from which to serve, or its own leaf is not, or will not be,
/// trusted. Every step may be made by any replica; which is to make the others only spares
/// conflicts.
#[must_use]
pub fn is_urgent(seen: &Seen<'_>, now: Timestamp) -> bool {
    let Ok(Some(state)) = seen.stored else { return true };
    let leaf = seen.serving.filter(|leaf| leaf.is_valid(now));
    let ca = leaf.map_or(state.ca(), |leaf| &leaf.issuer);
    let kept = state.trusted().any(|trusted| trusted == ca);
    state.active.is_expired(now) || !kept || !seen.is_trusted(ca)
}

/// When no clock takes a CA for alive any more: they are off by less than a soak. Until then it
/// stays in the bundles, where it does no harm.
fn dead(ca: &Certificate, lifetimes: &Lifetimes) -> Timestamp {
    later(ca.not_after, lifetimes.soak)
}

/// A CA is replaced in the last third of its life; and when its life has not begun, since a clock
/// that was ahead has been set back. That may be this replica's clock alone, so it is no haste.
fn is_due(ca: &Certificate, now: Timestamp, lifetimes: &Lifetimes) -> bool {
    let left = ca.not_after.duration_since(now).unsigned_abs();
    left < lifetimes.ca / 3 || now < ca.not_before
}

/// Nothing is stored, or nothing that can be read. Whoever remembers the state stores it again;
/// else a new CA begins. Either may be behind what others have done since, so whatever the bundles
/// hold stays trusted as long as a leaf of it may live.
fn recover(
    seen: &Seen<'_>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Result<State, AuthorityError> {
    let mut state = if let Some(state) = seen.remembered.filter(|s| !s.active.is_expired(now)) {
        state.clone()
    } else {
        let generation = seen.remembered.map_or(0, |state| state.generation) + 1;
        let active = Announced::generate(generation, now, lifetimes)?;
        State { generation, active, next: None, old: Vec::new() }
    };
    if let Some(next) = &mut state.next {
        next.trusted_since = None;
    }
    for ca in seen.live.iter().flatten().filter(|ca| now < dead(ca, lifetimes)) {
        state.keep(ca, lifetimes.outlived(now));
    }
    protect(&mut state, seen, now, lifetimes);
    distrust(&mut state, seen);
    Ok(state)
}

/// Somebody stored a state without the CA of our leaf: it stays trusted, for the leaves of the
/// others too, who may not have noticed yet.
fn protect(state: &mut State, seen: &Seen<'_>, now: Timestamp, lifetimes: &Lifetimes) {
    let Some(leaf) = seen.serving.filter(|leaf| leaf.is_valid(now)) else { return };
    if !state.trusted().any(|ca| *ca == leaf.issuer) {
        state.keep(&leaf.issuer, lifetimes.outlived(now));
        distrust(state, seen);
    }
}

/// What is stored of the active CA's soak may be of another day.
fn distrust(state: &mut State, seen: &Seen<'_>) {
    if !seen.is_trusted(state.ca()) {
        state.active.trusted_since = None;
    }
}

/// A CA whose life is over signs nothing that is accepted: its successor signs at once.
fn replace_expired(
    state: &mut State,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Result<(), AuthorityError> {
    state.next.take_if(|next| next.is_expired(now));
    if state.active.is_expired(now) {
        let next = match state.next.take() {
            Some(next) => next,
            None => Announced::generate(state.generation + 1, now, lifetimes)?,
        };
        state.switch(next, now, lifetimes);
    }
    Ok(())
}

/// Announce to soak when both bundles hold the next CA, back when one no longer does, and from
/// soak to the switch when the time is over. A new active CA that nobody announced soaks too; once
/// it has, a bundle that is wiped and repaired makes nobody wait again.
fn advance(state: &mut State, seen: &Seen<'_>, now: Timestamp, lifetimes: &Lifetimes) {
    let active_trusted = seen.is_trusted(state.ca());
    if active_trusted {
        state.active.trusted_since.get_or_insert(now);
    } else if !state.active.is_soaked(now, lifetimes) {
        state.active.trusted_since = None;
    }
    let Some(mut next) = state.next.take() else { return };
    if active_trusted && seen.is_trusted(&next.authority.certificate) {
        next.trusted_since.get_or_insert(now);
    } else {
        next.trusted_since = None;
    }
    if next.is_soaked(now, lifetimes) {
        state.switch(next, now, lifetimes);
    } else {
        state.next = Some(next);
    }
}

/// Whether this replica has to make itself a leaf by the active CA of what is stored. No [`step`]
/// has to be made before it.
#[must_use]
pub fn leaf_is_due(seen: &Seen<'_>, now: Timestamp, lifetimes: &Lifetimes) -> bool {
    let Ok(Some(state)) = seen.stored else { return false };
    if state.active.is_expired(now) {
        return false;
    }
    match seen.serving.filter(|leaf| leaf.is_valid(now)) {
        None => true,
        Some(leaf) if leaf.issuer == *state.ca() => leaf.renew_at <= now,
        Some(_) => state.active.is_soaked(now, lifetimes) && seen.is_trusted(state.ca()),
    }
}

/// When time alone will ask for something next. `None`: nothing is known to be due.
#[must_use]
pub fn look_again(
    state: &State,
    serving: Option<&Leaf>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Option<Timestamp> {
    let soaked = [Some(&state.active), state.next.as_ref()].into_iter().flatten();
    let soaked = soaked.filter_map(|ca| Some(later(ca.trusted_since?, lifetimes.soak)));
    let ageing = state.ca().not_after.saturating_sub(lifetimes.ca / 3).ok();
    let due = soaked.chain(ageing).chain(serving.map(|leaf| leaf.renew_at));
    let old = state.old.iter().flat_map(|old| [lifetimes.soaked(old), old.until]);
    due.chain(old).filter(|at| now < *at).min()
}

#[cfg(test)]
mod tests;
