//! A reverse proxy in front of the API server that fails requests on demand.

mod forward;
mod rules;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::ControlPlane;
use rules::{Rule, Shared};

pub use rules::{Fault, SeenRequest};

/// Speaks plain HTTP on a port of 127.0.0.1 and forwards every request to the API server as it is,
/// the `Authorization` header included; watches stream through. Lets everything pass until told
/// otherwise, and can be told at any time.
///
/// When the API server is down, the client's connection is closed, as if it had been its own. The
/// proxy ends when this value is dropped, with every connection through it.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy in front of `plane`'s API server, whose restarts it outlives.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        Self::in_front_of(&plane.server_url(), plane.ca_path()).await
    }

    /// Starts a proxy in front of the server at `url`, whose certificate the CA in the PEM file
    /// `ca` has signed.
    pub async fn in_front_of(url: &str, ca: &Path) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::new(url.parse().context("the server's URL")?);
        config.root_cert_file = Some(ca.to_owned());
        // Every failure must reach the client behind the proxy, and at once.
        config.default_retry = false;
        config.write_timeout = None;
        let server = Client::try_from(config)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(forward::serve(listener, server, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// The proxy's URL, for [`ControlPlane::service_account_kubeconfig_via`].
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on lets `n` counted requests through to their answers, and then closes the
    /// connection of every further one without forwarding it. Replaces an earlier cut; both counts
    /// begin again at zero.
    ///
    /// Counted are the requests that change something ([`SeenRequest::mutating`]), without Events
    /// and Leases unless [`FaultProxy::count_events`] and [`FaultProxy::count_leases`] say so; what
    /// is not counted is never cut.
    pub fn cut_after_mutations(&self, n: usize) {
        self.shared.lock().set_cut(Some(n));
        self.shared.changed();
    }

    /// Whether requests for Events count as changes. They do not unless told so.
    pub fn count_events(&self, count: bool) {
        self.shared.lock().count_events = count;
    }

    /// Whether requests for Leases count as changes. They do not unless told so: a leader renews
    /// its Lease for ever.
    pub fn count_leases(&self, count: bool) {
        self.shared.lock().count_leases = count;
    }

    /// How many counted requests the API server has answered since the last cut was set, refusals
    /// by the server (conflicts, for example) included.
    pub fn mutations(&self) -> usize {
        self.shared.lock().answered
    }

    /// How many counted requests the cut has refused.
    pub fn refused(&self) -> usize {
        self.shared.lock().refused
    }

    /// Waits until the last request before the cut has been answered by the API server. The answer
    /// may not have reached the client yet. Never returns without a cut.
    pub async fn cut_reached(&self) {
        self.shared.wait_until(|state| state.cut.is_some_and(|n| state.answered >= n)).await;
    }

    /// Waits until the cut has refused a request: whoever is behind the proxy has not only made
    /// its last change but tried to go on. Never returns without a cut.
    pub async fn first_refusal(&self) {
        self.shared.wait_until(|state| state.refused > 0).await;
    }

    /// From now on fails every request that `matcher` selects. Where several rules apply, the
    /// oldest wins; rules come before the cut, and what they fail is neither counted nor forwarded
    /// (but see [`Fault::LoseAnswer`]).
    pub fn fail(
        &self,
        matcher: impl Fn(&SeenRequest) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        self.fail_times(usize::MAX, matcher, fault);
    }

    /// As [`FaultProxy::fail`], for the next `times` requests that the rule applies to.
    pub fn fail_times(
        &self,
        times: usize,
        matcher: impl Fn(&SeenRequest) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        self.shared.lock().rules.push(Rule { matcher: Box::new(matcher), fault, times });
    }

    /// How many times rules of [`FaultProxy::fail_times`] still wait for a request to fail.
    pub fn unmet(&self) -> usize {
        let state = self.shared.lock();
        state.rules.iter().map(|rule| rule.times).filter(|&times| times < usize::MAX).sum()
    }

    /// Breaks every watch under way, in the middle of the stream. New ones are let through.
    pub fn cut_watches(&self) {
        self.shared.watch_cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Closes the connection of every request that hangs by [`Fault::Hang`]. New ones hang as before.
    pub fn end_hanging(&self) {
        self.shared.hang_ends.send_modify(|ends| *ends += 1);
    }

    /// Lets everything pass again: no cut, no rules. The counts and the log stay. Requests that
    /// hang by [`Fault::Hang`] go on hanging.
    pub fn clear(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.cut = None;
    }

    /// Every request since the start or the last [`FaultProxy::reset_log`], in the order of
    /// arrival, including those that were failed.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.shared.lock().log.clone()
    }

    /// Empties the log.
    pub fn reset_log(&self) {
        self.shared.lock().log.clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
