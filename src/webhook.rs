//! The HTTPS server of the admission webhooks.

pub mod mounted;
pub mod serving;
pub mod trust;

pub use serving::Serving;
