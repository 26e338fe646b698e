//! Clients that take their time, and floods of connections.

use crate::{
    client::Client,
    server::{DEADLINE, Webhook, limits},
};
use devcluster::eventually;
use ksm_scale_operator::{names::VALIDATE_PATH, webhook::Limits};
use std::{
    cell::Cell,
    collections::VecDeque,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::sleep,
};

/// What the kernel's timer of a server's connection from `client` will do, and in how many ticks
/// (proc_net_tcp.txt of the kernel's documentation).
fn timer(client: SocketAddr) -> Option<(String, u64)> {
    let remote = format!("0100007F:{:04X}", client.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let timer = fields.filter(|fields| fields[2] == remote).map(|fields| fields[5]).next()?;
    let (what, when) = timer.split_once(':')?;
    Some((what.to_owned(), u64::from_str_radix(when, 16).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_a_silent_client_is_asked_whether_it_is_still_there() {
    let webhook = Webhook::start(limits(|_| ())).await;
    let stream = Client::of(&webhook).connect().await.unwrap();
    let client = stream.get_ref().0.local_addr().unwrap();
    eventually("keep-alive is what the timer waits for", DEADLINE, || async {
        let (what, ticks) = timer(client)?;
        (what == "02" && ticks <= 1_500).then_some(())
    })
    .await
    .unwrap();
}

/// Sends `bytes` one at a time until the other side closes, and returns what came back.
async fn trickle(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        for byte in bytes {
            if writer.write_all(&[*byte]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        // An error is a connection that was closed without a farewell.
        _ = reader.read_to_end(&mut answer) => {}
        () = sending => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The longest of many calls while `slow` goes on.
async fn longest_call(client: &Client, slow: impl Future<Output = ()>) -> Duration {
    let done = Cell::new(false);
    let calling = async {
        let mut longest = Duration::ZERO;
        while !done.get() {
            let begin = Instant::now();
            client.allowed().await.unwrap();
            longest = longest.max(begin.elapsed());
            sleep(Duration::from_millis(2)).await;
        }
        longest
    };
    let slow = async {
        slow.await;
        done.set(true);
    };
    tokio::join!(calling, slow).0
}

/// Longer than what is in a hurry takes on a busy machine.
const SHORT: Duration = Duration::from_secs(2);

fn short(limits: &mut Limits) {
    limits.handshake = SHORT;
    limits.header = SHORT;
    limits.body = SHORT;
    limits.idle = 3 * SHORT;
    limits.closing = SHORT;
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_who_sends_a_byte_at_a_time_is_cut_off_and_keeps_nobody_waiting() {
    let webhook = Webhook::start(limits(short)).await;
    let (healthy, client) = (Client::of(&webhook), Client::of(&webhook));
    let head =
        format!("POST {VALIDATE_PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
    let slow = async {
        let handshake = async {
            let begin = Instant::now();
            // The start of a ClientHello of 512 bytes.
            trickle(client.dial().await.unwrap(), &[&[22, 3, 1, 2, 0][..], &[1; 500]].concat())
                .await;
            begin.elapsed()
        };
        let header = async {
            let begin = Instant::now();
            let stream = client.connect().await.unwrap();
            let answer = trickle(stream, format!("{head}X: {}", "x".repeat(500)).as_bytes()).await;
            assert_eq!(answer, "");
            begin.elapsed()
        };
        let body = async {
            let mut stream = client.connect().await.unwrap();
            let head = format!("{head}Content-Length: 500\r\n\r\n");
            let begin = Instant::now();
            stream.write_all(head.as_bytes()).await.unwrap();
            let answer = trickle(stream, &[b' '; 500]).await;
            assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
            begin.elapsed()
        };
        let (handshake, header, body) = tokio::join!(handshake, header, body);
        for took in [handshake, header, body] {
            assert!((SHORT..DEADLINE).contains(&took), "{handshake:?} {header:?} {body:?}");
        }
    };
    let longest = longest_call(&healthy, Box::pin(slow)).await;
    assert!(longest < SHORT, "nobody waits for them: {longest:?}");
    webhook.metric_becomes("tls_handshake_failures_total{reason=\"slow\"}", 1).await;
    webhook.metric_becomes("connections_ended_total{reason=\"slow\"}", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_an_idle_connection_outlives_every_time_out_but_its_own() {
    let webhook = Webhook::start(limits(short)).await;
    let client = Client::of(&webhook);
    client.allowed().await.unwrap();
    // Opened ahead of need, as Go does it.
    let unused = client.connect().await.unwrap();
    // Longer than a handshake, a header or a body may take.
    sleep(SHORT * 5 / 4).await;
    assert_eq!(webhook.metric("connections"), 2);
    client.allowed().await.unwrap();
    assert_eq!(webhook.metric("tls_handshakes_total"), 2, "on the connection of before");
    let idle = "connections_ended_total{reason=\"idle\"}";
    webhook.metric_becomes(idle, 1).await;
    webhook.metric_becomes("connections", 0).await;
    assert_eq!(webhook.metric(idle), 2);
    drop(unused);
}

#[test]
fn w7_connections_are_kept_longer_than_the_api_server_keeps_its_ends() {
    assert!(Limits::default().idle > Duration::from_secs(90));
    assert!(Limits::default().handshake <= Duration::from_secs(10));
}

/// `timeoutSeconds` of the shipped configuration.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many files this process may open.
fn open_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_ten_thousand_idle_connections_take_up_no_more_than_the_bound() {
    let bound = Limits::default().connections;
    let most = u64::try_from(bound).unwrap();
    let webhook = Webhook::start(limits(|_| {})).await;
    let healthy = Client::of(&webhook).from([127, 0, 0, 2]);
    healthy.allowed().await.unwrap();
    let flood = Client::of(&webhook);
    let hold = 10_000.min(open_files().saturating_sub(2 * bound + 100));
    let mut sockets = VecDeque::new();
    let flooding = async {
        for _ in 0..10_000 {
            sockets.push_back(flood.dial().await.unwrap());
            if sockets.len() > hold {
                sockets.pop_front();
            }
        }
    };
    let longest = longest_call(&healthy, flooding).await;
    assert!(longest < PATIENCE, "{longest:?}");
    assert_eq!(webhook.metric("tls_handshakes_total"), 1, "its connection was not displaced");
    // One who comes now finds a place.
    let newcomer = Client::of(&webhook).from([127, 0, 0, 3]);
    newcomer.allowed().await.unwrap();
    let displaced = "connections_ended_total{reason=\"displaced\"}";
    eventually("all were accepted", DEADLINE, || async {
        (webhook.metric(displaced) >= 10_000 - most).then_some(())
    })
    .await
    .unwrap();
    eventually("no more than the bound are open", DEADLINE, || async {
        (webhook.metric("connections") <= most).then_some(())
    })
    .await
    .unwrap();
    healthy.allowed().await.unwrap();
    newcomer.allowed().await.unwrap();
    assert_eq!(webhook.metric("tls_handshakes_total"), 2);
}
