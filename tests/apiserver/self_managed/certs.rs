//! `certs` as an administrator runs it (T3).

use super::*;

/// Runs `certs` with the rights of an administrator: exit code and output.
async fn certs(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_ksm-scale-operator"))
        .arg("certs")
        .args(args)
        .env("KUBECONFIG", world.cluster.plane.kubeconfig())
        .output()
        .await
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

#[tokio::test]
async fn t3_the_doctor_tells_which_half_is_stale_and_rotate_asks_for_a_new_ca() {
    let world = World::start().await;
    let (code, text) = certs(&world, &["doctor"]).await;
    assert!(code == Some(1) && text.contains("it is not there"), "{code:?} {text}");
    let replica = world.replica().await;
    replica.until_ready().await;
    let (code, text) = certs(&world, &["doctor"]).await;
    assert!(code == Some(0) && text.lines().all(|line| line.starts_with("ok")), "{text}");
    let generation = world.state().await.expect("a state").generation;
    let (code, text) = certs(&world, &["rotate"]).await;
    assert_eq!(code, Some(0), "{text}");
    world.until("a new CA signs", |state| state.generation > generation).await;

    let server = serve(replica.serving.clone()).await;
    let (code, text) = certs(&world, &["doctor", "--connect", &server]).await;
    assert!(code == Some(0) && text.contains("served by"), "{text}");
    let (code, text) = certs(&world, &["doctor", "--connect", "127.0.0.1:1"]).await;
    assert!(code == Some(2) && text.contains("no TLS handshake"), "{text}");
    drop(replica);
    world.wipe(KINDS[1]).await;
    let (code, text) = certs(&world, &["doctor", "--connect", &server]).await;
    assert_eq!(code, Some(1), "{text}");
    let stale: Vec<_> = text.lines().filter(|line| line.starts_with("STALE")).collect();
    assert!(stale.len() == 2 && stale[0].contains(KINDS[1]), "{text}");
}

#[tokio::test]
async fn t3_the_doctor_tells_whether_mounted_files_fit_the_bundles() {
    let world = World::start().await;
    let folder = world.cluster.plane.dir().join("mounted");
    let path = folder.to_str().expect("text");
    let doctor = async || certs(&world, &["doctor", "--cert-dir", path]).await;
    let generate = async || certs(&world, &["generate", "--force", "--out", path]).await.0;
    let stale = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with("STALE"));
        lines.map(|line| line["STALE  ".len()..].to_owned()).collect::<Vec<_>>()
    };
    let (code, text) = doctor().await;
    assert!(code == Some(2) && text.contains("cannot read") && text.contains("tls.crt"), "{text}");

    assert_eq!(generate().await, Some(0));
    let (code, text) = doctor().await;
    assert!(code == Some(1) && stale(&text).iter().all(|l| l.contains("no caBundle")), "{text}");
    let ca = std::fs::read(folder.join("ca.crt")).expect("a CA");
    for kind in KINDS {
        world.set_bundle(kind, &json!(ByteString(ca.clone()))).await;
    }
    let (code, text) = doctor().await;
    assert!(code == Some(0) && text.lines().all(|line| line.starts_with("ok")), "{text}");
    world.wipe(KINDS[1]).await;
    let (code, text) = doctor().await;
    assert!(matches!(&stale(&text)[..], [one] if one.starts_with(KINDS[1])), "{code:?} {text}");

    // Another CA, which no bundle has heard of.
    assert_eq!(generate().await, Some(0));
    let (code, text) = doctor().await;
    assert!(code == Some(1) && stale(&text)[0].contains("does not verify"), "{text}");
    std::fs::write(folder.join("tls.key"), "no key").expect("written");
    let (code, text) = doctor().await;
    assert!(code == Some(1) && stale(&text)[0].starts_with("tls.crt and tls.key"), "{text}");
}

/// A TLS server that presents what is served, for any number of handshakes.
async fn serve(serving: Serving) -> String {
    let config = rustls::ServerConfig::builder_with_provider(
        ksm_scale_operator::certificates::pair::provider(),
    )
    .with_safe_default_protocol_versions()
    .expect("TLS 1.3")
    .with_no_client_auth()
    .with_cert_resolver(Arc::new(serving));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}
