//! The HTTPS server of the admission webhooks.

pub mod serving;

pub use serving::Serving;
