//! The flags of the webhooks' server.

use super::run::{clients, duration};
use crate::{
    admission::{Knowledge, Need},
    allowed::Allowed,
    certificates::rotation::Lifetimes,
    controller::View,
    membership::Membership,
    names::webhook_server_name,
    readiness::Readiness,
    server::BindAddress,
    telemetry::certificate_metrics::CertificateMetrics,
    webhook::{
        self, KnowledgeOf, Limits, Options, SelfManaged, Server, Serving, TlsVersion, mounted,
        trust,
    },
};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use kube::Config;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What to look at if the API server does not trust a mounted certificate.
const REMEDY: &str = "with cert-manager, see that its cainjector runs and that both webhook configurations carry cert-manager.io/inject-ca-from";

/// Whether webhooks are served, and with whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// With a certificate of the operator's own CA, which it renews; nothing else is needed.
    SelfManaged,
    /// With the certificate in --webhook-cert-dir, such as cert-manager's.
    Mounted,
    /// Not at all, for clusters in which admission policies say the same.
    Off,
}

/// How the webhooks are served.
#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// Whether webhooks are served, and with whose certificate.
    #[arg(
        long = "webhook",
        env = "KSM_WEBHOOK",
        value_enum,
        value_name = "MODE",
        default_value = "self-managed"
    )]
    mode: Mode,
    /// The folder with tls.crt and tls.key for --webhook=mounted. Changes are taken up.
    #[arg(
        long = "webhook-cert-dir",
        env = "KSM_WEBHOOK_CERT_DIR",
        value_name = "FOLDER",
        default_value = "/etc/ksm-scale-operator/webhook"
    )]
    cert_dir: PathBuf,
    /// How long the CA of --webhook=self-managed lives. Another follows it in its last third.
    #[arg(long = "webhook-ca-lifetime", env = "KSM_WEBHOOK_CA_LIFETIME", value_name = "DURATION", value_parser = duration, default_value = "8760h")]
    ca_lifetime: Duration,
    /// How long a certificate of that CA lives. It is renewed after half of it.
    #[arg(long = "webhook-cert-lifetime", env = "KSM_WEBHOOK_CERT_LIFETIME", value_name = "DURATION", value_parser = duration, default_value = "168h")]
    cert_lifetime: Duration,
    /// How long a new CA is trusted before it signs: longer than an API server lags behind.
    #[arg(long = "webhook-ca-soak", env = "KSM_WEBHOOK_CA_SOAK", value_name = "DURATION", value_parser = duration, default_value = "2m")]
    ca_soak: Duration,
    /// Where to serve the admission webhooks: host:port, or :port for every address.
    #[arg(
        long = "webhook-bind-address",
        env = "KSM_WEBHOOK_BIND_ADDRESS",
        value_name = "ADDRESS",
        default_value = ":10250"
    )]
    bind_address: BindAddress,
    /// The oldest version of TLS to speak with the API server.
    #[arg(
        long = "webhook-min-tls-version",
        env = "KSM_WEBHOOK_MIN_TLS_VERSION",
        value_enum,
        default_value = "1.3"
    )]
    min_tls_version: TlsVersion,
    /// A PEM file with the CAs of clients. With it, a client has to present a certificate. Changes
    /// of the file are taken up.
    #[arg(long = "webhook-client-ca", env = "KSM_WEBHOOK_CLIENT_CA", value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Which clients may connect, by common name or DNS name in their certificate. Without it all
    /// whom the CAs vouch for.
    #[arg(
        long = "webhook-client-names",
        env = "KSM_WEBHOOK_CLIENT_NAMES",
        value_name = "NAME,…",
        value_delimiter = ',',
        requires = "client_ca"
    )]
    client_names: Vec<String>,
    /// How long to go on serving after SIGTERM, while the cluster hears that the pod is leaving.
    /// terminationGracePeriodSeconds has to be at least 15 s more.
    #[arg(long, env = "KSM_LAME_DUCK", value_name = "DURATION", value_parser = duration, default_value = "15s")]
    lame_duck: Duration,
}

/// What the webhook needs of the rest of the process.
pub(super) struct Surroundings<'a> {
    pub(super) config: Config,
    pub(super) view: View,
    pub(super) membership: Membership,
    pub(super) allowed: Allowed,
    pub(super) clock: fn() -> Timestamp,
    pub(super) readiness: &'a Readiness,
    pub(super) metrics: webhook::Metrics,
    pub(super) certificates: CertificateMetrics,
    /// Cancelled when the process begins to end.
    pub(super) drain: CancellationToken,
    /// Cancelled when nothing but the webhook is left of it.
    pub(super) stop: CancellationToken,
}

/// How the webhook ended; nothing comes if its thread panicked.
pub(super) type Ended = oneshot::Receiver<anyhow::Result<()>>;

impl WebhookArgs {
    /// Serves the webhooks on a thread of their own, so that nothing the controller does delays an
    /// answer. `None` if they are not to be served.
    pub(super) fn start(self, around: Surroundings<'_>) -> anyhow::Result<Option<Ended>> {
        if self.mode == Mode::Off {
            return Ok(None);
        }
        let lifetimes = Lifetimes::new(self.ca_lifetime, self.cert_lifetime, self.ca_soak)
            .context("--webhook-ca-lifetime, --webhook-cert-lifetime and --webhook-ca-soak do not fit together")?;
        let Surroundings { config, view, membership, allowed, clock, drain, stop, .. } = around;
        // Until this is met, what the certificates require has been added.
        let ready = around.readiness.require("the webhook's server");
        let (readiness, metrics) = (around.readiness.clone(), around.metrics);
        let certificates = around.certificates;
        let serve = async move {
            let address = self.bind_address;
            let listener = address.bind().context("cannot listen on --webhook-bind-address")?;
            // Connections belong to the runtime that they were made on.
            let clients = clients(config)?;
            let serving = Serving::default();
            let listening = Server {
                serving: serving.clone(),
                options: self.options(),
                knowledge: knowledge(view),
                allowed,
                client: clients.calls.clone(),
                metrics,
            };
            let part = SelfManaged {
                calls: clients.calls,
                watches: clients.watches,
                membership,
                serving,
                lifetimes,
                clock,
                metrics: certificates,
            };
            tokio::select! {
                biased;
                () = self.certificates(part, &readiness) => Ok(()),
                served = listening.serve(listener, ready, drain, stop) => Ok(served?),
            }
        };
        Ok(Some(webhook::spawn(serve).context("cannot start the webhook's thread")?))
    }

    /// Keeps a certificate in `part.serving`, for ever.
    async fn certificates(&self, part: SelfManaged, readiness: &Readiness) {
        let never = CancellationToken::new();
        if self.mode == Mode::SelfManaged {
            return part.run(readiness, never).await;
        }
        let SelfManaged { watches, serving, clock, metrics, .. } = part;
        let (dir, name) = (self.cert_dir.clone(), webhook_server_name());
        tokio::join!(
            mounted::run(
                dir,
                name,
                serving.clone(),
                clock,
                readiness,
                metrics.clone(),
                never.clone()
            ),
            trust::run(watches, serving, REMEDY, clock, readiness, metrics, never),
        );
    }

    /// What the flags say, for [`crate::webhook::Server`].
    fn options(&self) -> Options {
        Options {
            min_tls_version: self.min_tls_version,
            client_ca: self.client_ca.clone(),
            client_names: self.client_names.clone(),
            lame_duck: self.lame_duck,
            limits: Limits::default(),
        }
    }
}

/// What the watches know, as requests are answered from it.
fn knowledge(view: View) -> KnowledgeOf {
    Arc::new(move |need| {
        let knowledge = || match need {
            Need::Pods { uid } => Knowledge { pods: view.pods_of(uid), ..Knowledge::default() },
            Need::Surroundings { name } => {
                let (others, other) = view.others(name);
                Knowledge { nodes: view.nodes(), others, other, ..Knowledge::default() }
            }
        };
        view.is_complete().then(knowledge)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        webhook: WebhookArgs,
    }

    /// What the help of `--lame-duck` promises of the Deployment.
    #[test]
    fn o4_w7_the_grace_period_is_long_enough_for_the_lame_duck_and_what_is_under_way() {
        let text = include_str!("../../deploy/base/deployment.yaml");
        let deployment: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
        let grace = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        let grace = Duration::from_secs(grace.as_u64().expect("a number"));
        let Flags { webhook } = Flags::parse_from(["run"]);
        assert!(grace >= webhook.lame_duck + Duration::from_secs(15), "{grace:?}");
    }

    #[test]
    fn o1_the_webhooks_flags_have_safe_defaults_and_refuse_half_a_setting() {
        let Flags { webhook } = Flags::parse_from(["run"]);
        assert_eq!(webhook.bind_address, BindAddress::AnyHost(10250));
        let options = webhook.options();
        assert_eq!(options.min_tls_version, TlsVersion::V1_3);
        assert_eq!(options.client_ca, None);
        assert_eq!(options.lame_duck, Duration::from_secs(15));

        let all = ["run", "--webhook-client-ca=ca.pem", "--webhook-client-names=a,b"];
        let all = all.into_iter().chain(["--webhook-min-tls-version=1.2"]);
        let options = Flags::parse_from(all).webhook.options();
        assert_eq!(options.client_names, ["a", "b"]);
        assert_eq!(options.min_tls_version, TlsVersion::V1_2);

        let names_alone = Flags::try_parse_from(["run", "--webhook-client-names=a"]).unwrap_err();
        assert!(names_alone.to_string().contains("--webhook-client-ca"), "{names_alone}");
        assert!(Flags::try_parse_from(["run", "--webhook-min-tls-version=1.1"]).is_err());
    }
}
