//! Shares an operator's work among its replicas: all of them work, and each object has exactly one
//! owner, also while replicas start, stop, crash, hang or are cut off. No leader.
//!
//! This crate has the pure parts, without I/O, clocks or a Kubernetes client:
//!
//! - [`keys`]: from an object to its partition.
//! - [`placement`]: which member should have which partition.
//! - [`protocol`]: who may act on which partition, as a state machine.
//! - [`ring`]: consistent hashing that agrees with `buraksezer/consistent` bit for bit.
//!
//! What reads and writes Leases, hands out guards and re-enqueues objects is not there yet.
//!
//! ```
//! use lease_sharding::{
//!     keys::{Key, Keyspace},
//!     placement::Placement,
//!     protocol::{
//!         Effect, Event, Holder, Identity, Lease, Now, Protocol, Timing, TimingConfig, Version,
//!     },
//! };
//!
//! let keys = Keyspace::default();
//! let placement = Placement::default();
//! let me = Identity {
//!     member: "operator-0".into(),
//!     holder: Holder { pod: 1, incarnation: 1 },
//!     keyspace: keys.fingerprint(),
//!     placement: placement.fingerprint(),
//!     generation: 0,
//! };
//! let timing = Timing::try_from(TimingConfig::DEFAULT)?;
//! let now = Now { steady: 0, wall: 0 };
//! let mut protocol = Protocol::new(me, timing, now);
//!
//! // There are no Leases yet, so it wants to create its own.
//! protocol.step(now, Event::Ready);
//! let effects = protocol.step(now, Event::Listed(vec![]));
//! let [Effect::Write(write)] = &effects[..] else { unreachable!() };
//! protocol.step(now, Event::Written(Version(1)));
//! let lease = Lease { member: "operator-0".into(), version: Version(1), record: write.record.clone() };
//! protocol.step(now, Event::Seen(lease));
//!
//! // It is alone: it wants everything, claims it, and acts once it has seen its own claim.
//! let wants = placement.wants(keys.partitions(), &protocol, "operator-0");
//! let effects = protocol.step(now, Event::Want(wants));
//! let [Effect::Write(write)] = &effects[..] else { unreachable!() };
//! protocol.step(now, Event::Written(Version(2)));
//! let partition = keys.partition_of(&Key::new("apps", "Deployment", "default", "web"));
//! assert_eq!(protocol.acts_until(partition), None);
//! let lease = Lease { member: "operator-0".into(), version: Version(2), record: write.record.clone() };
//! let effects = protocol.step(now, Event::Seen(lease));
//! assert!(matches!(&effects[..], [Effect::Gained(gained)] if gained.contains(partition)));
//!
//! // Until 10 s after it sent that write, and not a moment longer.
//! assert_eq!(protocol.acts_until(partition), Some(Now { steady: 10_000, wall: 10_000 }));
//! # Ok::<(), lease_sharding::protocol::UnsafeTiming>(())
//! ```

mod clock;
pub mod guard;
pub mod hash;
pub mod keys;
mod lease;
mod metrics;
#[cfg(test)]
mod model;
pub mod partitions;
pub mod placement;
pub mod protocol;
pub mod ring;
mod sharding;
#[cfg(test)]
mod simulation;

pub use sharding::{Builder, End, JoinError, Pod, Sharding};
