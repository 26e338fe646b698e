//! CPU and memory of the webhooks' server. Goals: 25 µs for a request over a connection that is
//! open, 200 µs for one with a connection of its own, 20 MB with 128 connections.
//!
//! The server is a process of its own. Its CPU time is the figure: rates depend on what else the
//! machine does, this client included.

#![allow(dead_code, reason = "what the bench shares with the tests is more than it needs")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]

#[path = "../tests/webhook/apiserver.rs"]
mod apiserver;
#[path = "../tests/webhook/certificates.rs"]
mod certificates;
#[path = "../tests/webhook/client.rs"]
mod client;
#[path = "../tests/webhook/server.rs"]
mod server;

use client::{Client, tls, update};
use hyper::body::Bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use server::{Webhook, options};
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// How long each figure is measured, after as long again without measuring.
const SPAN: Duration = Duration::from_secs(4);

/// With it, this program is the server.
const SERVE: &str = "serve";

#[tokio::main]
async fn main() {
    if env::args().nth(1).as_deref() == Some(SERVE) {
        return serve().await;
    }
    let typical = update("bench", 1600);
    println!(
        "webhook server: one review of {} bytes over TLS 1.3, CPU of its process",
        typical.len()
    );
    for connections in [1, 16, 128] {
        measure(&format!("{connections} connections"), &typical, connections, true).await;
    }
    measure("16 at a time, each on its own connection", &typical, 16, false).await;
    measure("100 kB, 16 connections", &update("bench", 50_000), 16, true).await;
    measure("1.4 MB, 16 connections", &update("bench", 700_000), 16, true).await;
}

/// Prints what `review` costs the server, from so many clients at once.
async fn measure(what: &str, review: &Bytes, clients: usize, keep_alive: bool) {
    let server = Server::start();
    let mut calling = JoinSet::new();
    let begin = Instant::now() + SPAN;
    let end = begin + SPAN;
    for _ in 0..clients {
        let client = Client::new(server.address, tls(&server.ca, None, false));
        let client = if keep_alive { client } else { client.without_keep_alive() };
        let review = review.clone();
        calling.spawn(async move {
            let mut calls = 0_u32;
            while Instant::now() < end {
                let reply = client.call(&review).await.unwrap();
                assert_eq!(reply.body["response"]["allowed"], true, "{}", reply.body);
                if Instant::now() > begin {
                    calls += 1;
                }
            }
            calls
        });
    }
    tokio::time::sleep(SPAN).await;
    let before = server.cpu();
    let calls: u32 = calling.join_all().await.into_iter().sum();
    let (cpu, memory) = (server.cpu().saturating_sub(before) / calls, server.peak_memory());
    println!("  {what:42} {:7.1} µs a request, at most {memory}", cpu.as_secs_f64() * 1e6);
}

/// Serves until standard input ends.
async fn serve() {
    let webhook = Webhook::start(options()).await;
    println!("{}\n{}", webhook.address, webhook.authority.pem());
    println!("END");
    let until_end = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(until_end).await.unwrap().unwrap();
}

/// The server's process, which ends with this value.
struct Server {
    child: Child,
    address: SocketAddr,
    ca: CertificateDer<'static>,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let lines: Vec<_> = lines.take_while(|line| line != "END").collect();
        let ca = CertificateDer::from_pem_slice(lines[1..].join("\n").as_bytes()).unwrap();
        Self { child, address: lines[0].parse().unwrap(), ca }
    }

    /// CPU time of all its threads since its start.
    fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanoseconds = tasks.map(|task| {
            let times = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            times.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// The most memory that it ever had, as the kernel says it.
    fn peak_memory(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}
