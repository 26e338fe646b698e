//! The front: a member of a ring, from joining to leaving.

use crate::{
    clock::Clock,
    guard::{Guard, Ledger},
    keys::{Key, Keyspace},
    lease::{self, Board, Driver, Inputs, RING_LABEL, Requests, State, Texts},
    metrics::Metrics,
    partitions::PartitionSet,
    placement::{Placement, Roster},
    protocol::{
        Holder, Identity, MemberName, Millis, Protocol, Timing, TimingConfig, UnsafeTiming,
    },
};
use futures::{Stream, StreamExt, stream};
use kube::{
    Resource,
    runtime::reflector::{ObjectRef, Store},
};
use prometheus_client::registry::Registry;
use std::{collections::BTreeMap, fmt::Debug, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// For how long a join waits for further ones before partitions move.
const SETTLE: Millis = 1_000;

/// Which pod this process runs in, as the downward API says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.name`. No two pods of a ring may have the same at a time.
    pub name: String,
    /// `metadata.namespace`. All members of a ring are in one.
    pub namespace: String,
    /// `metadata.uid`. A restarted container takes its Lease over at once by that, while another
    /// pod of the same name waits for a lease time.
    pub uid: String,
}

/// Why a process cannot be a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The ring's name can't be a label's value and a part of a Lease's name.
    #[error("ring {0:?} is no name: at most 63 of a-z, 0-9 and -, with neither end a -")]
    Ring(String),
    /// The pod's name can't be a part of a Lease's name.
    #[error("pod name {0:?} is none, or with the ring's it is longer than a Lease's name can be")]
    Pod(String),
    /// The times could give an object two owners, or none all the time.
    #[error(transparent)]
    Timing(#[from] UnsafeTiming),
    /// The operating system has no random numbers.
    #[error("no random numbers for this process's name: {0}")]
    Random(getrandom::Error),
    /// The configuration makes no client.
    #[error("no client for Leases: {0}")]
    Client(kube::Error),
    /// The Leases can't be listed.
    #[error(
        "cannot list Leases in namespace {namespace}: {source}. The ServiceAccount needs get, list, \
         watch, create, patch and delete of leases.coordination.k8s.io there"
    )]
    List {
        /// Where.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
}

/// How membership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was given away.
    Left,
    /// [`Sharding::leave`] could not give everything away for the fence time, because the API
    /// server does not answer. Nothing is owned any more; others take over when the lease time
    /// is over.
    Expired,
    /// Another process runs under this pod's name: this one must end. It owns nothing.
    Superseded,
}

/// What a member is to be; see [`Sharding::builder`]. Clones share their metrics: of several, one at
/// a time may be a member.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    config: kube::Config,
    ring: String,
    pod: Pod,
    timing: TimingConfig,
    keys: Keyspace,
    placement: Placement,
    template: String,
    metrics: Metrics,
}

impl Builder {
    /// Other times than [`TimingConfig::DEFAULT`]. They may differ between members.
    pub fn timing(self, timing: TimingConfig) -> Self {
        Self { timing, ..self }
    }

    /// Another keyspace than the default. It can be changed in a rolling update: the members of the
    /// old one do all work until the last of them has left.
    pub fn keyspace(self, keys: Keyspace) -> Self {
        Self { keys, ..self }
    }

    /// Another placement than the default.
    pub fn placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// What tells roll-outs apart: the label `pod-template-hash`. With [`Placement::Sticky`], work
    /// then moves once in a rolling update, from the old pods to the new ones.
    pub fn template(self, hash: &str) -> Self {
        Self { template: hash.to_owned(), ..self }
    }

    /// Adds the member's metrics to a registry. Their names begin with `sharding_`: the registry is
    /// to add no prefix. For a second ring, take a sub-registry with a label.
    pub fn metrics(self, registry: &mut Registry) -> Self {
        self.metrics.register(registry);
        self
    }

    /// Joins the ring. Returns once the Leases were listed; partitions follow in moments, see
    /// [`Sharding::gained`]. To be called on a Tokio runtime, when the program is able to work.
    pub async fn join(self) -> Result<Sharding, JoinError> {
        let timing = Timing::try_from(self.timing)?;
        let member = self.member()?;
        let clock = self.metrics.clock().clone();
        let names = (&*self.ring, member.clone(), self.template.as_str().into());
        let namespace = self.pod.namespace.clone();
        let board = Arc::new(Board::default());
        let around = (clock.clone(), board.clone());
        let requests = Requests::new(self.config, &namespace, names, &timing, around)
            .map_err(JoinError::Client)?;
        let leases = requests.list().await;
        let leases = leases.map_err(|source| JoinError::List { namespace, source })?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(JoinError::Random)?;
        let (pod, incarnation) = (lease::pod_number(&self.pod.uid), u128::from_ne_bytes(random));
        let me = Identity {
            member: member.clone(),
            holder: Holder { pod, incarnation },
            keyspace: self.keys.fingerprint(),
            placement: self.placement.fingerprint(),
            generation: lease::generation(&self.template, &leases),
        };
        let (ledger, ended) = Ledger::new(clock.clone(), timing.write_timeout());
        let (ledger, leave) = (Arc::new(ledger), CancellationToken::new());
        let driver = Driver {
            protocol: Protocol::new(me, timing, clock.now()),
            partitions: self.keys.partitions(),
            placement: self.placement,
            roster: Roster::new(member.clone(), SETTLE),
            requests,
            ledger: ledger.clone(),
            metrics: self.metrics,
            clock,
            fence: timing.fence(),
            state: State::default(),
            member,
        };
        let (sender, end) = watch::channel(None);
        let inputs = Inputs { ended, leave: leave.clone() };
        tokio::spawn(async move { sender.send_replace(Some(driver.run(inputs).await)) });
        let shared = Shared { ledger, board, keys: self.keys, leave, end };
        Ok(Sharding { shared: Arc::new(shared) })
    }

    fn member(&self) -> Result<MemberName, JoinError> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let label = |name: &str| {
            let bytes = name.as_bytes();
            let ends = bytes.first().into_iter().chain(bytes.last());
            bytes.iter().all(|c| inner(*c) || *c == b'-')
                && ends.clone().count() == 2
                && ends.copied().all(inner)
        };
        if self.ring.len() > 63 || !label(&self.ring) {
            return Err(JoinError::Ring(self.ring.clone()));
        }
        let name = &self.pod.name;
        if !name.split('.').all(label) || self.ring.len() + 1 + name.len() > 253 {
            return Err(JoinError::Pod(name.clone()));
        }
        Ok(name.as_str().into())
    }
}

/// A member of a ring. Clones are the same member; when the last of them is dropped, it leaves.
///
/// # Guarantees
/// - At no time do two members have valid guards of the same object, whatever is lost, late,
///   paused or cut off.
/// - Each object has an owner again: at once when a member leaves; at most about the lease time and
///   a few messages after one crashed.
///
/// | this happens | to this member | to its partitions |
/// | --- | --- | --- |
/// | the API server, or the network to it, is away | at the fence its guards are invalid, until the first renewal | stay its own if nobody else could reach the API server; else others have them after the lease time |
/// | the process is stopped (SIGSTOP), or the machine sleeps | when it goes on its guards are invalid already | others have them after the lease time |
/// | the time of day jumps forwards by the fence time | its guards are invalid until the next renewal | stay its own |
/// | the time of day jumps backwards | nothing | stay its own |
/// | its pod is deleted with force while the process runs | nothing: the Lease does not depend on the pod | stay its own as long as it renews |
/// | its Lease is deleted | its guards are lost at its next renewal, and it joins again | others keep off for the lease time |
/// | the runtime is so busy that renewals are late | as if the API server were away | |
///
/// # Assumptions
/// Those of [`crate::protocol`]. Writes go through [`Guard::client`] or ask [`Guard::is_valid`]
/// before each. A write that was sent in time can still arrive late: send a `resourceVersion`, so
/// that it fails then.
#[derive(Clone, Debug)]
pub struct Sharding {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<Ledger>,
    board: Arc<Board>,
    keys: Keyspace,
    leave: CancellationToken,
    end: watch::Receiver<Option<End>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.leave.cancel();
    }
}

impl Sharding {
    /// A member of `ring`, the set of replicas that share work, with a Lease in the pod's namespace.
    ///
    /// Takes a configuration, not a client: Leases get connections of their own, without the
    /// retries and limits that a client may have and a renewal can't wait for.
    pub fn builder(config: kube::Config, ring: &str, pod: Pod) -> Builder {
        Builder {
            config,
            ring: ring.to_owned(),
            pod,
            timing: TimingConfig::DEFAULT,
            keys: Keyspace::default(),
            placement: Placement::default(),
            template: String::new(),
            metrics: Metrics::new(Clock::system()),
        }
    }

    /// The label by which a ring's Leases are found, whose value is the ring's name.
    pub const RING_LABEL: &'static str = RING_LABEL;

    /// The right to act on an object, if it is this member's now. To be asked for when work on
    /// the object begins, and kept until it ends.
    ///
    /// `None` is no reason to ask again: [`Sharding::gained`] names the object when it is this
    /// member's.
    pub fn guard(&self, key: &Key) -> Option<Guard> {
        self.shared.ledger.begin(self.partition_of(key))
    }

    /// The partition of an object.
    pub fn partition_of(&self, key: &Key) -> u32 {
        self.shared.keys.partition_of(key)
    }

    /// Whose an object is, as far as this member knows: for messages, not for decisions. `None`
    /// while it is handed over.
    pub fn owner(&self, key: &Key) -> Option<MemberName> {
        self.shared.ledger.claimant(self.partition_of(key))
    }

    /// Partitions on which work is to start now: first those that are this member's already, then
    /// what it gains. After a time in which nothing could be written, all come again: work was
    /// turned away in it. Ends with the membership. To be polled, or it grows.
    pub fn gained(&self) -> impl Stream<Item = PartitionSet> + Send + use<> {
        stream::unfold(self.shared.ledger.listen(), |mut gained| async move {
            gained.recv().await.map(|partitions| (partitions, gained))
        })
    }

    /// The objects of a store in [`Sharding::gained`] partitions: for `Controller::reconcile_on`.
    /// An object that the store does not have yet needs none: its own event is yet to come.
    ///
    /// A controller whose watch fails listens to nothing until its back-off is over, this stream
    /// included: up to 30 s after an outage. Give it a stream without errors (`Controller::for_stream`).
    pub fn gained_objects<K>(
        &self,
        store: Store<K>,
    ) -> impl Stream<Item = ObjectRef<K>> + Send + use<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    {
        let keys = self.shared.keys;
        self.gained().flat_map(move |partitions| {
            let ours =
                |object: &Arc<K>| partitions.contains(keys.partition_of(&Key::of(&**object)));
            let objects = store.state().into_iter().filter(ours);
            stream::iter(objects.map(|object| ObjectRef::from_obj(&*object)).collect::<Vec<_>>())
        })
    }

    /// Publishes a text under a name to all members, with the next renewal, in place of what was
    /// under that name. It stays until the member leaves; a new process publishes nothing yet.
    ///
    /// For what members have to know of each other beside ownership, such as which version of a
    /// secret each has taken up. All of it is in one annotation of the Lease: keep it small.
    pub fn publish(&self, name: &str, text: &str) {
        self.shared.board.publish(name, text);
    }

    /// What every member publishes, as this one has seen it, and the changes of that. Members that
    /// have left are not in it. One that was taken for dead is, if it published anything, until its
    /// Lease is forgotten ([`TimingConfig::forget`]): it may be alive, and cut off.
    pub fn published(&self) -> watch::Receiver<BTreeMap<MemberName, Texts>> {
        self.shared.board.all()
    }

    /// Gives everything away, for SIGTERM. Work under way has [`PATIENCE`](crate::guard::PATIENCE)
    /// and its last write, then others take over. Returns when the process can end, at the latest
    /// after the fence time. Cancel safe: the member leaves anyway.
    pub async fn leave(&self) -> End {
        self.shared.leave.cancel();
        self.ended().await
    }

    /// Waits until this process is no member any more. Cancel safe.
    pub async fn ended(&self) -> End {
        let mut end = self.shared.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        // Without a value the task is gone, and with it all renewals.
        ended.ok().and_then(|end| *end).unwrap_or(End::Expired)
    }
}
