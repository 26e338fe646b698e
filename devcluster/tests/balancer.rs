//! The load balancer that plays kube-proxy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use devcluster::{Balancer, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);

/// A server that answers each byte with its `name`.
async fn backend(name: u8) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read_u8().await.is_ok() {
                    stream.write_u8(name).await.unwrap();
                }
            });
        }
    });
    (address, task)
}

/// Who answers on an open connection; `None` if it was closed.
async fn ask(stream: &mut TcpStream) -> Option<char> {
    stream.write_u8(b'?').await.ok()?;
    stream.read_u8().await.ok().map(char::from)
}

/// Who answers on a new connection.
async fn ask_anew(balancer: &Balancer) -> Option<char> {
    ask(&mut TcpStream::connect(balancer.address()).await.unwrap()).await
}

#[tokio::test]
async fn new_connections_take_turns_and_open_ones_stay() {
    let balancer = Balancer::start(Duration::ZERO).await.unwrap();
    assert_eq!(ask_anew(&balancer).await, None, "nobody was added yet");
    let ((a, _), (b, _)) = (backend(b'a').await, backend(b'b').await);
    balancer.add(a);
    balancer.add(b);
    let mut open = TcpStream::connect(balancer.address()).await.unwrap();
    let first = ask(&mut open).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..4 {
        others.extend(ask_anew(&balancer).await);
        assert_eq!(ask(&mut open).await, Some(first));
    }
    assert_eq!(others.iter().filter(|&&name| name == 'a').count(), 2, "{others:?}");
    assert_eq!(balancer.chosen(a) + balancer.chosen(b), 5);

    balancer.withdraw(a);
    balancer.withdraw(b);
    assert_eq!(ask_anew(&balancer).await, None, "without a delay both are gone at once");
    assert_eq!(ask(&mut open).await, Some(first), "what is open stays open");
}

#[tokio::test]
async fn a_backend_that_was_withdrawn_is_chosen_until_the_delay_is_over() {
    let delay = Duration::from_millis(300);
    let balancer = Balancer::start(delay).await.unwrap();
    let ((a, _), (b, _)) = (backend(b'a').await, backend(b'b').await);
    balancer.add(a);
    balancer.add(b);
    balancer.withdraw(a);
    let withdrawn = tokio::time::Instant::now();
    let names = [ask_anew(&balancer).await.unwrap(), ask_anew(&balancer).await.unwrap()];
    assert!(names.contains(&'a') || withdrawn.elapsed() >= delay, "{names:?}");
    eventually("only b is chosen", DEADLINE, || async {
        let names = [ask_anew(&balancer).await, ask_anew(&balancer).await];
        (names == [Some('b'), Some('b')]).then_some(())
    })
    .await
    .unwrap();
    assert!(withdrawn.elapsed() >= delay, "{:?}", withdrawn.elapsed());

    balancer.add(a);
    let names = [ask_anew(&balancer).await, ask_anew(&balancer).await];
    assert!(names.contains(&Some('a')), "back again: {names:?}");
}

#[tokio::test]
async fn where_nobody_listens_the_connection_is_closed_and_the_others_go_on() {
    let balancer = Balancer::start(Duration::from_mins(1)).await.unwrap();
    let ((a, a_task), (b, _)) = (backend(b'a').await, backend(b'b').await);
    balancer.add(a);
    balancer.add(b);
    a_task.abort();
    // Until the listener is closed, its connections wait in the queue.
    eventually("a is gone", DEADLINE, || async { TcpStream::connect(a).await.err() })
        .await
        .unwrap();
    let mut names = [ask_anew(&balancer).await, ask_anew(&balancer).await];
    names.sort_unstable();
    assert_eq!(names, [None, Some('b')], "it knows nothing of a's health");
}
