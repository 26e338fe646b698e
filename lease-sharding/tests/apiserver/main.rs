//! Members of a ring on a real API server: processes of the example, and members in this process.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(unreachable_pub, reason = "modules of one test binary, with the visibility of a library")]

mod library;
mod processes;
mod stage;
mod witness;
