//! The certificate that is served. Whoever renews it swaps it here; the next handshake presents
//! the new one, and open connections stay open.

use crate::certificates::Pair;
use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// The certificate that is served now. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Serving(Arc<ArcSwapOption<Pair>>);

impl Serving {
    /// Serves `pair` from the next handshake on. There is no way back to none.
    pub fn swap(&self, pair: Pair) {
        self.0.store(Some(Arc::new(pair)));
    }

    /// What is served; `None` until the first [`Serving::swap`].
    #[must_use]
    pub fn current(&self) -> Option<Arc<Pair>> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().as_ref()?.certified.clone())
    }
}
