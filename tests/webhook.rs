//! The webhooks' server, as clients see it over TLS. Needs no cluster.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "webhook/apiserver.rs"]
mod apiserver;
#[path = "webhook/certificates.rs"]
mod certificates;
#[path = "webhook/client.rs"]
mod client;
#[path = "webhook/clients.rs"]
mod clients;
#[path = "webhook/requests.rs"]
mod requests;
#[path = "webhook/rollouts.rs"]
mod rollouts;
#[path = "webhook/server.rs"]
mod server;
#[path = "webhook/slow.rs"]
mod slow;
