use super::*;
use devcluster::{SecretVolume, eventually};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use std::{
    process::Command,
    sync::{Arc, mpsc},
    thread,
};
use tempfile::TempDir;

const NAME: &str = "webhook.monitoring.svc";
const SOON: Duration = Duration::from_secs(30);

/// In the life of every certificate that [`files`] makes.
fn clock() -> Timestamp {
    "2026-01-15T00:00:00Z".parse().unwrap()
}

fn files() -> Files {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2026, 2, 1);
    Files {
        certificate: params.self_signed(&key).unwrap().pem().into(),
        key: key.serialize_pem().into(),
    }
}

fn entries(files: &Files) -> [(&str, &[u8]); 2] {
    [("tls.crt", &files.certificate), ("tls.key", &files.key)]
}

fn volume() -> (TempDir, SecretVolume) {
    let dir = tempfile::tempdir().unwrap();
    let volume = SecretVolume::new(dir.path());
    (dir, volume)
}

/// Fault 7: the swap comes after `tls.crt` was opened and before `tls.key` is, which a pipe in
/// place of `tls.crt` arranges. `removed` says whether the old folder is gone by then.
fn read_over_a_swap(removed: bool) -> (Files, Files, Files) {
    let (old, new) = (files(), files());
    let (dir, mut volume) = volume();
    volume.write(&entries(&old)).unwrap();
    let pipe = fs::canonicalize(dir.path().join("..data")).unwrap().join("tls.crt");
    fs::remove_file(&pipe).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let path = dir.path().to_owned();
    let reader = thread::spawn(move || read(&path));
    // Opening one end of a pipe takes until the other is opened.
    let (opened, writer) = mpsc::channel();
    thread::spawn(move || opened.send(fs::File::create(pipe)));
    let mut writer = writer.recv_timeout(SOON).expect("the reader opens tls.crt").unwrap();
    let folder = volume.prepare(&entries(&new)).unwrap().unwrap();
    volume.swap().unwrap();
    if removed {
        fs::remove_dir_all(folder).unwrap();
    }
    io::Write::write_all(&mut writer, &old.certificate).unwrap();
    drop(writer);
    (reader.join().unwrap().unwrap(), old, new)
}

#[test]
fn t1_a_swap_between_two_reads_does_not_mix_pairs() {
    let (found, old, _) = read_over_a_swap(false);
    assert!(found == old, "certificate and key of the folder that was current at the start");
    let (found, _, new) = read_over_a_swap(true);
    assert!(found == new, "that folder is gone, so both of the next");
}

#[test]
fn t1_a_plain_directory_is_read_too_and_a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pair = files();
    fs::write(dir.path().join("tls.crt"), &pair.certificate).unwrap();
    assert!(read(dir.path()).unwrap_err().contains("tls.key"));
    fs::write(dir.path().join("tls.key"), &pair.key).unwrap();
    assert!(read(dir.path()).unwrap() == pair);
    assert!(read(&dir.path().join("missing")).unwrap_err().contains("tls.crt"));
}

/// The loop in a task.
struct Loop {
    serving: Serving,
    readiness: Readiness,
    metrics: prometheus_client::registry::Registry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Loop {
    fn start(dir: &Path, clock: fn() -> Timestamp) -> Self {
        let (serving, readiness) = (Serving::default(), Readiness::default());
        let (metrics, stop) = (CertificateMetrics::default(), CancellationToken::new());
        let mut registry = prometheus_client::registry::Registry::default();
        metrics.register(&mut registry);
        let task = tokio::spawn(run(
            dir.to_owned(),
            NAME.to_owned(),
            serving.clone(),
            clock,
            &readiness,
            metrics,
            stop.clone(),
        ));
        Self { serving, readiness, metrics: registry, stop, task }
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let met = eventually(what, SOON, async || condition(self).then_some(())).await;
        assert!(met.is_ok(), "{met:?}; {:?}\n{}", self.readiness.check(), self.text());
    }

    async fn until_served(&self, pair: &Files) {
        let leaf = crate::certificates::pair::certificates(&pair.certificate, "leaf").unwrap();
        self.until("the pair is served", |this| {
            this.serving.current().is_some_and(|served| *served.leaf() == leaf[0])
        })
        .await;
    }

    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text
    }

    fn has_metric(&self, line: &str) -> bool {
        self.text().lines().any(|found| found == line)
    }
}

#[tokio::test]
async fn t1_every_swap_is_served_and_what_cannot_be_is_counted_and_leaves_the_process_ready() {
    let (dir, mut volume) = volume();
    let process = Loop::start(dir.path(), clock);
    assert!(process.readiness.check().is_err(), "from the call on");
    let not_ready = |words: &'static str| {
        move |this: &Loop| this.readiness.check().is_err_and(|text| text.contains(words))
    };
    process.until("it says which file is missing", not_ready("cannot read tls.crt")).await;
    for _ in 0..2 {
        let pair = files();
        volume.write(&entries(&pair)).unwrap();
        process.until_served(&pair).await;
        process.until("it is ready", |this| this.readiness.check().is_ok()).await;
    }
    let served = process.serving.current().unwrap();
    volume.write(&[("tls.crt", b"no certificate"), ("tls.key", &files().key)]).unwrap();
    let failures = "webhook_certificate_renewals_total{result=\"failure\"} 2";
    process.until("the failure is counted, once", |this| this.has_metric(failures)).await;
    assert_eq!(process.readiness.check(), Ok(()));
    assert!(Arc::ptr_eq(&served, &process.serving.current().unwrap()));
    assert!(process.has_metric("webhook_certificate_renewals_total{result=\"success\"} 2"));
    // 2026-02-01T00:00:00Z
    assert!(process.has_metric(
        "webhook_certificate_not_after_timestamp_seconds{certificate=\"leaf\"} 1769904000"
    ));

    process.stop.cancel();
    process.task.await.unwrap();
}

#[tokio::test]
async fn t1_w7_an_expired_pair_is_not_served_and_the_process_is_ready_once_it_is_renewed() {
    fn later() -> Timestamp {
        "2026-02-02T00:00:00Z".parse().unwrap()
    }
    let (dir, mut volume) = volume();
    volume.write(&entries(&files())).unwrap();
    let process = Loop::start(dir.path(), later);
    process
        .until("it says when the certificate ended", |this| {
            let text = this.readiness.check().err().unwrap_or_default();
            text.contains("2026-02-01T00:00:00Z") && text.contains("kubectl describe certificate")
        })
        .await;
    assert!(process.serving.current().is_none());

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
    params.not_after = date_time_ymd(2026, 4, 1);
    let renewed = params.self_signed(&key).unwrap().pem();
    let renewed = Files { certificate: renewed.into(), key: key.serialize_pem().into() };
    volume.write(&entries(&renewed)).unwrap();
    process.until_served(&renewed).await;
    process.until("it is ready", |this| this.readiness.check().is_ok()).await;
}

/// What is served expires while nothing else comes.
#[test]
fn w7_the_process_is_not_ready_while_what_is_served_is_not_valid() {
    let (readiness, pair) = (Readiness::default(), files());
    let mut mounted = Mounted {
        dir: "/certificates".into(),
        server_name: NAME.to_owned(),
        serving: Serving::default(),
        valid: readiness.require("a valid certificate"),
        metrics: CertificateMetrics::default(),
        reload: Reload::default(),
    };
    mounted.look(Ok(pair.clone()), clock());
    assert_eq!(readiness.check(), Ok(()));
    mounted.look(Err("cannot read tls.crt".into()), clock());
    assert_eq!(readiness.check(), Ok(()));
    mounted.look(Ok(pair.clone()), "2026-02-01T00:00:01Z".parse().unwrap());
    let text = readiness.check().unwrap_err();
    assert!(text.contains("/certificates: the certificate is valid from"), "{text}");
    mounted.look(Ok(pair), clock());
    assert_eq!(readiness.check(), Ok(()));
}
