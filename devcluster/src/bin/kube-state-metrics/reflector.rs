//! Keeps a store as the API server has it.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use devcluster::kube_state_metrics::Faults;
use futures::{Stream, StreamExt as _};
use kube::core::{DynamicObject, DynamicResourceScope, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::State;
use crate::families::{Object, Resource};
use crate::shard::shard_of;
use crate::store::Store;

/// What faults mean for one resource. When it changes, the resource is listed again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Orders {
    late: Duration,
    lag: Duration,
    shard: u32,
    total_shards: u32,
    rehashed: bool,
    truncated: usize,
    emptied: Option<Duration>,
}

impl Orders {
    fn of(state: &State, faults: &Faults, resource: Resource) -> Self {
        let name = resource.name();
        let (shard, total_shards) = state.arguments.shards(faults);
        Self {
            late: Duration::from_millis(faults.late.get(name).copied().unwrap_or_default()),
            lag: Duration::from_millis(faults.lag),
            shard,
            total_shards,
            rehashed: faults.rehashed,
            truncated: faults.truncated.get(name).copied().unwrap_or(usize::MAX),
            emptied: faults.emptied.get(name).copied().map(Duration::from_millis),
        }
    }

    fn keeps(&self, object: &Object) -> bool {
        let uid = object.meta.uid.as_deref().unwrap_or_default();
        let shard = if self.rehashed {
            shard_of(&uid.chars().rev().collect::<String>(), self.total_shards)
        } else {
            shard_of(uid, self.total_shards)
        };
        shard == self.shard
    }
}

/// Lists and watches for ever.
pub(crate) async fn keep(state: Arc<State>, index: usize) {
    let store = &state.stores[index];
    let start = Instant::now();
    let mut faults = state.faults.clone();
    loop {
        let orders = Orders::of(&state, &faults.borrow_and_update(), store.resource);
        let resource = store.resource;
        let changed = faults.wait_for(|faults| Orders::of(&state, faults, resource) != orders);
        tokio::select! {
            () = follow(&state, store, &orders, start) => {}
            changed = changed => if changed.is_err() { return },
        }
    }
}

async fn follow(state: &State, store: &Store, orders: &Orders, start: Instant) {
    tokio::time::sleep_until(start + orders.late).await;
    if let Some(emptied) = orders.emptied {
        store.clear();
        tokio::time::sleep(emptied).await;
    }
    let mut events = lagging(events(&state.client, store), orders.lag);
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                state.telemetry.watched(store.resource, true);
                listed.clear();
            }
            Ok(Event::InitApply(object)) => {
                if listed.len() < orders.truncated && orders.keeps(&object) {
                    listed.push(object);
                }
            }
            Ok(Event::InitDone) => store.replace(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) if orders.keeps(&object) => store.insert(&object),
            Ok(Event::Delete(object)) if orders.keeps(&object) => store.remove(&object),
            Ok(Event::Apply(_) | Event::Delete(_)) => {}
            Err(error) => {
                state.telemetry.watched(store.resource, false);
                eprintln!("{}: {error}", store.resource.name());
            }
        }
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<Event<Object>, watcher::Error>> + Send>>;

/// All of them, in order, and each so much later.
fn lagging(events: Events, lag: Duration) -> Events {
    let later = move |event| async move {
        tokio::time::sleep(lag).await;
        event
    };
    if lag.is_zero() { events } else { Box::pin(events.map(later).buffered(usize::MAX)) }
}

/// Like the real one, lists by watching (`sendInitialEvents`).
fn events(client: &Client, store: &Store) -> Events {
    if store.resource.is_metadata_only() {
        let object = |it: PartialObjectMeta<_>| Object { meta: it.metadata, data: Value::Null };
        watch(api::<PartialObjectMeta<DynamicObject>>(client, store), object)
    } else {
        let object = |it: DynamicObject| Object { meta: it.metadata, data: it.data };
        watch(api::<DynamicObject>(client, store), object)
    }
}

fn api<K>(client: &Client, store: &Store) -> Api<K>
where
    K: kube::Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    let (client, resource) = (client.clone(), store.resource.api());
    match &store.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

fn watch<K>(api: Api<K>, object: impl Fn(K) -> Object + Copy + Send + 'static) -> Events
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, Config::default().streaming_lists()).default_backoff();
    Box::pin(events.map(move |event| Ok(convert(event?, object))))
}

fn convert<K>(event: Event<K>, object: impl Fn(K) -> Object) -> Event<Object> {
    match event {
        Event::Apply(it) => Event::Apply(object(it)),
        Event::Delete(it) => Event::Delete(object(it)),
        Event::Init => Event::Init,
        Event::InitApply(it) => Event::InitApply(object(it)),
        Event::InitDone => Event::InitDone,
    }
}
