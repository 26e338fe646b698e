//! A real Kubernetes control plane on this machine, for tests and for trying things.
//!
//! - [`ControlPlane`]: etcd and kube-apiserver in seconds, with the controllers, the scheduler and
//!   [kwok](https://kwok.sigs.k8s.io) where a test needs them ([`Level`]).
//! - [`Kubelet`]: says of pods that they run, on a control plane without a scheduler and nodes.
//! - [`Machines`]: nodes on which each pod is a process, with an address, probes and restarts.
//! - [`kube_state_metrics`]: a stand-in for kube-state-metrics, with faults that a test switches on.
//! - [`Sampler`]: how often each object is exposed, twenty times a second.
//! - [`Prometheus`]: Debian's, which scrapes the pods of kube-state-metrics.
//! - [`SecretVolume`]: a directory in which a Secret is mounted, as the kubelet keeps it.
//! - [`FaultProxy`]: stands between a client and the API server, and fails requests on demand.
//! - [`Balancer`]: one address in front of several servers, as blind as kube-proxy.
//! - [`Process`]: a child process that cannot outlive its parent.
//! - [`eventually`]: waiting for a condition with a deadline.
//! - [`probe`]: asking a process how it is.
//! - [`tools`]: the eight binaries, built once from pinned Go modules.
//!
//! The crate works from a checkout only: it builds the modules in its own `go` folder.

pub mod balancer;
pub mod control_plane;
pub mod fault_proxy;
pub mod instance;
pub mod kube_state_metrics;
pub mod kubelet;
pub mod machines;
mod pod_status;
pub mod probe;
pub mod process;
pub mod prometheus;
pub mod sampler;
mod scratch;
pub mod tools;
pub mod volume;
mod wait;

pub use balancer::Balancer;
pub use control_plane::{ControlPlane, Level};
pub use fault_proxy::{Fault, FaultProxy, SeenRequest};
pub use kubelet::{Fate, Kubelet, Policy};
pub use machines::{Machines, Program, Programs};
pub use process::{Process, Signal};
pub use prometheus::Prometheus;
pub use sampler::Sampler;
pub use volume::SecretVolume;
pub use wait::eventually;
