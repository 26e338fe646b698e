//! The one place where clocks are read.

use crate::protocol::{Millis, Now};
use std::{fmt, sync::Arc};

/// Where the time comes from. Clones read the same clocks.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Now + Send + Sync>);

impl Clock {
    /// A clock that shows what `read` returns.
    pub(crate) fn new(read: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// This machine's.
    pub(crate) fn system() -> Self {
        Self::new(system)
    }

    /// What it shows.
    pub(crate) fn now(&self) -> Now {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Elsewhere than on Linux the steady clock may stand still while the machine sleeps; the time of
/// day then ends ownership.
fn system() -> Now {
    #[cfg(target_os = "linux")]
    const STEADY: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const STEADY: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let millis = |id| {
        let time = rustix::time::clock_gettime(id);
        let millis = i128::from(time.tv_sec) * 1_000 + i128::from(time.tv_nsec) / 1_000_000;
        Millis::try_from(millis).unwrap_or_default()
    };
    Now { steady: millis(STEADY), wall: millis(rustix::time::ClockId::Realtime) }
}
