//! Members on a real API server: what they cost at rest, and for how long nobody owns what a
//! member had that is killed or asked to end.
//!
//! Killed are processes of this program; who takes over are members in this process. Requests and
//! watch events are those that the API server counted.

use anyhow::{Context as _, Result, bail, ensure};
use devcluster::{ControlPlane, Level, Process, Signal, eventually};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lease_sharding::{End, Pod, Sharding, keys::Key, protocol::TimingConfig};
use std::{
    hint::black_box,
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

const NAMESPACE: &str = "work";
const SOON: Duration = Duration::from_mins(2);
/// How long members are watched at rest.
const REST: Duration = Duration::from_secs(30);
const KEYS: u32 = 200;
const GUARDS: u32 = 20_000;

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, kubeconfig, ring, name] = &arguments[..]
        && role == "member"
    {
        return member(Path::new(kubeconfig), ring, name).await;
    }
    let plane = ControlPlane::start(Level::ApiServer).await?;
    let namespaces: Api<Namespace> = Api::all(plane.admin());
    let namespace = serde_json::from_value(serde_json::json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    for count in [3, 10, 50] {
        rest(&plane, count).await?;
    }
    for (ring, killed, ended) in [("default", 5, 20), ("fast", 10, 20)] {
        gaps(&plane, ring, killed, true).await?;
        gaps(&plane, ring, ended, false).await?;
    }
    Ok(())
}

/// The times of a ring, by its name.
fn timing(ring: &str) -> TimingConfig {
    if ring == "fast" { TimingConfig::FAST } else { TimingConfig::DEFAULT }
}

async fn join(kubeconfig: &Path, ring: &str, name: &str) -> Result<Sharding> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let pod = Pod { name: name.into(), namespace: NAMESPACE.into(), uid: name.into() };
    Ok(Sharding::builder(config, ring, pod).timing(timing(ring)).join().await?)
}

/// A process that is a member until it is asked to end.
async fn member(kubeconfig: &Path, ring: &str, name: &str) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let sharding = join(kubeconfig, ring, name).await?;
    terminate.recv().await;
    ensure!(sharding.leave().await == End::Left, "it did not leave");
    Ok(())
}

fn keys() -> impl Iterator<Item = Key> {
    (0..KEYS).map(|number| Key::new("apps", "Deployment", "default", &format!("name-{number}")))
}

/// Whether each key is owned by exactly one of all members.
fn shared(members: &[Sharding]) -> bool {
    keys().all(|key| members.iter().filter(|m| m.guard(&key).is_some()).count() == 1)
}

/// Writes of Leases, and events sent to watches of Leases, since the API server started.
async fn counted(client: &Client) -> Result<[f64; 2]> {
    let text = client.request_text(http::Request::get("/metrics").body(vec![])?).await?;
    let sum = |metric: &str, labels: [&str; 2]| -> Result<f64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(metric));
        let of_leases = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        let values =
            of_leases.map(|line| Ok(line.rsplit(' ').next().unwrap_or("").parse::<f64>()?));
        let values: Vec<f64> = values.collect::<Result<_>>()?;
        ensure!(!values.is_empty(), "the API server does not count {metric}");
        Ok(values.iter().sum())
    };
    let leases = "resource=\"leases\"";
    Ok([
        sum("apiserver_request_total{", [leases, "verb=\"PATCH\""])?,
        sum("apiserver_watch_events_total{", [leases, ""])?,
    ])
}

async fn rest(plane: &ControlPlane, count: usize) -> Result<()> {
    let (ring, client) = (format!("rest-{count}"), plane.admin());
    let mut members = Vec::new();
    for number in 0..count {
        members.push(join(plane.kubeconfig(), &ring, &format!("member-{number}")).await?);
    }
    eventually("each key has its owner", SOON, || async { shared(&members).then_some(()) }).await?;
    // Claims that have settled are renewed and nothing else.
    tokio::time::sleep(Duration::from_millis(2 * timing(&ring).renew)).await;
    let (before, begun) = (counted(&client).await?, Instant::now());
    tokio::time::sleep(REST).await;
    let (after, seconds) = (counted(&client).await?, begun.elapsed().as_secs_f64());
    ensure!(shared(&members), "somebody lost something at rest");
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let ours = ListParams::default().labels(&format!("lease-sharding/ring={ring}"));
    for lease in leases.list(&ours).await? {
        ensure!(lease.spec.and_then(|s| s.lease_transitions) == Some(0), "somebody was buried");
    }
    let [writes, events] = [0, 1].map(|at| (after[at] - before[at]) / seconds);
    println!("{count} members at rest: {writes:.1} writes/s, {events:.1} watch events/s in all");
    if count == 3 {
        guards(&members[0])?;
    }
    for member in members {
        ensure!(member.leave().await == End::Left, "it did not leave");
    }
    Ok(())
}

/// How long it takes to be given a guard and to give it back.
fn guards(member: &Sharding) -> Result<()> {
    let mine = keys().find(|key| member.guard(key).is_some()).context("no key of its own")?;
    let other = keys().find(|key| member.guard(key).is_none()).context("no key of others")?;
    let time = |key: &Key, threads: u32| {
        let all = || {
            for _ in 0..GUARDS {
                drop(black_box(member.guard(black_box(key))));
            }
        };
        let sample = |_| {
            let begun = Instant::now();
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(all);
                }
            });
            begun.elapsed()
        };
        let fastest = (0..20).map(sample).min().unwrap_or_default();
        fastest.as_secs_f64() * 1e9 / f64::from(GUARDS)
    };
    println!(
        "a guard: {:.0} ns, {:.0} ns on each of 2 threads; where it is another's: {:.0} ns",
        time(&mine, 1),
        time(&mine, 2),
        time(&other, 1)
    );
    Ok(())
}

/// How long it takes from a signal to a process until two others own all that it owned. The signals
/// come at times spread over the renewal period.
async fn gaps(plane: &ControlPlane, ring: &str, count: u32, kills: bool) -> Result<()> {
    let survivors =
        [join(plane.kubeconfig(), ring, "a").await?, join(plane.kubeconfig(), ring, "b").await?];
    let mut gaps = Vec::new();
    for number in 0..count {
        let name = format!("c-{number}");
        let program = std::env::current_exe()?;
        let kubeconfig = plane.kubeconfig().to_str().context("a path in UTF-8")?;
        let log = plane.dir().join(format!("{ring}-{name}.log"));
        let no_environment: [(&str, &str); 0] = [];
        let arguments = ["member", kubeconfig, ring, &name];
        let mut process = Process::spawn(&name, &program, arguments, no_environment, &log)?;
        let of_process = |key: &Key| survivors[0].owner(key).as_deref() == Some(&*name);
        let its = eventually("it has its share", SOON, || async {
            let its: Vec<Key> = keys().filter(of_process).collect();
            let mut rest = keys().filter(|key| !its.contains(key));
            let owned = |key: Key| survivors.iter().any(|s| s.guard(&key).is_some());
            (its.len() > KEYS as usize / 5 && rest.all(owned)).then_some(its)
        });
        let its = its.await.with_context(|| process.log_tail(20))?;
        let renew = Duration::from_millis(timing(ring).renew);
        tokio::time::sleep(renew + renew * number / count).await;
        let begun = Instant::now();
        if kills {
            process.kill()?;
        } else {
            process.signal(Signal::Term)?;
        }
        let owned = |key: &Key| survivors.iter().any(|s| s.guard(key).is_some());
        while !its.iter().all(owned) {
            if begun.elapsed() > SOON {
                bail!("nobody takes over from {name}");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gaps.push(begun.elapsed());
        if !kills {
            ensure!(process.wait().await?.success(), "{}", process.log_tail(20));
        }
    }
    gaps.sort_unstable();
    let what = if kills { "SIGKILL" } else { "SIGTERM" };
    let [least, median, most] = [0, gaps.len() / 2, gaps.len() - 1].map(|at| gaps[at].as_millis());
    println!(
        "{what}, {ring} profile, {count} times: {least} ms at least, median {median} ms, at most {most} ms"
    );
    for survivor in survivors {
        ensure!(survivor.leave().await == End::Left, "it did not leave");
    }
    Ok(())
}
