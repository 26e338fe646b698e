//! placeholder
pub mod hash;
#[cfg(test)]
mod model;
pub mod partitions;
pub mod placement;
pub mod protocol;
pub mod ring;
#[cfg(test)]
mod simulation;
