//! From changes to writes, one by one and without choices.

use super::{Error, is_refused};
use crate::{
    names::{LABEL_NAME, LABEL_SCALE, OPERATOR},
    observed::is_owned_by,
    plan::{Change, Group},
    status::{Failure, FailureReason, Outcome},
    telemetry::{chain, metrics::Metrics, otlp::TRACES},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::{collections::BTreeSet, fmt::Debug, time::Duration};

/// Makes the changes in their order. After a failure, the rest of its [`Group`] is left for the
/// next plan. After a refusal of the client, everything is: the KSMScale may be another replica's.
///
/// # Cancel safety
/// Each write stands for itself: stopping between two leaves a state that can be planned from.
///
/// # Errors
/// [`Error::NotOurs`] and no other.
#[tracing::instrument(target = TRACES, name = "apply", skip_all)]
pub(super) async fn apply(
    client: &Client,
    metrics: &Metrics,
    changes: &[Change],
) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let mut broken: BTreeSet<Group> = BTreeSet::new();
    for change in changes {
        if broken.contains(&change.group()) {
            continue;
        }
        let result = write(client, change).await;
        if result.as_ref().is_err_and(is_refused) {
            return Err(Error::NotOurs);
        }
        metrics.changed(label(change), result.is_ok());
        match result {
            Ok(()) => {
                tracing::info!(%change, "applied");
                outcome.applied.push(change.clone());
            }
            Err(error) => {
                broken.insert(change.group());
                outcome.failed.push(failure(client, change, error).await);
            }
        }
    }
    Ok(outcome)
}

fn label(change: &Change) -> &'static str {
    match change {
        Change::DeletePod(..) => "delete_pod",
        Change::CreatePod(..) => "create_pod",
        Change::ApplyServiceAccount(_) => "apply_service_account",
        Change::ReleaseServiceAccount(..) => "release_service_account",
        Change::DeleteServiceAccount(_) => "delete_service_account",
        Change::ApplyBinding(_) => "apply_cluster_role_binding",
        Change::ReleaseBinding(..) => "release_cluster_role_binding",
        Change::DeleteBinding(_) => "delete_cluster_role_binding",
        Change::ApplyBudget(_) => "apply_pod_disruption_budget",
        Change::DeleteBudget(_) => "delete_pod_disruption_budget",
    }
}

async fn write(client: &Client, change: &Change) -> Result<(), kube::Error> {
    match change {
        // Created, not applied: applying would adopt a pod of that name.
        Change::CreatePod(pod, _) => create(&in_namespace(client, &pod.metadata), &**pod).await,
        Change::DeletePod(pod, _) => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
            delete(&api, &pod.name, Some(pod.uid.clone()), None).await
        }
        Change::ApplyServiceAccount(o) => share(&in_namespace(client, &o.metadata), &**o).await,
        Change::ApplyBinding(o) => share(&Api::all(client.clone()), &**o).await,
        Change::ReleaseServiceAccount(o, owner) => {
            release(&in_namespace(client, &o.metadata), &**o, owner).await
        }
        Change::ReleaseBinding(o, owner) => release(&Api::all(client.clone()), &**o, owner).await,
        Change::ApplyBudget(o) => {
            let api: Api<PodDisruptionBudget> = in_namespace(client, &o.metadata);
            let params = PatchParams::apply(OPERATOR).force();
            api.patch(&o.name_any(), &params, &Patch::Apply(o)).await.map(drop)
        }
        Change::DeleteServiceAccount(o) => {
            delete_observed(&in_namespace(client, &o.metadata), &**o).await
        }
        Change::DeleteBinding(o) => delete_observed(&Api::all(client.clone()), &**o).await,
        Change::DeleteBudget(o) => delete_observed(&in_namespace(client, &o.metadata), &**o).await,
    }
}

fn in_namespace<K>(client: &Client, meta: &ObjectMeta) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default())
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..Default::default() };
    api.create(&params, object).await.map(drop)
}

/// Makes the object if it has no UID yet, else merges it into the one that is there. The API
/// server merges ownerReferences by UID: each KSMScale adds its own, and two at once lose none.
async fn share<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Serialize + Resource<DynamicType = ()>,
{
    match object.uid() {
        None => create(api, object).await,
        Some(_) => merge(api, object, object).await,
    }
}

/// Takes the ownerReference to the UID `owner` from the object, as the garbage collector does.
async fn release<K>(api: &Api<K>, object: &K, owner: &str) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let owners = json!([{"$patch": "delete", "uid": owner}]);
    merge(api, object, &json!({"metadata": {"uid": object.uid(), "ownerReferences": owners}})).await
}

/// A strategic merge patch, for which the API server needs no resourceVersion: it tries again by itself.
async fn merge<K>(
    api: &Api<K>,
    object: &K,
    patch: &(impl Serialize + Debug),
) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..Default::default() };
    api.patch(&object.name_any(), &params, &Patch::Strategic(patch)).await.map(drop)
}

async fn delete_observed<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    delete(api, &object.name_any(), object.uid(), object.resource_version()).await
}

/// Deletes the object with this UID and, if given, as it was at this resourceVersion. That it is
/// gone already is what we want.
async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<String>,
    resource_version: Option<String>,
) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let preconditions = Some(Preconditions { uid, resource_version });
    match api.delete(name, &DeleteParams { preconditions, ..Default::default() }).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

async fn failure(client: &Client, change: &Change, error: kube::Error) -> Failure {
    let mut reason = reason(&error);
    // What is shared has been made by another KSMScale meanwhile.
    if reason == FailureReason::NameTaken && change.group() == Group::Access {
        reason = FailureReason::Conflict;
    }
    // A pod of that name that is ours was made by a request whose answer we did not get. One that
    // has lost a label of ours is not: it is never observed, so waiting for it would not end.
    if let (FailureReason::NameTaken, Change::CreatePod(pod, _)) = (reason, change) {
        let owner = pod.metadata.owner_references.iter().flatten().next();
        let found = in_namespace::<Pod>(client, &pod.metadata).get_opt(&pod.name_any()).await;
        let is_ours = |found: Pod| {
            let same = |label: &str| pod.labels().get(label) == found.labels().get(label);
            owner.is_some_and(|o| is_owned_by(found.metadata.owner_references.as_ref(), &o.uid))
                && same(LABEL_NAME)
                && same(LABEL_SCALE)
        };
        if found.ok().flatten().is_some_and(is_ours) {
            reason = FailureReason::Conflict;
        }
    }
    let retry_after = retry_after(&error);
    let message = match error {
        kube::Error::Api(status) => status.message,
        other => chain(&other),
    };
    tracing::warn!(%change, %reason, error = message, "not applied");
    Failure { change: change.clone(), reason, message, retry_after }
}

/// How long the API server asked us to wait.
pub(super) fn retry_after(error: &kube::Error) -> Option<Duration> {
    let kube::Error::Api(status) = error else { return None };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// What kind of failure an answer of the API server is. The texts are those of the quota plugin,
/// of RBAC and of the admission chain in `k8s.io/apiserver`.
fn reason(error: &kube::Error) -> FailureReason {
    let kube::Error::Api(status) = error else { return FailureReason::ApiError };
    match (status.code, status.reason.as_str()) {
        (409, "AlreadyExists") => FailureReason::NameTaken,
        (409, _) => FailureReason::Conflict,
        (429, _) => FailureReason::Throttled,
        (403, _) if status.message.contains("exceeded quota") => FailureReason::QuotaExceeded,
        (403, _) if status.message.contains("error looking up service account") => {
            FailureReason::ServiceAccountMissing
        }
        (403, _) if status.message.contains(": User \"") => FailureReason::Forbidden,
        (400..=499, _) => FailureReason::AdmissionDenied,
        _ if status.message.contains("admission webhook") => FailureReason::AdmissionDenied,
        _ => FailureReason::ApiError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn r84_answers_of_the_api_server_are_told_apart_by_what_has_to_be_done() {
        let table = [
            (409, "AlreadyExists", "pods \"a\" already exists", FailureReason::NameTaken),
            (409, "Conflict", "the object has been modified", FailureReason::Conflict),
            (429, "TooManyRequests", "too many requests", FailureReason::Throttled),
            (
                403,
                "Forbidden",
                "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1",
                FailureReason::QuotaExceeded,
            ),
            (
                403,
                "Forbidden",
                "pods is forbidden: User \"system:serviceaccount:a:b\" cannot create resource \"pods\"",
                FailureReason::Forbidden,
            ),
            (
                403,
                "Forbidden",
                "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\"",
                FailureReason::AdmissionDenied,
            ),
            (
                403,
                "Forbidden",
                "pods \"a\" is forbidden: error looking up service account monitoring/kube-state-metrics: serviceaccount \"kube-state-metrics\" not found",
                FailureReason::ServiceAccountMissing,
            ),
            (
                400,
                "",
                "admission webhook \"w\" denied the request: no",
                FailureReason::AdmissionDenied,
            ),
            (500, "InternalError", "failed calling webhook \"w\"", FailureReason::ApiError),
        ];
        for (code, reason_text, message, expected) in table {
            let status = Status {
                code,
                reason: reason_text.into(),
                message: message.into(),
                ..Status::default()
            };
            assert_eq!(reason(&kube::Error::Api(Box::new(status))), expected, "{message}");
        }
    }
}
