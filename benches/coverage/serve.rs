//! What a pod runs: it serves what kube-state-metrics would for its shard, made once at the start.

use anyhow::Result;
use axum::{
    Router, extract::RawQuery, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use clap::Parser;
use hyper::body::Bytes;
use ksm_scale_operator::coverage::shard_of;
use std::{fmt::Write as _, net::IpAddr, path::PathBuf};
use tokio::net::TcpListener;

/// Stands among the arguments of such a process.
pub const FLAG: &str = "--serve-nodes-of";

/// As many as a node and a pod have in a usual cluster.
const SERIES_OF_NODE: u32 = 20;
const SERIES_OF_POD: u32 = 25;

/// Those of kube-state-metrics, as far as they matter here.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
pub struct Args {
    #[arg(long)]
    host: IpAddr,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    telemetry_host: IpAddr,
    #[arg(long)]
    telemetry_port: u16,
    #[arg(long)]
    shard: u32,
    #[arg(long)]
    total_shards: u32,
    /// A file with UID and name of each node
    #[arg(long = "serve-nodes-of")]
    nodes: PathBuf,
    /// Of all shards together
    #[arg(long)]
    series: u32,
}

pub async fn run(args: Args) -> Result<()> {
    let nodes = nodes(&args)?;
    let all = Bytes::from(nodes.clone() + &pods(&args)?);
    let nodes = Bytes::from(nodes);
    let metrics = async move |RawQuery(query): RawQuery| {
        answer(if query.is_some() { nodes.clone() } else { all.clone() })
    };
    let ok = get(async || "ok");
    let own = Bytes::from(format!(
        "kube_state_metrics_shard_ordinal{{shard_ordinal=\"{0}\"}} {0}\nkube_state_metrics_total_shards {1}\n",
        args.shard, args.total_shards
    ));
    let main = Router::new().route("/metrics", get(metrics)).route("/healthz", ok.clone());
    let telemetry =
        Router::new().route("/metrics", get(async move || answer(own))).route("/readyz", ok);
    let telemetry_at = TcpListener::bind((args.telemetry_host, args.telemetry_port)).await?;
    let main_at = TcpListener::bind((args.host, args.port)).await?;
    tokio::try_join!(axum::serve(telemetry_at, telemetry), axum::serve(main_at, main))?;
    Ok(())
}

fn answer(text: Bytes) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn file(args: &Args) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(&args.nodes)?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(uid, name)| (uid.to_owned(), name.to_owned())).collect())
}

fn nodes(args: &Args) -> Result<String> {
    let mut text = String::new();
    for (_, name) in file(args)?.iter().filter(|(uid, _)| is_mine(args, uid)) {
        writeln!(
            text,
            "kube_node_info{{node=\"{name}\",kernel_version=\"6.12.0-amd64\",os_image=\"Debian GNU/Linux 13\",container_runtime_version=\"containerd://2.1.4\",kubelet_version=\"v1.36.3\"}} 1"
        )?;
        for index in 1..SERIES_OF_NODE {
            writeln!(
                text,
                "kube_node_status_condition{{node=\"{name}\",condition=\"Condition{index}\",status=\"true\"}} 1"
            )?;
        }
    }
    Ok(text)
}

fn pods(args: &Args) -> Result<String> {
    let of_nodes = u32::try_from(file(args)?.len())? * SERIES_OF_NODE;
    let count = args.series.saturating_sub(of_nodes) / SERIES_OF_POD;
    let mut text = String::new();
    for index in 0..count {
        let uid = format!("{:08x}-0000-4000-8000-{index:012x}", index.wrapping_mul(2_654_435_761));
        if !is_mine(args, &uid) {
            continue;
        }
        let namespace = index % 100;
        for container in 0..SERIES_OF_POD {
            writeln!(
                text,
                "kube_pod_container_status_ready{{namespace=\"namespace-{namespace}\",pod=\"workload-{index}\",uid=\"{uid}\",container=\"container-{container}\"}} 1"
            )?;
        }
    }
    Ok(text)
}

fn is_mine(args: &Args, uid: &str) -> bool {
    shard_of(uid, args.total_shards) == args.shard
}
