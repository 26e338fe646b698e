//! Scales kube-state-metrics with the cluster, without one missing series.
//!
//! The modules in reading order; each uses only those before it:
//!
//! | module | holds |
//! | --- | --- |
//! | [`names`] | names shared with the cluster: labels, annotations, objects |
//! | [`api`] | the KSMScale resource as it is stored |
//! | [`rules`] | rules over several fields, as CEL and as Rust |
//! | [`crd`] | the CustomResourceDefinition: schema and rules |
//! | [`validate`] | from a KSMScale as written to one that cannot be wrong |
//! | [`allowed`] | which namespaces and images the administrator allows |
//! | [`coverage`] | which objects a set of pods exposes, exactly |
//! | [`exposition`], [`exposure`] | what a pod answers to a scrape · series that others have to serve |
//! | [`audit`] | whether every node is exposed by the pods that it should be |
//! | [`observed`] | what was read from the cluster |
//! | [`plan`] | from spec, observation and time to changes, as data |
//! | [`status`] | what is told about it: status, conditions, Events |
//! | [`warnings`] | advice on a valid KSMScale |
//! | [`admission`] | from the bytes of an admission review to those of its answer |
//! | [`forecast`] | the steps of a change before it is made |
//! | [`source`] | YAML as people write it, with lines |
//! | [`certificates`] | certificates as values: what fits, what verifies |
//! | [`readiness`], [`telemetry`], [`server`] | what the process tells about itself |
//! | [`membership`] | this replica among the others |
//! | [`controller`] | observe, plan, apply, publish |
//! | [`webhook`] | the HTTPS server of the admission webhooks |
//! | [`manifests`] | generated manifests |
//! | [`cli`] | the command line |
//!
//! Up to [`certificates`] everything is pure: no I/O, no clock, no environment, no randomness.

pub mod admission;
pub mod allowed;
pub mod api;
pub mod audit;
pub mod certificates;
pub mod cli;
pub mod controller;
pub mod coverage;
pub mod crd;
pub mod exposition;
pub mod exposure;
pub mod forecast;
pub mod manifests;
pub mod membership;
pub mod names;
pub mod observed;
pub mod plan;
pub mod readiness;
pub mod rules;
pub mod server;
pub mod source;
pub mod status;
pub mod telemetry;
pub mod validate;
pub mod warnings;
pub mod webhook;
