//! Clients that have to show a certificate.

use crate::{
    certificates::Authority,
    client::{Client, Identity, tls},
    server::{DEADLINE, Webhook, options},
};
use devcluster::eventually;
use ksm_scale_operator::webhook::{Options, TlsVersion};
use std::{fs, path::Path, time::Duration};
use tempfile::NamedTempFile;

/// A file with these CAs.
fn file(authorities: &[&Authority]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    write(file.path(), authorities);
    file
}

fn write(path: &Path, authorities: &[&Authority]) {
    let pem: String = authorities.iter().map(|authority| authority.pem()).collect();
    fs::write(path, pem).unwrap();
}

fn with(file: &NamedTempFile, names: &[&str]) -> Options {
    let mut options = Options {
        client_ca: Some(file.path().to_owned()),
        client_names: names.iter().map(|&name| name.to_owned()).collect(),
        ..options()
    };
    options.limits.reload = Duration::from_millis(20);
    options
}

/// Whether a client with this identity gets a verdict.
async fn passes(webhook: &Webhook, identity: Option<Identity>, only_tls12: bool) -> bool {
    let tls = tls(&webhook.authority.der(), identity, only_tls12);
    Client::new(webhook.address, tls).allowed().await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_a_client_needs_a_certificate_by_one_of_the_cas_with_one_of_the_names() {
    let (old, new, other) = (Authority::new("old"), Authority::new("new"), Authority::new("new"));
    let both = file(&[&old, &new]);
    let webhook = Webhook::start(with(&both, &["kube-apiserver", "api.example.com"])).await;
    for (identity, expected) in [
        (None, false),
        (Some(old.issue("kube-apiserver", &[])), true),
        (Some(new.issue("kube-apiserver", &[])), true),
        (Some(new.issue("x", &["y.example.com", "api.example.com"])), true),
        (Some(other.issue("kube-apiserver", &[])), false),
        (Some(new.issue("kube-apiserver2", &["x.api.example.com"])), false),
        (Some(new.issue("", &[])), false),
    ] {
        let what = format!("{:?}", identity.as_ref().map(|(certificate, _)| certificate));
        assert_eq!(passes(&webhook, identity, false).await, expected, "{what}");
    }
    webhook.metric_becomes("tls_handshake_failures_total{reason=\"client_certificate\"}", 4).await;

    let one = file(&[&old]);
    let anyone = Webhook::start(with(&one, &[])).await;
    assert!(passes(&anyone, Some(old.issue("whoever", &[])), false).await);
    assert!(!passes(&anyone, Some(new.issue("whoever", &[])), false).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_the_oldest_tls_version_holds_with_client_certificates_and_without() {
    let ca = Authority::new("clients");
    let ca_file = file(&[&ca]);
    for oldest in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let old_passes = oldest == TlsVersion::V1_2;
        for options in [options(), with(&ca_file, &["api"])] {
            let checks = options.client_ca.is_some();
            let webhook = Webhook::start(Options { min_tls_version: oldest, ..options }).await;
            let identity = || Some(ca.issue("api", &[]));
            assert_eq!(passes(&webhook, identity(), true).await, old_passes, "{oldest:?}");
            assert!(passes(&webhook, identity(), false).await);
            assert_eq!(passes(&webhook, None, false).await, !checks, "{oldest:?}");
            assert_eq!(passes(&webhook, None, true).await, old_passes && !checks, "{oldest:?}");
            let stranger = Some(ca.issue("stranger", &[]));
            assert_eq!(passes(&webhook, stranger, true).await, old_passes && !checks);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t1_client_cas_are_rotated_without_a_restart_and_without_a_lost_call() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let ca_file = file(&[&old]);
    let webhook = Webhook::start(with(&ca_file, &[])).await;
    let with_old = Client::new(
        webhook.address,
        tls(&webhook.authority.der(), Some(old.issue("a", &[])), false),
    );
    with_old.allowed().await.unwrap();
    assert!(!passes(&webhook, Some(new.issue("a", &[])), false).await);

    // A damaged file changes nothing, and is told once.
    fs::write(ca_file.path(), "-----BEGIN CERTIFICATE-----\nno\n").unwrap();
    webhook.metric_becomes("client_ca_reloads_total{result=\"failure\"}", 1).await;
    with_old.allowed().await.unwrap();

    // The file is not replaced at once, so more than one change may be seen.
    write(ca_file.path(), &[&old, &new]);
    let reloads = "client_ca_reloads_total{result=\"success\"}";
    let taken_up =
        || async { passes(&webhook, Some(new.issue("a", &[])), false).await.then_some(()) };
    eventually("both CAs are accepted", DEADLINE, taken_up).await.unwrap();
    with_old.allowed().await.unwrap();
    assert_ne!(webhook.metric(reloads), 0);

    write(ca_file.path(), &[&new]);
    // Also on the connection that is open.
    eventually("the old CA is refused", DEADLINE, || async { with_old.allowed().await.err() })
        .await
        .unwrap();
    assert!(passes(&webhook, Some(new.issue("a", &[])), false).await);
}
