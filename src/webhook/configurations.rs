//! The two webhook configurations, as far as certificates go: which CAs the API server trusts.

use crate::{
    certificates::{
        Certificate, Pair,
        trust::{self, Configures, Webhook},
    },
    names::{CA_BUNDLE_MANAGER, WEBHOOK_CONFIGURATION},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{
    fmt::{self, Debug},
    slice,
};

/// One of the two configurations, as read.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    resource: ApiResource,
    resource_version: Option<String>,
    seen: trust::Configuration,
}

/// Reads both, past every cache.
///
/// # Errors
/// If the API server does not answer. One that is not there is no error.
pub(crate) async fn read(client: &Client) -> kube::Result<[Configuration; 2]> {
    let (mutating, validating) = futures::try_join!(
        read_one::<MutatingWebhookConfiguration>(client),
        read_one::<ValidatingWebhookConfiguration>(client),
    )?;
    Ok([mutating, validating])
}

async fn read_one<K>(client: &Client) -> kube::Result<Configuration>
where
    K: Clone + Configures + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let found = Api::<K>::all(client.clone()).get_opt(WEBHOOK_CONFIGURATION).await?;
    Ok(Configuration {
        resource: ApiResource::erase::<K>(&()),
        resource_version: found.as_ref().and_then(ResourceExt::resource_version),
        seen: trust::Configuration {
            kind: K::KIND,
            webhooks: found.as_ref().map(Configures::webhooks),
        },
    })
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {WEBHOOK_CONFIGURATION}", self.resource.kind)
    }
}

impl Configuration {
    /// The CAs of each webhook, as far as they can be read; one empty list if there is no webhook.
    pub(crate) fn bundles(&self) -> Vec<Vec<Certificate>> {
        let webhooks = self.seen.webhooks.iter().flatten();
        let bundles: Vec<_> = webhooks
            .map(|webhook| Certificate::bundle(&webhook.bundle).unwrap_or_default())
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
        let seen = slice::from_ref(&self.seen);
        trust::verify(Some(pair), seen, server_name, now).map_err(|distrust| distrust.to_string())
    }

    /// Whether the `caBundle` of each webhook holds every one of `cas`, and no other.
    ///
    /// # Errors
    /// What is missing or too much.
    pub(crate) fn trusts<'c>(
        &self,
        cas: impl Iterator<Item = &'c Certificate>,
    ) -> Result<(), String> {
        let cas: Vec<_> = cas.collect();
        for Webhook { name, bundle } in self.webhooks()? {
            let bundle = Certificate::bundle(bundle)
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
        self.webhooks().map(drop)
    }

    fn webhooks(&self) -> Result<&[Webhook], String> {
        self.seen.webhooks().map_err(|distrust| distrust.to_string())
    }

    /// Writes `bundle` into each webhook's `caBundle` where it differs, if nobody has changed the
    /// configuration since it was read, and owns that field and no other. Tells whether it wrote.
    ///
    /// # Errors
    /// A conflict if somebody has, and whatever else the API server says.
    pub(crate) async fn set(&self, client: &Client, bundle: &str) -> kube::Result<bool> {
        let webhooks = self.seen.webhooks.iter().flatten();
        if webhooks.clone().all(|webhook| webhook.bundle == bundle.as_bytes()) {
            return Ok(false);
        }
        let ca_bundle = BASE64_STANDARD.encode(bundle);
        let webhooks: Vec<_> = webhooks
            .map(|Webhook { name, .. }| json!({"name": name, "clientConfig": {"caBundle": ca_bundle}}))
            .collect();
        let patch = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": {"name": WEBHOOK_CONFIGURATION, "resourceVersion": self.resource_version},
            "webhooks": webhooks,
        });
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &self.resource);
        let params = PatchParams::apply(CA_BUNDLE_MANAGER).force();
        api.patch(WEBHOOK_CONFIGURATION, &params, &Patch::Apply(patch)).await?;
        tracing::info!(kind = %self.resource.kind, name = WEBHOOK_CONFIGURATION, "caBundle written");
        Ok(true)
    }
}
