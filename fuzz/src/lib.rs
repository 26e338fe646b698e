//! What is fuzzed, as functions that panic where a promise is broken.
//!
//! libFuzzer runs them with a nightly compiler (`make fuzz`); `tests/fuzz_corpora.rs` compiles this
//! file too, and replays the corpora. So nothing here depends on anything but its bytes.

mod answers;
#[path = "../../tests/admission/api_server.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of other tests, which read all of it")]
mod api_server;
mod certificates;
mod connections;
mod reviews;
mod warnings;

pub use answers::raw_reviews;
pub use certificates::certificates;
pub use connections::connections;
pub use reviews::{patches, reviews};
pub use warnings::warnings;

/// Panics if what it makes of the bytes breaks a promise.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("raw_reviews", raw_reviews),
    ("reviews", reviews),
    ("patches", patches),
    ("certificates", certificates),
    ("warnings", warnings),
    ("connections", connections),
];
