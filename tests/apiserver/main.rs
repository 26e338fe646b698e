//! The operator on a real API server. One binary, so that it is linked once.
//!
//! Every test has a control plane of its own: the number of nodes is global to one.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(unreachable_pub, reason = "modules of one test binary, with the visibility of a library")]

mod cert_manager;
mod changes;
mod corpus;
mod faults;
mod killed;
mod obstacles;
mod overlays;
mod policies;
mod rollouts;
mod rotations;
mod scaling;
mod self_managed;
mod served;
mod stored;
mod stuck;
mod support;
mod webhooks;
mod whole;
