//! How long certificates live, and what has to fit into what.

use super::Old;
use jiff::Timestamp;
use std::time::Duration;

/// How long things live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub(super) ca: Duration,
    pub(super) leaf: Duration,
    pub(super) soak: Duration,
}

/// Lifetimes by which leaves would expire, or be refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimesError {
    /// Leaves would end with their CA instead of being renewed.
    #[error(
        "a CA's life of {ca:?} is too short for leaves of {leaf:?}: it is replaced in its last third, which must hold a leaf's life and twice the soak of {soak:?}"
    )]
    Authority {
        /// The CA's life.
        ca: Duration,
        /// The leaf's life.
        leaf: Duration,
        /// The soak.
        soak: Duration,
    },
    /// A leaf could expire while its successor waits.
    #[error(
        "a leaf's life of {leaf:?} is too short: it is renewed after half of it, which must hold the soak of {soak:?}"
    )]
    Leaf {
        /// The leaf's life.
        leaf: Duration,
        /// The soak.
        soak: Duration,
    },
    /// Certificates count whole seconds.
    #[error("a soak of {soak:?} is too short: certificates count whole seconds")]
    Soak {
        /// The soak.
        soak: Duration,
    },
}

impl Default for Lifetimes {
    /// A CA for a year, leaves for a week, a soak of two minutes.
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self { ca: 365 * day, leaf: 7 * day, soak: Duration::from_mins(2) }
    }
}

impl Lifetimes {
    /// Lives of a CA and of a leaf, and for how long a new CA has to be in the bundles before it
    /// signs: longer than an API server may lag behind, and than the replicas' clocks may differ.
    ///
    /// # Errors
    /// If they do not fit into each other.
    pub fn new(ca: Duration, leaf: Duration, soak: Duration) -> Result<Self, LifetimesError> {
        if soak < Duration::from_secs(1) {
            return Err(LifetimesError::Soak { soak });
        }
        if leaf < soak.saturating_mul(2) {
            return Err(LifetimesError::Leaf { leaf, soak });
        }
        if ca / 3 < leaf.saturating_add(soak.saturating_mul(2)) {
            return Err(LifetimesError::Authority { ca, leaf, soak });
        }
        Ok(Self { ca, leaf, soak })
    }

    /// A CA's life.
    #[must_use]
    pub fn ca(&self) -> Duration {
        self.ca
    }

    /// A leaf's life.
    #[must_use]
    pub fn leaf(&self) -> Duration {
        self.leaf
    }

    /// How long a new CA is in the bundles before it signs.
    #[must_use]
    pub fn soak(&self) -> Duration {
        self.soak
    }

    /// When the last leaf is dead that was signed by a CA replaced at `now`.
    pub(super) fn outlived(&self, now: Timestamp) -> Timestamp {
        later(now, self.leaf.saturating_add(self.soak))
    }

    /// When the switch from an old CA is a soak ago.
    pub(super) fn soaked(&self, old: &Old) -> Timestamp {
        old.until.saturating_sub(self.leaf).unwrap_or(old.until)
    }
}

pub(super) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(at)
}
