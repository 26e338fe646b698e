//! The HTTPS server of the admission webhooks.

pub(crate) mod configurations;
pub mod self_managed;
pub mod serving;

pub use self_managed::SelfManaged;
pub use serving::Serving;
