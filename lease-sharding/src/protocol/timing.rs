//! The times of the protocol, in a type that can't hold unsafe ones.

/// A length of time, or a point on a clock, in milliseconds.
pub type Millis = u64;

/// The times that are asked for. [`Timing::try_from`] says whether they are safe together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingConfig {
    /// For how long a Lease has to stay unchanged before its claims are taken away. Whole seconds,
    /// because that is what a Lease can say.
    pub lease: Millis,
    /// For how long after *sending* its newest acknowledged renewal a member acts.
    pub fence: Millis,
    /// How long after sending a renewal the next is sent.
    pub renew: Millis,
    /// How long after a renewal without an answer the next is sent.
    pub retry: Millis,
    /// After which a renewal counts as without an answer.
    pub renew_timeout: Millis,
    /// The longest time that a guarded write may take; it is started only if that fits before the
    /// fence.
    pub write_timeout: Millis,
    /// By how much a clock may be too fast or too slow, in thousandths.
    pub clock_error_permille: u32,
    /// How much later each further member clears a dead member's claims, so that normally only
    /// one tries.
    pub stagger: Millis,
    /// After which the Lease of a member that left is deleted; 0 means never.
    pub forget: Millis,
}

impl TimingConfig {
    /// A crashed member's share is without an owner for at most about 15 s.
    pub const DEFAULT: Self = Self {
        lease: 15_000,
        fence: 10_000,
        renew: 3_000,
        retry: 1_000,
        renew_timeout: 3_000,
        write_timeout: 3_000,
        clock_error_permille: 50,
        stagger: 200,
        forget: 3_600_000,
    };

    /// A crashed member's share is without an owner for at most about 6 s; three times the load.
    pub const FAST: Self = Self {
        lease: 6_000,
        fence: 4_000,
        renew: 1_000,
        retry: 300,
        renew_timeout: 1_000,
        write_timeout: 1_500,
        ..Self::DEFAULT
    };
}

/// Why times are unsafe together: the inequality that does not hold, with its numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsafe times: {inequality} does not hold: {numbers}")]
pub struct UnsafeTiming {
    /// The inequality, in the names of [`TimingConfig`].
    pub inequality: &'static str,
    /// The same with numbers.
    pub numbers: String,
}

/// Times that are safe together. There is no way to have others.
///
/// # Guarantees
/// - A member's fence ends before anybody can clear its claims, whatever the clocks' errors within
///   `clock_error_permille`: `fence * (1 + error) <= lease * (1 - error)`.
/// - A renewal that fails once still leaves time to act: `renew + renew_timeout < fence -
///   write_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    pub(crate) lease: Millis,
    pub(crate) fence: Millis,
    pub(crate) renew: Millis,
    pub(crate) retry: Millis,
    pub(crate) renew_timeout: Millis,
    pub(crate) write_timeout: Millis,
    pub(crate) stagger: Millis,
    pub(crate) forget: Millis,
}

impl Timing {
    /// For how long a Lease has to stay unchanged before its claims are taken away.
    pub fn lease(&self) -> Millis {
        self.lease
    }

    /// For how long after sending its newest acknowledged renewal a member acts.
    pub fn fence(&self) -> Millis {
        self.fence
    }

    /// How long after a renewal without an answer the next is sent.
    pub fn retry(&self) -> Millis {
        self.retry
    }

    /// After which a renewal counts as without an answer.
    pub fn renew_timeout(&self) -> Millis {
        self.renew_timeout
    }

    /// The longest time that a guarded write may take.
    pub fn write_timeout(&self) -> Millis {
        self.write_timeout
    }
}

impl Timing {
    /// For times that have been checked.
    const fn of(c: TimingConfig) -> Self {
        Self {
            lease: c.lease,
            fence: c.fence,
            renew: c.renew,
            retry: c.retry,
            renew_timeout: c.renew_timeout,
            write_timeout: c.write_timeout,
            stagger: c.stagger,
            forget: c.forget,
        }
    }

    /// Times that nobody checked: the model checker goes to the very edge, and a mutant beyond it.
    #[cfg(test)]
    pub(crate) const fn unchecked(c: TimingConfig) -> Self {
        Self::of(c)
    }
}

impl TryFrom<TimingConfig> for Timing {
    type Error = UnsafeTiming;

    fn try_from(c: TimingConfig) -> Result<Self, UnsafeTiming> {
        let error = u128::from(c.clock_error_permille);
        let wide = u128::from;
        let drifted = |time: Millis| wide(time) * (1_000 + error);
        let hurried = |time: Millis| wide(time) * 1_000_u128.saturating_sub(error);
        let (e, longest) = (f64::from(c.clock_error_permille) / 1_000.0, 24 * 3_600_000);
        let spent = wide(c.renew) + wide(c.renew_timeout) + wide(c.write_timeout);
        let rules: [(bool, &'static str, String); 9] = [
            (c.lease >= 1_000, "lease >= 1 s", format!("{} ms", c.lease)),
            (c.lease <= longest, "lease <= 24 h", format!("{} ms", c.lease)),
            (c.lease.is_multiple_of(1_000), "lease mod 1 s = 0", format!("{} ms", c.lease)),
            (c.renew > 0, "renew > 0", format!("{} ms", c.renew)),
            (c.retry > 0, "retry > 0", format!("{} ms", c.retry)),
            (c.renew_timeout > 0, "renew_timeout > 0", format!("{} ms", c.renew_timeout)),
            (c.retry <= c.renew, "retry <= renew", format!("{} ms > {} ms", c.retry, c.renew)),
            (
                drifted(c.fence) <= hurried(c.lease),
                "fence * (1 + clock error) <= lease * (1 - clock error)",
                format!(
                    "{} ms * {:.3} > {} ms * {:.3}",
                    c.fence,
                    1.0 + e,
                    c.lease,
                    (1.0 - e).max(0.0)
                ),
            ),
            (
                spent < wide(c.fence),
                "renew + renew_timeout < fence - write_timeout",
                format!(
                    "{} ms + {} ms >= {} ms - {} ms",
                    c.renew, c.renew_timeout, c.fence, c.write_timeout
                ),
            ),
        ];
        if let Some((_, inequality, numbers)) = rules.into_iter().find(|(holds, ..)| !holds) {
            return Err(UnsafeTiming { inequality, numbers });
        }
        Ok(Self::of(c))
    }
}
