//! The two webhook configurations, as far as certificates go: which CAs the API server trusts.

use crate::{
    certificates::{Certificate, Pair},
    names::{CA_BUNDLE_MANAGER, WEBHOOK_CONFIGURATION},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::fmt;

/// One of the two configurations, as read.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    resource: ApiResource,
    /// `None` if it is not there.
    found: Option<Found>,
}

#[derive(Clone, Debug)]
struct Found {
    resource_version: Option<String>,
    webhooks: Vec<Webhook>,
}

#[derive(Clone, Debug)]
struct Webhook {
    name: String,
    ca_bundle: Vec<u8>,
}

/// Reads both, past every cache.
///
/// # Errors
/// If the API server does not answer. One that is not there is no error.
pub(crate) async fn read(client: &Client) -> kube::Result<[Configuration; 2]> {
    let (mutating, validating) = futures::try_join!(
        read_one(client, ApiResource::erase::<MutatingWebhookConfiguration>(&())),
        read_one(client, ApiResource::erase::<ValidatingWebhookConfiguration>(&())),
    )?;
    Ok([mutating, validating])
}

async fn read_one(client: &Client, resource: ApiResource) -> kube::Result<Configuration> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let found = api.get_opt(WEBHOOK_CONFIGURATION).await?.map(|object| Found {
        resource_version: object.metadata.resource_version,
        webhooks: object.data["webhooks"].as_array().into_iter().flatten().map(webhook).collect(),
    });
    Ok(Configuration { resource, found })
}

fn webhook(json: &Value) -> Webhook {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // The API server sends nothing but base64.
    let ca_bundle = BASE64_STANDARD.decode(text(&json["clientConfig"]["caBundle"]));
    Webhook { name: text(&json["name"]), ca_bundle: ca_bundle.unwrap_or_default() }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {WEBHOOK_CONFIGURATION}", self.resource.kind)
    }
}

impl Configuration {
    /// The CAs of each webhook, as far as they can be read; one empty list if there is no webhook.
    pub(crate) fn bundles(&self) -> Vec<Vec<Certificate>> {
        let webhooks = self.found.iter().flat_map(|found| &found.webhooks);
        let bundles: Vec<_> = webhooks
            .map(|webhook| Certificate::bundle(&webhook.ca_bundle).unwrap_or_default())
            .collect();
        if bundles.is_empty() { vec![Vec::new()] } else { bundles }
    }

    /// Whether a client that trusts the `caBundle` of each webhook accepts `pair` as `server_name`.
    ///
    /// # Errors
    /// Which one would not, why, and what to do.
    pub(crate) fn verify(
        &self,
        pair: &Pair,
        server_name: &str,
        now: Timestamp,
    ) -> Result<(), String> {
        let Some(webhooks) = self.webhooks() else { return Err(self.missing()) };
        for Webhook { name, ca_bundle } in webhooks {
            pair.verify(ca_bundle, server_name, now)
                .map_err(|error| format!("the caBundle of webhook {name} in {self}: {error}"))?;
        }
        Ok(())
    }

    /// Whether the `caBundle` of each webhook holds every one of `cas`, and no other.
    ///
    /// # Errors
    /// What is missing or too much.
    pub(crate) fn trusts<'c>(
        &self,
        cas: impl Iterator<Item = &'c Certificate>,
    ) -> Result<(), String> {
        let Some(found) = self.webhooks() else { return Err(self.missing()) };
        let cas: Vec<_> = cas.collect();
        for Webhook { name, ca_bundle } in found {
            let bundle = Certificate::bundle(ca_bundle)
                .map_err(|error| format!("the caBundle of webhook {name}: {error}"))?;
            if let Some(ca) = cas.iter().find(|ca| !bundle.contains(ca)) {
                return Err(format!("the caBundle of webhook {name} lacks {}", ca.name));
            }
            if let Some(ca) = bundle.iter().find(|ca| !cas.contains(ca)) {
                return Err(format!(
                    "the caBundle of webhook {name} holds a foreign CA, {}",
                    ca.name
                ));
            }
        }
        Ok(())
    }

    /// Whether there is a webhook in it.
    ///
    /// # Errors
    /// What to do if there is none.
    pub(crate) fn is_there(&self) -> Result<(), String> {
        self.webhooks().map(drop).ok_or_else(|| self.missing())
    }

    fn webhooks(&self) -> Option<&[Webhook]> {
        let found = self.found.as_ref().map(|found| &found.webhooks[..]);
        found.filter(|webhooks| !webhooks.is_empty())
    }

    fn missing(&self) -> String {
        format!("there is no {self} with a webhook: kubectl apply -k webhook-config/base")
    }

    /// Writes `bundle` into each webhook's `caBundle` where it differs, if nobody has changed the
    /// configuration since it was read, and owns that field and no other. Tells whether it wrote.
    ///
    /// # Errors
    /// A conflict if somebody has, and whatever else the API server says.
    pub(crate) async fn set(&self, client: &Client, bundle: &str) -> kube::Result<bool> {
        let Some(found) = &self.found else { return Ok(false) };
        if found.webhooks.iter().all(|webhook| webhook.ca_bundle == bundle.as_bytes()) {
            return Ok(false);
        }
        let ca_bundle = BASE64_STANDARD.encode(bundle);
        let webhooks: Vec<_> = found
            .webhooks
            .iter()
            .map(|Webhook { name, .. }| json!({"name": name, "clientConfig": {"caBundle": ca_bundle}}))
            .collect();
        let patch = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": {"name": WEBHOOK_CONFIGURATION, "resourceVersion": found.resource_version},
            "webhooks": webhooks,
        });
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &self.resource);
        let params = PatchParams::apply(CA_BUNDLE_MANAGER).force();
        api.patch(WEBHOOK_CONFIGURATION, &params, &Patch::Apply(patch)).await?;
        tracing::info!(kind = %self.resource.kind, name = WEBHOOK_CONFIGURATION, "caBundle written");
        Ok(true)
    }
}
