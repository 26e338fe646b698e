//! Certificates as values: what a pair of certificate and key is good for, whether a bundle of CAs
//! verifies it, and how a CA of our own follows another. Nothing here reads a file, a clock or a
//! cluster. Keys and serials come from ring's randomness; no decision does.

pub mod authority;
pub mod pair;
pub mod reload;
pub mod rotation;
mod stored;
pub mod trust;

pub use authority::{Authority, AuthorityError, Certificate, Leaf, LeafRequest, server_names};
pub use pair::{Pair, PairError};
pub use stored::Damage;
