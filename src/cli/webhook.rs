//! The flags of the webhooks' server.

use super::run::duration;
use crate::{
    server::BindAddress,
    webhook::{Limits, Options, TlsVersion},
};
use clap::Args;
use std::{path::PathBuf, time::Duration};

/// How the webhooks are served.
#[derive(Debug, Args)]
pub struct Webhook {
    /// Where to serve the admission webhooks: host:port, or :port for every address.
    #[arg(
        long = "webhook-bind-address",
        env = "KSM_WEBHOOK_BIND_ADDRESS",
        value_name = "ADDRESS",
        default_value = ":10250"
    )]
    pub bind_address: BindAddress,
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

impl Webhook {
    /// What the flags say, for [`crate::webhook::Server`].
    pub fn options(&self) -> Options {
        Options {
            min_tls_version: self.min_tls_version,
            client_ca: self.client_ca.clone(),
            client_names: self.client_names.clone(),
            lame_duck: self.lame_duck,
            limits: Limits::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        webhook: Webhook,
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
