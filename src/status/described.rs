//! The conditions and their reasons (R70), described for people: the reference in the documentation
//! is made of this, and the tests hold it complete.

/// A condition.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its type.
    pub type_: &'static str,
    /// What it says when it is `True`.
    pub meaning: &'static str,
    /// Whether it is `True`, the reason, and what to do about it.
    pub reasons: &'static [(bool, &'static str, &'static str)],
}

const FORBIDDEN: &str =
    "The operator lacks a right. The message says which one, and what grants it.";
const QUOTA: &str = "A ResourceQuota of the namespace is used up. Raise it, or free some of it.";
const DENIED: &str =
    "An admission plugin, policy or webhook refused an object. Change that policy or the spec.";
const API_ERROR: &str = "The API server fails or cannot be reached. It is tried again; look at the API server if it lasts.";
const NO_NAMESPACE: &str = "`spec.namespace` does not exist. Create it, or correct the field.";
const ENDING_NAMESPACE: &str =
    "The namespace is being deleted. Create it again once it is gone, or correct `spec.namespace`.";
const NO_ACCOUNT: &str = "The pods' ServiceAccount does not exist. Create it, or start the operator with `--manage-service-account=true`.";
const TAKEN: &str =
    "An object of that name exists and is not of this KSMScale. Delete or rename it.";
const INVALID: &str =
    "The stored spec is not valid. The pods are left as they are. Correct what the message names.";
const NOT_ALLOWED: &str = "The spec asks for a namespace or an image that the operator's flags do not allow. The pods are left as they are.";

const REPLACED: &str = "Wait: a pod that three audits in a row find at fault is replaced. The message names pods and nodes. If successors are at fault too, look at their logs.";

/// Every condition, in the order of the status.
pub const CONDITIONS: [Described; 10] = [
    Described {
        type_: "Available",
        meaning: "every object of the cluster is exposed by a pod that serves",
        reasons: &[
            (true, "AllObjectsExposed", "Nothing."),
            (true, "NoNodes", "Nothing: a cluster without nodes has nothing to serve."),
            (
                false,
                "ObjectsMissing",
                "Series are missing. `Progressing` says what the operator waits for, `Degraded` what is wrong.",
            ),
        ],
    },
    Described {
        type_: "Progressing",
        meaning: "pods are being changed",
        reasons: &[
            (true, "ChangingPods", "Wait: the message names the step."),
            (true, "PodSettling", "Wait: a pod counts after `--settle-time`."),
            (true, "PodNotReady", "Look at the pod that the message names, if it lasts."),
            (
                true,
                "PodCannotStart",
                "Look at the pod that the message names: image, node, rights.",
            ),
            (
                true,
                "StillNeeded",
                "Wait: the pod that is to go exposes objects that no other exposes yet.",
            ),
            (
                true,
                "SeriesAtRisk",
                "Wait: the pod that is to go serves series that no other has been seen to serve. The message names one, and a pod that did not answer. If it lasts, look at that pod, or at the successor's log.",
            ),
            (false, "Complete", "Nothing."),
            (false, "Blocked", "The namespace takes no pods: see `NamespaceReady`."),
            (false, "InvalidSpec", INVALID),
            (false, "NotAllowed", NOT_ALLOWED),
        ],
    },
    Described {
        type_: "Degraded",
        meaning: "something is wrong that does not pass by itself",
        reasons: &[
            (false, "AsExpected", "Nothing."),
            (true, "NamespaceMissing", NO_NAMESPACE),
            (true, "NamespaceTerminating", ENDING_NAMESPACE),
            (true, "Forbidden", FORBIDDEN),
            (true, "QuotaExceeded", QUOTA),
            (true, "NameTaken", TAKEN),
            (true, "AdmissionDenied", DENIED),
            (true, "ServiceAccountMissing", NO_ACCOUNT),
            (true, "ApiError", API_ERROR),
            (
                true,
                "PodCannotStart",
                "Look at the pod that the message names: image, node, rights.",
            ),
            (
                true,
                "ProgressDeadlineExceeded",
                "A pod is not Ready after `--progress-deadline`. Look at its events and its log.",
            ),
            (true, "InvalidSpec", INVALID),
            (true, "NotAllowed", NOT_ALLOWED),
        ],
    },
    Described {
        type_: "ShardingEfficient",
        meaning: "the number of shards fits the cluster; only with sharding",
        reasons: &[
            (true, "Fits", "Nothing."),
            (false, "OverSharded", "Fewer shards would do: the message says how many."),
            (false, "UnderSharded", "More shards would be better: the message says how many."),
            (false, "NoBetterShardCount", "Nothing: no other number fits better."),
        ],
    },
    Described {
        type_: "DuplicateMetrics",
        meaning: "every series exists more than once; only without sharding",
        reasons: &[
            (false, "SinglePod", "Nothing."),
            (true, "UnshardedReplicas", "Set `spec.sharding`, or query the deduplicated series."),
        ],
    },
    Described {
        type_: "ScopeOverlap",
        meaning: "another KSMScale exports the same objects",
        reasons: &[
            (false, "OnlyKSMScale", "Nothing."),
            (true, "OtherKSMScales", "Delete all but one, or tell them apart when scraping."),
        ],
    },
    Described {
        type_: "ServiceAccountReady",
        meaning: "the pods' ServiceAccount has what kube-state-metrics needs",
        reasons: &[
            (true, "Managed", "Nothing: the operator keeps it."),
            (true, "Provided", "Nothing: it was there, and is used as it is."),
            (false, "Missing", NO_ACCOUNT),
            (false, "Blocked", "It waits for its namespace."),
            (false, "Forbidden", FORBIDDEN),
            (false, "Conflict", "It is tried again."),
            (false, "Throttled", "It is tried again, when the API server asks for it."),
            (false, "QuotaExceeded", QUOTA),
            (false, "NameTaken", TAKEN),
            (false, "AdmissionDenied", DENIED),
            (false, "ServiceAccountMissing", NO_ACCOUNT),
            (false, "ApiError", API_ERROR),
        ],
    },
    Described {
        type_: "NamespaceReady",
        meaning: "`spec.namespace` takes pods",
        reasons: &[
            (true, "Active", "Nothing."),
            (false, "NamespaceMissing", NO_NAMESPACE),
            (false, "NamespaceTerminating", ENDING_NAMESPACE),
        ],
    },
    Described {
        type_: "CoverageComplete",
        meaning: "every node is exposed by the pods of its shard and by no other; as last audited",
        reasons: &[
            (true, "EveryNodeOnce", "Nothing."),
            (false, "NodesMissing", REPLACED),
            (false, "NodesDuplicated", REPLACED),
            (false, "NodesForeign", REPLACED),
            (false, "PodsFaulty", REPLACED),
        ],
    },
    Described {
        type_: "CoverageVerified",
        meaning: "a pod is deleted only when others were seen to serve all its series",
        reasons: &[
            (true, "PodsReached", "Nothing."),
            (
                false,
                "PodsUnreachable",
                "Let the operator reach ports 8080 and 8081 of the pods: look for a NetworkPolicy. Until then Ready and `--settle-time` decide.",
            ),
            (false, "Disabled", "Nothing: `--verify-coverage=false` asks for it."),
        ],
    },
];
