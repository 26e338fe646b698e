//! Everybody who calls the webhooks at the same time: API servers that are played, of which some
//! read a changed `caBundle` late, and users of the real one.

use super::{
    Caller, Cluster, Connections, Webhooks,
    caller::{Calls, Pause},
    eventually,
};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// What many calls may take. The longest run has 50,000.
const LONG: Duration = Duration::from_mins(30);

/// Load in the background. It stops when dropped.
pub struct Load {
    client: Client,
    /// How often the API server had gone on without the mutating webhook before: it may have been asked
    /// for something before it had heard of the webhook's certificate.
    open: f64,
    callers: Vec<Caller>,
    creations: Arc<Calls>,
    users: JoinSet<()>,
}

impl Load {
    /// Two API servers are played for each of `lags`, one that keeps its connections and one that
    /// does not, both that late with a changed bundle.
    pub async fn of_callers(webhooks: &Webhooks<'_>, lags: &[Duration]) -> Self {
        let address = webhooks.balancer.address().to_string();
        let client = webhooks.cluster().client.clone();
        let mut callers = Vec::new();
        for lag in lags {
            for (connections, pause) in [(Connections::KeptAlive, 4), (Connections::Fresh, 20)] {
                let pause = Duration::from_millis(pause);
                let caller =
                    Caller::start(client.clone(), &address, connections, 2, pause, *lag).await;
                callers.push(caller);
            }
        }
        let open = fail_open(&client).await;
        Self { client, open, callers, creations: Arc::default(), users: JoinSet::new() }
    }

    /// The same, and a user who asks the real API server all the time whether it would take a
    /// KSMScale. It calls both webhooks for each.
    pub async fn start(webhooks: &Webhooks<'_>, lags: &[Duration]) -> Self {
        let mut load = Self::of_callers(webhooks, lags).await;
        let (api, creations) = (scales(webhooks.cluster()), load.creations.clone());
        load.users.spawn(async move {
            for number in 0_u64.. {
                match create_dry(&api, &format!("dry-{number}")).await {
                    Ok(()) => creations.answer(),
                    Err(error) => creations.fail(format!("the API server: {error}")),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        load
    }

    fn all(&self) -> impl Iterator<Item = &Calls> {
        self.callers.iter().map(Caller::calls).chain([&*self.creations])
    }

    pub fn answered(&self) -> u64 {
        self.all().map(Calls::answered).sum()
    }

    /// Waits until so many calls are answered in all, or one failed, which
    /// [`Load::none_failed`] tells.
    pub async fn until(&self, calls: u64) {
        let enough = eventually("so many calls are answered", LONG, || async {
            let failed = self.all().any(|calls| !calls.failures().is_empty());
            (failed || self.answered() >= calls).then_some(())
        });
        if let Err(error) = enough.await {
            panic!("{error}: {} of {calls}", self.answered());
        }
    }

    /// The same for more calls than there have been.
    pub async fn more(&self, calls: u64) {
        self.until(self.answered() + calls).await;
    }

    /// Waits until no played API server has a call under way, and begins none until the result is
    /// dropped. For a machine that dies: a call that it was deciding is lost, whatever one does.
    pub async fn pause(&self) -> Vec<Pause> {
        futures::future::join_all(self.callers.iter().map(Caller::pause)).await
    }

    /// Stops, and prints how many calls were answered. Panics if one was not, or if the API server
    /// went on without the mutating webhook.
    pub async fn none_failed(mut self, during: &str) {
        self.users.shutdown().await;
        let creations = self.creations.answered();
        let failures = self.creations.failures();
        assert!(failures.is_empty(), "{} of {creations} failed: {failures:#?}", failures.len());
        let mut answered = Vec::new();
        for caller in self.callers {
            answered.push(caller.none_failed().await);
        }
        let open = fail_open(&self.client).await;
        assert!(open <= self.open, "{open} KSMScales went past the mutating webhook");
        let all: u64 = answered.iter().sum();
        println!(
            "{during}: 0 of {} calls failed ({answered:?} by callers, {creations} dry runs)",
            all + creations
        );
    }
}

/// How often the API server went on without the mutating webhook, since it was started.
async fn fail_open(client: &Client) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).expect("a request");
    let metrics = client.request_text(request).await.expect("metrics");
    let counters =
        metrics.lines().filter(|l| l.starts_with("apiserver_admission_webhook_fail_open"));
    counters.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn scales(cluster: &Cluster) -> Api<DynamicObject> {
    cluster.dynamic("monitor.example.com/v1alpha1", "KSMScale")
}

async fn create_dry(api: &Api<DynamicObject>, name: &str) -> kube::Result<()> {
    let scale = json!({
        "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
        "metadata": {"name": name}, "spec": {},
    });
    let scale = serde_json::from_value(scale).expect("a KSMScale");
    api.create(&PostParams { dry_run: true, ..PostParams::default() }, &scale).await.map(drop)
}

/// Waits until the real API server gets answers of both webhooks.
pub async fn until_called(cluster: &Cluster) {
    let api = scales(cluster);
    eventually("the API server is answered", super::SOON, || async {
        create_dry(&api, "dry").await.ok()
    })
    .await
    .expect("an answer");
}
