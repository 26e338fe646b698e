//! Whether the API server would accept what is served.

use super::{Pair, PairError};
use crate::names::WEBHOOK_CONFIGURATION;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};

/// A webhook and its `caBundle` (PEM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Its name in the configuration.
    pub name: String,
    /// Empty where there is none.
    pub bundle: Vec<u8>,
}

/// A webhook configuration of ours, as it is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// `MutatingWebhookConfiguration` or `ValidatingWebhookConfiguration`.
    pub kind: &'static str,
    /// Its webhooks; `None` if there is no such object.
    pub webhooks: Option<Vec<Webhook>>,
}

/// Why the API server would not accept what is served.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// Nothing is served.
    #[error("no certificate is served")]
    Nothing,
    /// Nobody calls.
    #[error(
        "there is no {kind} {WEBHOOK_CONFIGURATION} with a webhook: kubectl apply -k webhook-config/base, or webhook-config/cert-manager where cert-manager makes the certificate"
    )]
    Missing {
        /// Of the object.
        kind: &'static str,
    },
    /// The API server would trust the CAs of its own machine instead.
    #[error("{kind} {WEBHOOK_CONFIGURATION}: the webhook {webhook} has no caBundle")]
    NoBundle {
        /// Of the object.
        kind: &'static str,
        /// In it.
        webhook: String,
    },
    /// The bundle and the certificate do not belong together.
    #[error(
        "{kind} {WEBHOOK_CONFIGURATION}: the caBundle of webhook {webhook} does not verify the certificate that is served: {source}"
    )]
    Refused {
        /// Of the object.
        kind: &'static str,
        /// In it.
        webhook: String,
        /// How verifying it fails.
        source: PairError,
    },
}

/// Whether at `now` a client that trusts a webhook's `caBundle` would accept `served` as
/// `server_name`, for every webhook of every configuration.
///
/// # Errors
/// The first one that would not.
pub fn verify(
    served: Option<&Pair>,
    configurations: &[Configuration],
    server_name: &str,
    now: Timestamp,
) -> Result<(), Distrust> {
    let served = served.ok_or(Distrust::Nothing)?;
    for configuration in configurations {
        let kind = configuration.kind;
        for webhook in configuration.webhooks()? {
            let name = || webhook.name.clone();
            if webhook.bundle.is_empty() {
                return Err(Distrust::NoBundle { kind, webhook: name() });
            }
            served
                .verify(&webhook.bundle, server_name, now)
                .map_err(|source| Distrust::Refused { kind, webhook: name(), source })?;
        }
    }
    Ok(())
}

impl Configuration {
    /// The webhooks in it, of which there is one at least.
    ///
    /// # Errors
    /// What to do if there is none.
    pub fn webhooks(&self) -> Result<&[Webhook], Distrust> {
        let webhooks = self.webhooks.as_deref().filter(|webhooks| !webhooks.is_empty());
        webhooks.ok_or(Distrust::Missing { kind: self.kind })
    }
}

impl Webhook {
    fn new(name: &str, client: &WebhookClientConfig) -> Self {
        let bundle = client.ca_bundle.as_ref().map(|bundle| bundle.0.clone());
        Self { name: name.to_owned(), bundle: bundle.unwrap_or_default() }
    }
}

/// A kind of webhook configuration.
pub trait Configures {
    /// The kind.
    const KIND: &'static str;
    /// The webhooks in it.
    fn webhooks(&self) -> Vec<Webhook>;
}

impl Configures for MutatingWebhookConfiguration {
    const KIND: &'static str = "MutatingWebhookConfiguration";
    fn webhooks(&self) -> Vec<Webhook> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| Webhook::new(&webhook.name, &webhook.client_config)).collect()
    }
}

impl Configures for ValidatingWebhookConfiguration {
    const KIND: &'static str = "ValidatingWebhookConfiguration";
    fn webhooks(&self) -> Vec<Webhook> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| Webhook::new(&webhook.name, &webhook.client_config)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use serde_json::json;

    const NAME: &str = "webhook.monitoring.svc";

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Issuer {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn pair(by: &Issuer) -> Pair {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([NAME.to_owned()]).unwrap().signed_by(&key, by).unwrap();
        Pair::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn live(bundles: [&str; 2]) -> [Configuration; 2] {
        let webhook = |name: &str, bundle: &str| Webhook {
            name: name.to_owned(),
            bundle: bundle.as_bytes().to_vec(),
        };
        [
            Configuration {
                kind: MutatingWebhookConfiguration::KIND,
                webhooks: Some(vec![webhook("mutate", bundles[0])]),
            },
            Configuration {
                kind: ValidatingWebhookConfiguration::KIND,
                webhooks: Some(vec![webhook("validate", bundles[1])]),
            },
        ]
    }

    #[test]
    fn w7_what_is_served_is_trusted_only_if_every_live_bundle_verifies_it() {
        let now = "2026-01-15T00:00:00Z".parse().unwrap();
        let (old, new) = (authority(), authority());
        let (old_pem, new_pem) = (old.pem(), new.pem());
        let both = format!("{old_pem}{new_pem}");
        let told = |served: Option<&Pair>, live: &[Configuration]| {
            verify(served, live, NAME, now).map_err(|distrust| distrust.to_string())
        };
        let served = pair(&old);
        for bundles in [[&old_pem, &old_pem], [&both, &old_pem], [&both, &both]] {
            assert_eq!(told(Some(&served), &live(bundles.map(String::as_str))), Ok(()));
        }
        for (bundles, words) in [
            ([&new_pem, &old_pem], "webhook mutate does not verify"),
            ([&old_pem, &new_pem], "webhook validate does not verify"),
            (
                [&both, &String::new()],
                "ValidatingWebhookConfiguration ksm-scale-operator: the webhook validate has no caBundle",
            ),
        ] {
            let cause = told(Some(&served), &live(bundles.map(String::as_str))).unwrap_err();
            assert!(cause.contains(words), "{cause}");
        }
        assert_eq!(told(None, &live([&both, &both])), Err("no certificate is served".into()));
        let [mutating, mut validating] = live([&both, &both]);
        for webhooks in [None, Some(Vec::new())] {
            validating.webhooks = webhooks;
            let cause = told(Some(&served), &[mutating.clone(), validating.clone()]).unwrap_err();
            assert!(cause.contains("kubectl apply -k webhook-config/"), "{cause}");
        }
    }

    #[test]
    fn w7_bundles_are_read_from_the_configurations_as_they_are() {
        let configuration: ValidatingWebhookConfiguration = serde_json::from_value(json!({
            "webhooks": [
                {"name": "a", "clientConfig": {"caBundle": "UEVN"}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
                {"name": "b", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
            ],
        }))
        .unwrap();
        let webhook =
            |name: &str, bundle: &[u8]| Webhook { name: name.into(), bundle: bundle.into() };
        assert_eq!(configuration.webhooks(), [webhook("a", b"PEM"), webhook("b", b"")]);
    }
}
