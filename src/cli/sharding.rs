//! The flags by which replicas share their work.

use super::run::duration;
use crate::{
    certificates::pair::provider,
    names::{OPERATOR, OPERATOR_NAMESPACE},
};
use anyhow::Context as _;
use clap::Args;
use kube::Config;
use lease_sharding::{
    Builder, Pod, Sharding,
    hash::KeyHash,
    keys::Keyspace,
    placement::{Load, Placement},
    protocol::{Millis, Timing, TimingConfig},
};
use std::time::Duration;

/// How replicas share their work.
#[derive(Debug, Args)]
pub(super) struct ShardingArgs {
    /// The name by which replicas find each other: the prefix of their Leases' names, and the value
    /// of the label lease-sharding/ring.
    #[arg(long = "sharding-ring", env = "KSM_SHARDING_RING", value_name = "NAME", default_value = OPERATOR)]
    ring: String,
    /// For how long a replica's Lease has to stay unchanged before others take its work: the gap
    /// that a crash leaves. In whole seconds.
    #[arg(long = "sharding-lease-duration", env = "KSM_SHARDING_LEASE_DURATION", value_name = "DURATION", value_parser = duration, default_value = "15s")]
    lease: Duration,
    /// For how long after its last renewal a replica goes on working. At most nine tenths of the
    /// lease duration, since clocks are allowed to be wrong by 5 %.
    #[arg(long = "sharding-renew-deadline", env = "KSM_SHARDING_RENEW_DEADLINE", value_name = "DURATION", value_parser = duration, default_value = "10s")]
    fence: Duration,
    /// How often a replica renews its Lease. Less than half of the renew deadline.
    #[arg(long = "sharding-renew-interval", env = "KSM_SHARDING_RENEW_INTERVAL", value_name = "DURATION", value_parser = duration, default_value = "3s")]
    renew: Duration,
    /// Into how many parts the work is divided. It can be changed in a rolling update: the old
    /// replicas do all work until the last of them has left.
    #[arg(long = "sharding-partitions", env = "KSM_SHARDING_PARTITIONS", value_name = "NUMBER", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    partitions: u32,
    /// In a rolling update, the most that a new replica takes over while there are still old ones,
    /// in percent of an equal share.
    #[arg(long = "sharding-load", env = "KSM_SHARDING_LOAD", value_name = "PERCENT", default_value_t = 125, value_parser = clap::value_parser!(u32).range(100..))]
    load: u32,
    /// This replica's pod: its own at any time, and the owner in a KSMScale's status. Without one
    /// it is the host's name and a random number.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// The namespace of the Leases.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = OPERATOR_NAMESPACE)]
    pod_namespace: String,
    /// The pod's UID. By it a restarted container goes on at once; without one it waits until its
    /// predecessor's Lease has ended.
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pod_uid: Option<String>,
    /// The pod's label pod-template-hash, by which a rolling update moves everything once.
    #[arg(long, env = "POD_TEMPLATE_HASH", value_name = "HASH", default_value = "")]
    pod_template_hash: String,
}

impl ShardingArgs {
    /// The pod that this process runs in.
    pub(super) fn pod(&self) -> Pod {
        let random = random();
        let name = || format!("{}-{random:08x}", host_name());
        Pod {
            name: self.pod_name.clone().unwrap_or_else(name),
            namespace: self.pod_namespace.clone(),
            uid: self.pod_uid.clone().unwrap_or_else(|| format!("{random:08x}")),
        }
    }

    /// What the member is to be.
    pub(super) fn builder(&self, config: Config, pod: Pod) -> anyhow::Result<Builder> {
        let timing = timing(self.lease, self.fence, self.renew);
        Timing::try_from(timing).context("--sharding-lease-duration (lease), --sharding-renew-deadline (fence) and --sharding-renew-interval (renew) do not fit together")?;
        Ok(Sharding::builder(config, &self.ring, pod)
            .timing(timing)
            .keyspace(Keyspace::new(KeyHash::default(), self.partitions))
            .placement(Placement::Sticky(Load::percent(self.load)))
            .template(&self.pod_template_hash))
    }
}

/// The times that follow from three. A renewal may take as long as until the next, and a write three
/// quarters of what is left of the deadline after a renewal that failed.
fn timing(lease: Duration, fence: Duration, renew: Duration) -> TimingConfig {
    let [lease, fence, renew] = [lease, fence, renew].map(millis);
    TimingConfig {
        lease,
        fence,
        renew,
        retry: renew.div_ceil(3),
        renew_timeout: renew,
        write_timeout: fence.saturating_sub(renew.saturating_mul(2)) / 4 * 3,
        ..TimingConfig::DEFAULT
    }
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

/// The host's name as a part of a Lease's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.trim().chars().map(safe).take(40).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { OPERATOR.to_owned() } else { name.to_owned() }
}

/// Tells processes apart to whom nobody gave a name.
fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness TLS does not work either.
    let _ = provider().secure_random.fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        sharding: ShardingArgs,
    }

    fn builder(flags: &[&str]) -> anyhow::Result<Builder> {
        let flags = Flags::parse_from(["run"].iter().chain(flags));
        let config = Config::new(http::Uri::from_static("http://localhost"));
        flags.sharding.builder(config, flags.sharding.pod())
    }

    #[test]
    fn s1_three_times_give_the_profiles_of_the_crate() {
        let [second, minute] = [1, 60].map(Duration::from_secs);
        assert_eq!(timing(15 * second, 10 * second, 3 * second), TimingConfig::DEFAULT);
        let fast = timing(6 * second, 4 * second, second);
        assert_eq!(TimingConfig { retry: 300, ..fast }, TimingConfig::FAST);
        assert!(Timing::try_from(timing(minute, 50 * second, 10 * second)).is_ok());
    }

    #[test]
    fn s6_times_that_could_give_two_owners_are_refused_with_the_inequality_and_the_flags() {
        assert!(builder(&[]).is_ok());
        for (flag, inequality) in [
            ("--sharding-renew-deadline=14s", "fence * (1 + clock error) <= lease"),
            ("--sharding-renew-interval=5s", "renew + renew_timeout < fence"),
            ("--sharding-lease-duration=14500ms", "lease mod 1 s = 0"),
            ("--sharding-renew-interval=0s", "renew > 0"),
        ] {
            let error = format!("{:#}", builder(&[flag]).unwrap_err());
            assert!(error.contains(inequality) && error.contains("--sharding-renew"), "{error}");
        }
    }

    #[test]
    fn s1_processes_without_a_pod_have_names_of_their_own_that_a_lease_can_have() {
        let pods = [(); 2].map(|()| Flags::parse_from(["run"]).sharding.pod());
        assert_ne!(pods[0].name, pods[1].name);
        for pod in pods {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(pod.name.chars().all(fits) && !pod.name.starts_with('-'), "{pod:?}");
            assert_eq!(pod.namespace, "monitoring");
        }
    }
}
