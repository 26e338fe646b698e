//! What the process says about itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use crate::families::Resource;

/// Counts watches. Lists are never counted: they come through the watches.
#[derive(Default)]
pub(crate) struct Telemetry {
    /// By result and kind.
    watches: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Telemetry {
    /// A watch of the resource was begun, or was refused.
    pub(crate) fn watched(&self, resource: Resource, success: bool) {
        let result = if success { "success" } else { "error" };
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        *watches.entry((result, resource.kind())).or_default() += 1;
    }

    /// All of it, for a process that serves `shard` of `total`.
    pub(crate) fn text(&self, (shard, total): (u32, u32)) -> String {
        let mut text = format!(
            "# HELP kube_state_metrics_shard_ordinal Current sharding ordinal/index of this instance\n\
             # TYPE kube_state_metrics_shard_ordinal gauge\n\
             kube_state_metrics_shard_ordinal{{shard_ordinal=\"{shard}\"}} {shard}\n\
             # HELP kube_state_metrics_total_shards Number of total shards this instance is aware of\n\
             # TYPE kube_state_metrics_total_shards gauge\n\
             kube_state_metrics_total_shards {total}\n"
        );
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if !watches.is_empty() {
            text.push_str(
                "# HELP kube_state_metrics_watch_total Number of total resource watch calls in kube-state-metrics\n\
                 # TYPE kube_state_metrics_watch_total counter\n",
            );
        }
        for ((result, kind), count) in watches.iter() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "kube_state_metrics_watch_total{{resource=\"*v1.{kind}\",result=\"{result}\"}} {count}"
            );
        }
        text
    }
}
