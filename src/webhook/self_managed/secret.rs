//! The one Secret with the CA: read, and written only as it was read.

use crate::{
    certificates::{Damage, rotation::State},
    names::{ANNOTATION_ROTATE, CA_SECRET, LABEL_MANAGED_BY, OPERATOR, OPERATOR_NAMESPACE},
};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, ResourceExt, api::PostParams};
use std::collections::BTreeMap;

/// The Secret as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    object: Option<Secret>,
    /// What it holds.
    pub(crate) state: Result<Option<State>, Damage>,
}

fn api(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), OPERATOR_NAMESPACE)
}

/// Reads it, past every cache.
///
/// # Errors
/// If the API server does not answer.
pub(crate) async fn read(client: &Client) -> kube::Result<Found> {
    let object = api(client).get_opt(CA_SECRET).await?;
    let data = object.as_ref().map(|secret| secret.data.clone().unwrap_or_default());
    let state = data.map(|data| State::parse(&data)).transpose();
    Ok(Found { object, state })
}

impl Found {
    /// Whether a new CA is asked for.
    pub(crate) fn rotate(&self) -> bool {
        self.object.as_ref().is_some_and(|o| o.annotations().contains_key(ANNOTATION_ROTATE))
    }

    /// Stores `state`, if the Secret is still as it was found. What else is on it stays, but for
    /// the request for a new CA, if `state` has one.
    ///
    /// # Errors
    /// A conflict if somebody was faster, and whatever else the API server says.
    pub(super) async fn store(self, client: &Client, state: &State) -> kube::Result<()> {
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..Default::default() };
        let Some(mut secret) = self.object else {
            let labels = [(LABEL_MANAGED_BY, OPERATOR), ("app.kubernetes.io/part-of", OPERATOR)];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let metadata = ObjectMeta {
                name: Some(CA_SECRET.to_owned()),
                labels: Some(BTreeMap::from(labels)),
                ..Default::default()
            };
            let secret = Secret { metadata, data: Some(state.data()), ..Default::default() };
            return api(client).create(&params, &secret).await.map(drop);
        };
        secret.data = Some(state.data());
        if state.next.is_some() {
            secret.annotations_mut().remove(ANNOTATION_ROTATE);
        }
        // Its resourceVersion is in it, so this is a compare-and-swap.
        api(client).replace(CA_SECRET, &params, &secret).await.map(drop)
    }
}
