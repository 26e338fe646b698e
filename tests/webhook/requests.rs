//! What is answered to which request.

use crate::{
    apiserver::Access,
    client::{Client, Failure, Reply, create, post, update},
    server::{DEADLINE, PANICS, Webhook, limits, options},
};
use devcluster::eventually;
use http_body_util::Full;
use hyper::{Method, Request, header};
use ksm_scale_operator::names::{MUTATE_PATH, VALIDATE_PATH};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MIB: usize = 1 << 20;

/// Code and reason of an answer that has to be a Status.
fn status(reply: &Reply) -> (u16, &str) {
    let body = &reply.body;
    assert_eq!((&body["kind"], &body["apiVersion"]), (&"Status".into(), &"v1".into()), "{body}");
    assert_eq!((&body["status"], &body["code"]), (&"Failure".into(), &reply.status.into()));
    assert!(!body["message"].as_str().unwrap().is_empty());
    (reply.status, body["reason"].as_str().unwrap())
}

fn verdict(reply: &Reply) -> bool {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body["response"]["allowed"].as_bool().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_what_is_cheap_is_checked_first() {
    let webhook = Webhook::start(limits(|limits| limits.body_bytes = 100)).await;
    let client = Client::of(&webhook);
    let request = |method, path, media_type: &str, length: usize| {
        Request::builder()
            .method::<Method>(method)
            .uri(path)
            .header(header::HOST, "webhook")
            .header(header::CONTENT_TYPE, media_type)
            .body(Full::new("x".repeat(length).into()))
            .unwrap()
    };
    // Each is wrong in all that comes after what it is refused for.
    for (method, path, media_type, length, expected) in [
        (Method::GET, "/", "text/plain", 101, (404, "NotFound")),
        (Method::GET, "/validate", "text/plain", 101, (404, "NotFound")),
        (Method::GET, VALIDATE_PATH, "text/plain", 101, (405, "MethodNotAllowed")),
        (Method::PUT, MUTATE_PATH, "text/plain", 101, (405, "MethodNotAllowed")),
        (Method::POST, VALIDATE_PATH, "text/plain", 101, (415, "UnsupportedMediaType")),
        (Method::POST, MUTATE_PATH, "", 101, (415, "UnsupportedMediaType")),
        (Method::POST, VALIDATE_PATH, "application/json", 101, (413, "RequestEntityTooLarge")),
        (Method::POST, VALIDATE_PATH, "Application/json; a=b", 100, (400, "BadRequest")),
        (Method::POST, VALIDATE_PATH, "application/json", 0, (400, "BadRequest")),
    ] {
        let what = format!("{method} {path} {media_type} {length}");
        let reply = client.send(request(method, path, media_type, length)).await.unwrap();
        assert_eq!(status(&reply), expected, "{what}");
    }
    for endpoint in ["none", "validate", "mutate"] {
        let code = [("none", 404), ("validate", 400), ("mutate", 405)];
        let code = code.iter().find(|(name, _)| *name == endpoint).unwrap().1;
        let labels = format!(
            "requests_total{{endpoint=\"{endpoint}\",operation=\"\",verdict=\"bad_request\",code=\"{code}\"}}"
        );
        assert_ne!(webhook.metric(&labels), 0, "{labels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_a_body_of_6_9_mib_is_read_and_one_of_7_1_is_not() {
    let webhook = Webhook::start(options()).await;
    let client = Client::of(&webhook);
    // The object is there twice.
    let large = update("large", (69 * MIB / 10 - 2048) / 2);
    assert!((6_800 << 10..69 * MIB / 10).contains(&large.len()), "{}", large.len());
    assert!(verdict(&client.call(&large).await.unwrap()));
    assert_eq!(webhook.metric("request_body_bytes_total"), large.len() as u64);

    let larger = update("larger", 71 * MIB / 20);
    assert!((71 * MIB / 10..72 * MIB / 10).contains(&larger.len()), "{}", larger.len());
    // Over and over: an answer must not be lost to a reset because its body was not read.
    for _ in 0..10 {
        let reply = client.send(post(VALIDATE_PATH, larger.clone())).await.unwrap();
        assert_eq!(status(&reply), (413, "RequestEntityTooLarge"));
        assert!(reply.closes);
    }
    assert_eq!(webhook.metric("request_body_bytes_total"), large.len() as u64);
}

/// The first line of the answer to `head`, with `chunk` sent again and again until it comes.
async fn first_line(client: &Client, head: &str, chunk: &[u8]) -> Result<String, Failure> {
    let mut stream = client.connect().await?;
    stream.write_all(head.as_bytes()).await?;
    let mut answer = [0; 32];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        if chunk.is_empty() {
            std::future::pending::<()>().await;
        }
        while writer.write_all(chunk).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = reader.read_exact(&mut answer) => { read?; }
        () = sending => {}
    }
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_what_is_too_large_is_refused_before_it_is_read() {
    let webhook = Webhook::start(options()).await;
    let client = Client::of(&webhook);
    let head = |rest: &str| {
        format!(
            "POST {VALIDATE_PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{rest}\r\n\r\n"
        )
    };
    let said = head(&format!("Content-Length: {}", 8 * MIB));
    let answer = tokio::time::timeout(DEADLINE, first_line(&client, &said, b""));
    assert_eq!(answer.await.unwrap().unwrap(), "HTTP/1.1 413 Payload Too Large");
    // A length that is not said is cut at the limit.
    let chunk = format!("{MIB:x}\r\n{}\r\n", "x".repeat(MIB));
    let head = head("Transfer-Encoding: chunked");
    let answer = tokio::time::timeout(DEADLINE, first_line(&client, &head, chunk.as_bytes()));
    assert_eq!(answer.await.unwrap().unwrap(), "HTTP/1.1 413 Payload Too Large");
    assert_eq!(webhook.metric("request_body_bytes_total"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_a_panic_costs_one_answer_and_not_its_connection() {
    let webhook = Webhook::start(options()).await;
    let client = Client::of(&webhook);
    let reply = client.send(post(VALIDATE_PATH, update(PANICS, 0))).await.unwrap();
    assert_eq!(status(&reply), (500, "InternalError"));
    assert!(!reply.closes && reply.retry_after.is_none());
    assert_eq!(webhook.metric("panics_total"), 1);
    client.allowed().await.unwrap();
    assert_eq!(webhook.metric("tls_handshakes_total"), 1, "on the same connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_while_the_cluster_is_not_known_the_api_server_is_asked_to_try_again() {
    let webhook = Webhook::start(options()).await;
    webhook.known.store(false, Ordering::SeqCst);
    let client = Client::of(&webhook);
    let reply = client.send(post(VALIDATE_PATH, update("a", 0))).await.unwrap();
    assert_eq!(status(&reply), (503, "ServiceUnavailable"));
    assert_eq!((reply.retry_after, reply.closes), (Some(1), true));
    // What needs no knowledge is answered.
    let reply = client.send(post(MUTATE_PATH, update("a", 0))).await.unwrap();
    assert_eq!(reply.status, 200);
    let reply = client.send(post(VALIDATE_PATH, "{}")).await.unwrap();
    assert_eq!(status(&reply), (400, "BadRequest"));

    let review = update("a", 0);
    let (reply, ()) = tokio::join!(client.call(&review), async {
        webhook.metric_becomes("retry_after_total", 2).await;
        webhook.known.store(true, Ordering::SeqCst);
    });
    assert!(verdict(&reply.unwrap()), "the same call, after its retries");
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_an_overloaded_server_says_so_at_once() {
    let webhook = Webhook::start(limits(|limits| limits.deciding = 2)).await;
    webhook.apiserver.set(Access::Hangs);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = Client::of(&webhook);
            tokio::spawn(async move { drop(client.call(&create("a")).await) })
        })
        .collect();
    webhook.metric_becomes("requests_in_flight", 2).await;
    eventually("both are being decided", DEADLINE, || async {
        (webhook.apiserver.asked() == 2).then_some(())
    })
    .await
    .unwrap();
    let client = Client::of(&webhook);
    let reply = client.send(post(VALIDATE_PATH, update("b", 0))).await.unwrap();
    assert_eq!(status(&reply), (503, "ServiceUnavailable"));
    assert_eq!((reply.retry_after, reply.closes), (Some(1), true));
    // Whoever hangs up gives the place back.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    webhook.metric_becomes("requests_in_flight", 0).await;
    client.allowed().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_large_bodies_have_a_bound_together_and_small_ones_always_pass() {
    let webhook = Webhook::start(limits(|limits| limits.held_bytes = 3 * MIB)).await;
    let client = Client::of(&webhook);
    let mut holding = client.connect().await.unwrap();
    let head = format!(
        "POST {VALIDATE_PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        3 * MIB
    );
    holding.write_all(head.as_bytes()).await.unwrap();
    holding.write_all(&vec![b' '; 2 * MIB]).await.unwrap();
    holding.flush().await.unwrap();
    // What was sent has been read when there is no room for as much again.
    let large = update("large", MIB);
    eventually("there is no room", DEADLINE, || async {
        let reply = client.send(post(VALIDATE_PATH, large.clone())).await.unwrap();
        (reply.status == 503)
            .then(|| assert_eq!((reply.retry_after, reply.closes), (Some(1), true)))
    })
    .await
    .unwrap();
    client.allowed().await.unwrap();
    drop(holding);
    assert!(verdict(&client.call(&large).await.unwrap()), "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn w5_the_requesters_rights_are_asked_each_time_and_within_the_api_servers_patience() {
    let webhook = Webhook::start(options()).await;
    let client = Client::of(&webhook);
    assert!(verdict(&client.call(&create("a")).await.unwrap()));
    webhook.apiserver.set(Access::Refused);
    assert!(!verdict(&client.call(&create("a")).await.unwrap()), "nothing is remembered");
    client.allowed().await.unwrap();
    assert_eq!(webhook.apiserver.asked(), 2, "asked only where it matters");
    assert_eq!(webhook.metric("denials_total{rule=\"requester-access\"}"), 1);

    webhook.apiserver.set(Access::Hangs);
    let path = format!("{VALIDATE_PATH}?timeout=1s");
    let begin = Instant::now();
    let reply = client.send(post(&path, create("a"))).await.unwrap();
    assert_eq!(status(&reply), (500, "InternalError"));
    // Of ten seconds if nothing is said. How much before the end is a test beside the code.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(webhook.apiserver.asked(), 3, "asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn o7_requests_and_connections_are_counted() {
    let webhook = Webhook::start(options()).await;
    let client = Client::of(&webhook);
    for _ in 0..3 {
        client.allowed().await.unwrap();
    }
    let labels = "endpoint=\"validate\",operation=\"UPDATE\",verdict=\"allowed\",code=\"200\"";
    assert_eq!(webhook.metric(&format!("requests_total{{{labels}}}")), 3);
    assert_eq!(webhook.metric("request_duration_seconds_count"), 3);
    assert_eq!(webhook.metric("tls_handshakes_total"), 1);
    assert_eq!(webhook.metric("connections"), 1);
    drop(client);
    webhook.metric_becomes("connections", 0).await;
    assert_eq!(webhook.metric("requests_in_flight"), 0);
}
