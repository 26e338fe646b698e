//! Scales kube-state-metrics with the cluster.
pub mod api;
pub mod coverage;
pub mod crd;
pub mod names;
pub mod observed;
pub mod plan;
pub mod rules;
pub mod validate;
