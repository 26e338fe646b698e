//! Shares an operator's work among its replicas: all of them work, and each object has exactly one
//! owner, also while replicas start, stop, crash, hang or are cut off. No leader.
//!
//! [`Sharding`] is the front: it keeps a Lease, tells what is gained, and hands out
//! [guards](guard::Guard), under which reconciles run.
//!
//! ```no_run
//! # use futures::StreamExt;
//! # use k8s_openapi::api::core::v1::ConfigMap;
//! # use kube::{Api, Client, Config, runtime::{Controller, controller::Action, watcher}};
//! # use lease_sharding::{Pod, Sharding, keys::Key};
//! # use std::sync::Arc;
//! # async fn work(_: Client, _: &ConfigMap) -> kube::Result<Action> { Ok(Action::await_change()) }
//! # async fn operator(config: Config, pod: Pod) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::try_from(config.clone())?;
//! let sharding = Sharding::builder(config, "my-operator", pod).join().await?;
//!
//! let controller = Controller::new(Api::<ConfigMap>::all(client.clone()), watcher::Config::default());
//! // What is gained is reconciled at once, not at its next event.
//! let gained = sharding.gained_objects(controller.store());
//! let reconcile = |map: Arc<ConfigMap>, context: Arc<(Sharding, Client)>| async move {
//!     let (sharding, client) = &*context;
//!     let Some(guard) = sharding.guard(&Key::of(&*map)) else {
//!         return Ok(Action::await_change()); // another replica's
//!     };
//!     // This client refuses writes once the object may be another's.
//!     let work = work(guard.client(client), &map);
//!     guard.run(work).await.unwrap_or_else(|_lost| Ok(Action::await_change()))
//! };
//! let context = Arc::new((sharding.clone(), client));
//! let controller = controller
//!     .reconcile_on(gained)
//!     .run(reconcile, |_, _, _| Action::await_change(), context)
//!     .for_each(|_| std::future::ready(()));
//!
//! tokio::select! {
//!     () = controller => {}
//!     _ = tokio::signal::ctrl_c() => drop(sharding.leave().await), // hands over first
//!     _ = sharding.ended() => {} // another process took this one's place
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Below it are the pure parts, without I/O and clocks:
//!
//! - [`keys`]: from an object to its partition.
//! - [`placement`]: which member should have which partition.
//! - [`protocol`]: who may act on which partition, as a state machine.
//! - [`ring`]: consistent hashing that agrees with `buraksezer/consistent` bit for bit.

mod clock;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
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

pub use lease::Texts;
pub use sharding::{Builder, End, JoinError, Pod, Sharding};
