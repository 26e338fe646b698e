//! How long to wait after a failure.

use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// After the first failure. Long enough for a conflict to pass, short enough not to be felt.
const FIRST: Duration = Duration::from_millis(500);
/// At most: an obstacle that is gone is noticed within a minute.
const LONGEST: Duration = Duration::from_mins(1);

/// The delay before the next try, after `failures` failures before this one: doubles up to a
/// minute, less up to a quarter so that objects that failed together do not come back together.
///
/// The jitter is derived from the object and the count rather than drawn, so that it is a function.
#[must_use]
pub fn delay(object: &str, failures: u32) -> Duration {
    let full =
        FIRST.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(LONGEST);
    let jitter =
        u32::try_from(xxh3_64_with_seed(object.as_bytes(), failures.into()) % 256).unwrap_or(0);
    full * (1024 - jitter) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r84_delays_double_up_to_a_minute_and_differ_between_objects() {
        for failures in 0..100 {
            let (a, b) = (delay("a", failures), delay("a", failures + 1));
            assert!(a >= FIRST * 3 / 4 && a <= LONGEST);
            assert!(failures >= 7 || b > a, "{failures}: {a:?} {b:?}");
        }
        let delays: std::collections::BTreeSet<_> =
            (0..50).map(|i| delay(&format!("scale-{i}"), 9)).collect();
        assert!(delays.len() > 30, "only {} different delays", delays.len());
    }
}
