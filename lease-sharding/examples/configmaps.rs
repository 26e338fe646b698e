//! An operator of several processes that share the ConfigMaps with the label `work=shared`: the
//! owner of each counts in it.
//!
//! Takes POD_NAME, POD_NAMESPACE and POD_UID as the downward API gives them, and KUBECONFIG.

use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        reflector,
        watcher::{self, watcher},
    },
};
use lease_sharding::{End, Pod, Sharding, keys::Key, protocol::TimingConfig};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

const PERIOD: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(3);

struct Context {
    client: Client,
    sharding: Sharding,
    name: String,
}

async fn reconcile(map: Arc<ConfigMap>, context: Arc<Context>) -> kube::Result<Action> {
    // Not ours: we are called when it is.
    let Some(guard) = context.sharding.guard(&Key::of(&*map)) else {
        return Ok(Action::await_change());
    };
    let client = guard.client(&context.client);
    // A read without an answer must not keep the object for ever.
    let work = tokio::time::timeout(LIMIT, count(client, &map, &context.name));
    match guard.run(work).await {
        Ok(Ok(result)) => result,
        Ok(Err(late)) => Err(kube::Error::Service(late.into())),
        Err(_lost) => Ok(Action::await_change()),
    }
}

async fn count(client: Client, map: &ConfigMap, worker: &str) -> kube::Result<Action> {
    let maps: Api<ConfigMap> = Api::namespaced(client, &map.namespace().unwrap_or_default());
    let now = maps.get_metadata(&map.name_any()).await?;
    let count = now.annotations().get("count").and_then(|n| n.parse::<u64>().ok());
    // With the version that was read, a write that arrives late fails.
    let change = json!({"metadata": {
        "resourceVersion": now.resource_version(),
        "annotations": {"count": (count.unwrap_or_default() + 1).to_string(), "worker": worker},
    }});
    maps.patch(&map.name_any(), &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(Action::requeue(PERIOD))
}

#[expect(clippy::disallowed_methods, reason = "the environment is this program's interface")]
fn environment(name: &str) -> anyhow::Result<String> {
    Ok(std::env::var(name)?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).init();
    let pod = Pod {
        name: environment("POD_NAME")?,
        namespace: environment("POD_NAMESPACE")?,
        uid: environment("POD_UID")?,
    };
    let config = Config::infer().await?;
    let (name, client) = (pod.name.clone(), Client::try_from(config.clone())?);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &pod.namespace);
    let sharding =
        Sharding::builder(config, "configmaps", pod).timing(TimingConfig::FAST).join().await?;

    // After an error a controller hears of nothing for a while, not even of what is gained: errors
    // end here.
    let (store, writer) = reflector::store();
    let events = watcher(maps, watcher::Config::default().labels("work=shared")).default_backoff();
    let objects = events.reflect(writer).applied_objects().filter(|o| future::ready(o.is_ok()));
    let context = Arc::new(Context { client, sharding: sharding.clone(), name });
    let run = Controller::for_stream(objects, store.clone())
        .reconcile_on(sharding.gained_objects(store))
        .run(reconcile, |_, _, _| Action::requeue(PERIOD), context)
        .for_each(|_| future::ready(()));

    let mut terminate = signal(SignalKind::terminate())?;
    let end = tokio::select! {
        () = run => anyhow::bail!("the controller ended"),
        _ = terminate.recv() => sharding.leave().await,
        end = sharding.ended() => end,
    };
    anyhow::ensure!(end == End::Left, "{end:?}");
    Ok(())
}
