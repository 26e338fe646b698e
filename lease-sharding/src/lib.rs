//! placeholder
pub mod hash;
pub mod ring;
