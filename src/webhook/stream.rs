//! The bytes of a connection, with what its watch over time needs to know.

use super::connections::{Connection, Phase};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// rustls reads 4 KiB at a time, of which each would be a system call.
pub(super) type Tls = TlsStream<BufReader<TcpStream>>;

/// A TLS stream that tells its [`Connection`] when something arrives, and that is closed in two
/// steps: our end first, and all of it when the client has closed its own. If a socket is closed
/// while something unread waits in it, as the rest of a body that is too large, the client gets a
/// reset, which may destroy the answer on its way.
pub(super) struct Stream {
    tls: Tls,
    connection: Arc<Connection>,
    our_end: OurEnd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OurEnd {
    Open,
    Closing,
    Closed,
}

impl Stream {
    pub(super) fn new(tls: Tls, connection: Arc<Connection>) -> Self {
        Self { tls, connection, our_end: OurEnd::Open }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tls).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.connection.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    /// Waits for the client, who may take its time: bounded by the phase it enters.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.our_end == OurEnd::Open {
            self.connection.enter(Phase::Closing);
            self.our_end = OurEnd::Closing;
        }
        if self.our_end == OurEnd::Closing {
            ready!(Pin::new(&mut self.tls).poll_shutdown(cx))?;
            self.our_end = OurEnd::Closed;
        }
        let mut unread = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut unread);
            // Past TLS: nobody wants to know what it says.
            ready!(Pin::new(self.tls.get_mut().0).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
