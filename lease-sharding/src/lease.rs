//! Leases: how they are written, read and watched, and the task that does what the protocol says.

mod codec;
mod driver;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod published;
mod requests;
mod watch;

pub(crate) use codec::{RING_LABEL, generation, pod_number};
pub(crate) use driver::{Driver, Inputs, State};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::leases;
pub(crate) use published::Board;
pub use published::Texts;
pub(crate) use requests::Requests;
