//! Ports nobody listens on.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below the range the kernel takes the ports of outgoing connections from, and those of servers that
/// ask for any, so that a port stays free while an API server is down, or not up yet.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// Ports that this process has looked at. Whoever was given one may not listen yet, so it seems free.
static SEEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Ports that may be free, none of them twice in this process.
pub(crate) fn candidates() -> impl Iterator<Item = u16> {
    let random = RandomState::new();
    let span = u64::from(RANGE.end - RANGE.start);
    let any =
        move |n: u32| RANGE.start + u16::try_from(random.hash_one(n) % span).unwrap_or_default();
    let is_new = |port: &u16| SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(*port);
    (0..1000_u32).map(any).filter(is_new)
}

/// `N` different free ports. Another process may take one before it is used: whoever starts a
/// server must be ready to try again.
pub(super) fn free<const N: usize>() -> io::Result<[u16; N]> {
    let mut ports = [0; N];
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    let mut candidates = candidates();
    for port in &mut ports {
        *port = loop {
            let Some(candidate) = candidates.next() else { return Err(error) };
            match TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)) {
                Ok(_) => break candidate,
                Err(failure) => error = failure,
            }
        };
    }
    Ok(ports)
}
