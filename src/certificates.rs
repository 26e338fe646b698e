//! Certificates as values: what a pair of certificate and key is good for, and whether a bundle
//! of CAs verifies it. Nothing here reads a file, a clock or a cluster.

pub mod pair;
pub mod reload;
pub mod trust;

pub use pair::{Pair, PairError};
