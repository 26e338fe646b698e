//! Ports nobody listens on.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Below the range the kernel takes the ports of outgoing connections from, so that a port stays
/// free while an API server is down.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// `N` different free ports. Another process may take one before it is used: whoever starts a
/// server must be ready to try again.
pub(super) fn free<const N: usize>() -> io::Result<[u16; N]> {
    let mut ports = [0; N];
    // Kept open until all are found: a port must not be found twice.
    let mut listeners = Vec::with_capacity(N);
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    let random = RandomState::new();
    let mut candidates = (0..1000_u32).map(|n| {
        let span = u64::from(RANGE.end - RANGE.start);
        RANGE.start + u16::try_from(random.hash_one(n) % span).unwrap_or_default()
    });
    for port in &mut ports {
        *port = loop {
            let Some(candidate) = candidates.next() else { return Err(error) };
            match TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)) {
                Ok(listener) => {
                    listeners.push(listener);
                    break candidate;
                }
                Err(failure) => error = failure,
            }
        };
    }
    Ok(ports)
}
