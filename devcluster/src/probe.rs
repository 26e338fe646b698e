//! Asking a process of this machine how it is.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::control_plane::ports;

/// An address of 127.0.0.1 with a port that nobody listens on, and that nobody else in this process
/// was given. Another process may take it before it is used.
pub async fn free_address() -> Result<String> {
    for port in ports::candidates() {
        // An error is most likely somebody who listens there.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    bail!("no port of 127.0.0.1 is free")
}

/// Status code and body of a GET of `path` from the HTTP server at `address`.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(address).await.with_context(|| format!("nobody at {address}"))?;
    // HTTP/1.0, so that the body ends with the connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the answer has no status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn an_address_is_given_once_although_nobody_listens_there_yet() {
        let mut given = BTreeSet::new();
        for _ in 0..2_000 {
            assert!(given.insert(free_address().await.unwrap()), "{} were given", given.len());
        }
    }
}
