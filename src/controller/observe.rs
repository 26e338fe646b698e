//! All reads of a reconcile. They go to the API server, not to a cache: what was just written is
//! seen, and a pod that is just being deleted does not count as serving.
//!
//! The client is the reconcile's, behind the guard of its KSMScale.

use super::{Context, Error};
use crate::{
    api::{KSMScale, KSMScaleStatus},
    controller::watches::Count,
    names::{self, KUBE_STATE_METRICS, LABEL_MANAGED_BY, LABEL_NAME, LABEL_SCALE, OPERATOR},
    observed::{NamespaceState, Observed, ObservedPod, is_owned_by},
    telemetry::otlp::TRACES,
    validate::{Mode, Scale},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;
use std::collections::BTreeSet;

/// A KSMScale as it is stored, whether or not our types can hold it.
pub(super) struct Stored {
    pub(super) json: Value,
    pub(super) generation: i64,
    pub(super) status: KSMScaleStatus,
}

/// Reads the KSMScale. `None` if it is gone or going.
pub(super) async fn stored(client: &Client, name: &str) -> Result<Option<Stored>, Error> {
    let api: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<KSMScale>(&()));
    let object = api.get_opt(name).await.map_err(read("KSMScale"))?;
    Ok(object.filter(|object| object.meta().deletion_timestamp.is_none()).map(|object| Stored {
        generation: object.meta().generation.unwrap_or_default(),
        // A status that an older version wrote and that cannot be read is written anew.
        status: serde_json::from_value(object.data["status"].clone()).unwrap_or_default(),
        json: serde_json::to_value(object).unwrap_or_default(),
    }))
}

/// Reads everything that the plan for `scale` looks at.
#[tracing::instrument(target = TRACES, name = "observe", skip_all)]
pub(super) async fn observe(
    ctx: &Context,
    client: &Client,
    scale: &Scale,
) -> Result<Observed, Error> {
    let nodes = match &*ctx.nodes.borrow() {
        Count::Known(nodes) => *nodes,
        Count::Awaited => return Err(Error::NodesUnknown("their first list is awaited".into())),
        Count::Unknown(why) => return Err(Error::NodesUnknown(why.clone())),
    };
    let (namespace, pods, budgets) = tokio::try_join!(
        namespace(client, &scale.namespace),
        pods(ctx, client, scale),
        budgets(client, scale)
    )?;
    let others = others(ctx, scale);
    let mut seen = Observed { nodes, namespace, pods, budgets, others, ..Default::default() };
    match access(ctx.settings.manage_access, client, scale, &mut seen).await {
        // Without these rights pods can still be made (R63).
        Err(Error::Read { source: kube::Error::Api(status), .. }) if status.is_forbidden() => {
            seen.access_fault = Some(status.message);
        }
        other => other?,
    }
    Ok(seen)
}

async fn namespace(client: &Client, name: &str) -> Result<NamespaceState, Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = api.get_opt(name).await.map_err(read("namespace"))?;
    Ok(match namespace {
        None => NamespaceState::Missing,
        Some(ns) if ns.meta().deletion_timestamp.is_some() => NamespaceState::Terminating,
        Some(_) => NamespaceState::Active,
    })
}

/// Our pods (R29), in the spec's namespace and wherever the watch has seen some. That the watch
/// may lag does no harm: when it catches up, the pod brings us back here.
async fn pods(ctx: &Context, client: &Client, scale: &Scale) -> Result<Vec<ObservedPod>, Error> {
    let labels = format!("{LABEL_NAME}={KUBE_STATE_METRICS},{LABEL_SCALE}={}", scale.name);
    let known = ctx.pods.state();
    let of_scale = known.iter().filter(|pod| pod.labels().get(LABEL_SCALE) == Some(&scale.name));
    let mut namespaces: BTreeSet<String> = of_scale.filter_map(|pod| pod.namespace()).collect();
    namespaces.insert(scale.namespace.clone());
    let mut pods = Vec::new();
    for namespace in namespaces {
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let list = api.list(&ListParams::default().labels(&labels)).await.map_err(read("pods"))?;
        let ours = |pod: &&Pod| is_owned_by(pod.meta().owner_references.as_ref(), &scale.uid);
        pods.extend(list.items.iter().filter(ours).map(ObservedPod::new));
    }
    let condemned = ctx.audits.condemned(&scale.name);
    for pod in &mut pods {
        pod.condemned = condemned.contains(&pod.uid);
    }
    Ok(pods)
}

async fn budgets(client: &Client, scale: &Scale) -> Result<Vec<PodDisruptionBudget>, Error> {
    let labels = format!("{LABEL_SCALE}={}", scale.name);
    let api: Api<PodDisruptionBudget> = Api::all(client.clone());
    let list = api.list(&ListParams::default().labels(&labels)).await;
    let mut budgets = list.map_err(read("PodDisruptionBudgets"))?.items;
    budgets.retain(|b| is_owned_by(b.meta().owner_references.as_ref(), &scale.uid));
    let name = names::pod_disruption_budget(&scale.name);
    let there = |b: &PodDisruptionBudget| {
        b.namespace().as_ref() == Some(&scale.namespace) && b.name_any() == name
    };
    if matches!(&scale.mode, Mode::Sharded(s) if s.max_unavailable.is_some())
        && !budgets.iter().any(there)
    {
        let api: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &scale.namespace);
        budgets.extend(api.get_opt(&name).await.map_err(read("PodDisruptionBudget"))?);
    }
    Ok(budgets)
}

/// ServiceAccounts and bindings of the operator's making, and those that stand where it would
/// make some.
async fn access(
    manage: bool,
    client: &Client,
    scale: &Scale,
    seen: &mut Observed,
) -> Result<(), Error> {
    let made_by_us = ListParams::default().labels(&format!("{LABEL_MANAGED_BY}={OPERATOR}"));
    if manage {
        let accounts: Api<ServiceAccount> = Api::all(client.clone());
        let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
        let (found, list) = tokio::join!(accounts.list(&made_by_us), bindings.list(&made_by_us));
        seen.service_accounts = found.map_err(read("ServiceAccounts"))?.items;
        seen.service_accounts.retain(|account| account.name_any() == KUBE_STATE_METRICS);
        let list = list.map_err(read("ClusterRoleBindings"))?;
        let name = names::cluster_role_binding(&scale.namespace);
        let found = list.items.iter().any(|binding| binding.name_any() == name);
        seen.bindings = list.items;
        if !found {
            seen.bindings
                .extend(bindings.get_opt(&name).await.map_err(read("ClusterRoleBinding"))?);
        }
    }
    if crate::plan::access::account_in(seen, &scale.namespace).is_none() {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &scale.namespace);
        let account = accounts.get_opt(KUBE_STATE_METRICS).await;
        seen.service_accounts.extend(account.map_err(read("ServiceAccount"))?);
    }
    Ok(())
}

fn others(ctx: &Context, scale: &Scale) -> Vec<String> {
    let all = ctx.scales.state();
    all.iter().map(|other| other.name_any()).filter(|name| *name != scale.name).collect()
}

fn read(what: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Read { what, source }
}
