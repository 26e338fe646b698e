//! A Prometheus that scrapes kube-state-metrics.

mod discovery;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;
use crate::probe::{free_address, http_get};
use crate::process::Process;
use crate::tools;
use crate::wait::eventually;

const DEADLINE: Duration = Duration::from_mins(1);

/// A Prometheus of its own, which scrapes every pod of kube-state-metrics on the control plane once a
/// second, for as long as this value lives.
///
/// It discovers the pods through the API server, keeps what they say of themselves (`honor_labels`),
/// and names the shard of a pod in the label `shard`: as the shipped configuration does. A pod is
/// scraped as soon as it has an address, Ready or not, and until it is gone; Prometheus takes up to
/// five seconds to act on either.
#[derive(Debug)]
pub struct Prometheus {
    address: String,
    process: Process,
    _discovery: JoinSet<()>,
}

/// A series and its value, or its values, oldest first: each with its time in seconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// By name; the metric's is `__name__`.
    pub labels: serde_json::Map<String, Value>,
    /// Time and value.
    pub values: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts one and returns when it answers. It is looked for, or unpacked, as
    /// [`tools::prometheus`] says.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        Self::with(plane, configuration).await
    }

    /// Starts one with another configuration, which is told the file with the pods of the control
    /// plane: all ports of all, with the labels of `role: pod`, for `file_sd_configs`.
    pub async fn with(
        plane: &ControlPlane,
        configuration: impl FnOnce(&Path) -> Value,
    ) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(tools::prometheus).await??;
        let address = free_address().await?;
        let name = format!("prometheus-{}", address.replace(':', "-"));
        let dir = plane.dir().join(&name);
        fs::create_dir_all(&dir)?;
        let targets = dir.join("targets.json");
        // JSON is YAML.
        fs::write(dir.join("prometheus.yaml"), format!("{:#}", configuration(&targets)))?;
        let mut discovery = JoinSet::new();
        discovery.spawn(discovery::follow(plane.admin(), targets));
        let args = [
            format!("--config.file={}", dir.join("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address={address}"),
            "--log.level=warn".to_owned(),
        ];
        let log = plane.dir().join(format!("{name}.log"));
        let program = programs.join("prometheus");
        let process = Process::spawn(&name, program, args, [("", ""); 0], &log)?;
        let prometheus = Self { address, process, _discovery: discovery };
        let ready = eventually("Prometheus is ready", DEADLINE, || async {
            http_get(&prometheus.address, "/-/ready").await.ok().filter(|answer| answer.0 == 200)
        });
        ready.await.with_context(|| prometheus.process.log_tail(20))?;
        Ok(prometheus)
    }

    /// Where its API and its pages are.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The value of an expression now: one for each series.
    pub async fn query(&self, expression: &str) -> Result<Vec<Series>> {
        self.ask(&format!("/api/v1/query?query={}", encoded(expression))).await
    }

    /// The values of an expression over the last `time`, one for each second.
    pub async fn query_range(&self, expression: &str, time: Duration) -> Result<Vec<Series>> {
        // Its own clock, in seconds since 1970.
        let now = self.query("time()").await?;
        let end = now.first().and_then(|series| series.values.first()).context("no time")?.1;
        let (start, query) = (end - time.as_secs_f64(), encoded(expression));
        let path = format!("/api/v1/query_range?query={query}&start={start}&end={end}&step=1");
        self.ask(&path).await
    }

    /// The data that its API has at a path, such as `/api/v1/rules`.
    pub async fn data(&self, path: &str) -> Result<Value> {
        let (code, body) = http_get(&self.address, path).await?;
        let mut answer: Value = serde_json::from_str(&body)
            .with_context(|| format!("Prometheus answered {code}: {body}"))?;
        if answer["status"] != "success" {
            bail!("Prometheus answered {code}: {}", answer["error"].as_str().unwrap_or(&body));
        }
        Ok(answer["data"].take())
    }

    async fn ask(&self, path: &str) -> Result<Vec<Series>> {
        let data = self.data(path).await?;
        let result = &data["result"];
        if data["resultType"] == "scalar" {
            let values = vec![value(result).context("a scalar")?];
            return Ok(vec![Series { labels: serde_json::Map::new(), values }]);
        }
        let series = |one: &Value| {
            let several = one["values"].as_array().into_iter().flatten();
            let values = several.chain(one.get("value")).filter_map(value).collect();
            Series { labels: one["metric"].as_object().cloned().unwrap_or_default(), values }
        };
        Ok(result.as_array().into_iter().flatten().map(series).collect())
    }
}

fn value(pair: &Value) -> Option<(f64, f64)> {
    Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?))
}

fn configuration(targets: &Path) -> Value {
    json!({
        "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
        "scrape_configs": [{
            "job_name": "kube-state-metrics",
            "honor_labels": true,
            "file_sd_configs": [{ "files": [targets] }],
            "relabel_configs": [
                {
                    "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"],
                    "regex": "kube-state-metrics",
                    "action": "keep",
                },
                {
                    "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                    "regex": "http-metrics",
                    "action": "keep",
                },
                {
                    "source_labels": ["__meta_kubernetes_pod_label_shard_id"],
                    "target_label": "shard",
                },
            ],
        }],
    })
}

/// Percent-encoded, everything that may mean something.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or_default();
            encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}
