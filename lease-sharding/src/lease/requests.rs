//! Requests about Leases: each is made once and has a limit.

use super::{
    codec::{self, Template},
    published::Board,
};
use crate::{
    clock::Clock,
    protocol::{self, Event, MemberName, Millis, Precondition, Record, Version, Write},
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as k8s;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The Leases of one ring, as one member reads and writes them. Clones share connections.
#[derive(Clone)]
pub(crate) struct Requests {
    pub(super) api: Api<k8s::Lease>,
    pub(super) ring: Arc<str>,
    pub(super) lease_time: Millis,
    pub(super) limit: Duration,
    pub(super) board: Arc<Board>,
    member: MemberName,
    namespace: Arc<str>,
    template: Template,
    clock: Clock,
    /// Whether the last write of the own Lease failed.
    failing: Arc<AtomicBool>,
}

impl Requests {
    /// Connections of their own: a retry or a shared limit could hold a renewal up for longer than
    /// its lease.
    pub(crate) fn new(
        mut config: Config,
        namespace: &str,
        (ring, member, template): (&str, MemberName, Template),
        timing: &protocol::Timing,
        (clock, board): (Clock, Arc<Board>),
    ) -> kube::Result<Self> {
        config.default_retry = false;
        config.write_timeout = None;
        let api = Api::namespaced(Client::try_from(config)?, namespace);
        let (lease_time, limit) = (timing.lease(), Duration::from_millis(timing.renew_timeout()));
        let (ring, namespace) = (ring.into(), namespace.into());
        Ok(Self {
            api,
            ring,
            lease_time,
            limit,
            board,
            member,
            namespace,
            template,
            clock,
            failing: Arc::default(),
        })
    }

    /// All Leases of the ring.
    pub(crate) async fn list(&self) -> kube::Result<Vec<k8s::Lease>> {
        let params = ListParams::default().labels(&self.selector());
        let answer = tokio::time::timeout(self.limit, self.api.list(&params)).await;
        answer.map_err(|late| kube::Error::Service(late.into()))?.map(|list| list.items)
    }

    pub(super) fn selector(&self) -> String {
        format!("{}={}", codec::RING_LABEL, self.ring)
    }

    /// Writes the own Lease, and reads it if the precondition does not hold.
    pub(super) async fn write(self, write: Write, introduces: bool) -> Event {
        match tokio::time::timeout(self.limit, self.try_write(&write, introduces)).await {
            Ok(Ok(event)) => {
                self.failing.store(false, Ordering::Relaxed);
                event
            }
            Ok(Err(error)) => self.failed(&error),
            Err(late) => self.failed(&late),
        }
    }

    /// An outage is told about once.
    fn failed(&self, error: &dyn std::error::Error) -> Event {
        let lease = codec::name(&self.ring, &self.member);
        let namespace = &*self.namespace;
        if self.failing.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, %namespace, %lease, "cannot write the Lease");
        } else {
            tracing::warn!(%error, %namespace, %lease, "cannot write the Lease, it is tried again");
        }
        Event::Failed
    }

    async fn try_write(&self, write: &Write, introduces: bool) -> kube::Result<Event> {
        let name = codec::name(&self.ring, &self.member);
        let wall = i64::try_from(self.clock.now().wall).unwrap_or(i64::MAX);
        let now = Timestamp::from_millisecond(wall).unwrap_or(Timestamp::MAX);
        let mut fields = codec::fields(&self.member, &write.record, Some(now));
        if introduces {
            codec::introduce(&mut fields, &self.ring, &self.template, now);
        }
        self.board.write(&mut fields, write.record.holder.is_none());
        let written = match write.on {
            Precondition::Absent => {
                fields["metadata"]["name"] = name.as_str().into();
                let lease = serde_json::from_value(fields).map_err(kube::Error::SerdeError)?;
                self.api.create(&PostParams::default(), &lease).await
            }
            Precondition::Is(Version(version)) => self.patch(&name, version, fields).await,
            #[cfg(test)]
            Precondition::Nothing => self.patch(&name, 0, fields).await,
        };
        match written {
            Ok(lease) => Ok(self.read(&lease).map_or(Event::Failed, |l| Event::Written(l.version))),
            Err(kube::Error::Api(s))
                if s.is_conflict() || s.is_already_exists() || s.is_not_found() =>
            {
                let now = self.api.get_opt(&name).await?;
                Ok(Event::Refused(now.as_ref().and_then(|lease| self.read(lease))))
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, lease: &k8s::Lease) -> Option<protocol::Lease> {
        codec::read(&self.ring, lease, self.lease_time)
    }

    async fn patch(
        &self,
        name: &str,
        version: u64,
        mut fields: serde_json::Value,
    ) -> kube::Result<k8s::Lease> {
        fields["metadata"]["resourceVersion"] = version.to_string().into();
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(fields)).await
    }

    /// Takes away the claims of a member that seems dead. Whether it worked: if it lives, no.
    pub(super) async fn bury(self, lease: protocol::Lease) -> bool {
        let (name, record): (_, &Record) = (codec::name(&self.ring, &lease.member), &lease.record);
        let fields = codec::fields(&lease.member, record, None);
        let patch = self.patch(&name, lease.version.0, fields);
        match tokio::time::timeout(self.limit, patch).await {
            Ok(Ok(_)) => {
                tracing::info!(member = %lease.member, "took over from a member that did not renew its Lease");
                return true;
            }
            Ok(Err(error)) => tracing::debug!(%error, %name, "no tombstone"),
            Err(error) => tracing::debug!(%error, %name, "no tombstone"),
        }
        false
    }

    /// Deletes what a member left behind.
    pub(super) async fn forget(self, member: MemberName, version: Version) {
        let name = codec::name(&self.ring, &member);
        let resource_version = Some(version.0.to_string());
        let preconditions = Some(Preconditions { resource_version, uid: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        // Whoever is next tries again.
        let _ = tokio::time::timeout(self.limit, self.api.delete(&name, &params)).await;
    }
}
