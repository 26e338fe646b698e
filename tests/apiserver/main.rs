//! The operator on a real API server. One binary, so that it is linked once.
//!
//! Every test has a control plane of its own: the number of nodes is global to one.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(unreachable_pub, reason = "modules of one test binary, with the visibility of a library")]

#[allow(dead_code, reason = "what is about bytes has no use before a real API server")]
#[path = "../admission/case.rs"]
mod case;
mod cert_manager;
mod changes;
mod content;
mod corpus;
mod faults;
mod forecasts;
mod killed;
mod kubectl;
mod obstacles;
mod overlays;
mod policies;
mod queries;
mod replayed;
mod rollouts;
mod rotations;
mod scaling;
mod self_managed;
mod served;
mod sharding;
#[path = "../prometheus/shipped.rs"]
mod shipped;
mod stored;
mod stuck;
mod support;
mod traces;
mod webhooks;
mod whole;
