//! Rendezvous hashing with a bound on each member's load.

use super::{Candidate, Load, score, seeds};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Deferred acceptance: each partition asks members in the order of its scores; a full member keeps
/// those with the highest scores. The result does not depend on who asks first.
pub(super) fn place(partitions: u32, load: Load, members: &[Candidate<'_>]) -> Vec<usize> {
    let capacity = load.capacity(partitions, members.len());
    let seeds = seeds(members);
    let mut kept: Vec<BinaryHeap<Reverse<(u64, u32)>>> = vec![BinaryHeap::new(); members.len()];
    for mut asking in 0..partitions {
        let mut refused_by = None;
        while let Some((fit, at)) = next_choice(&seeds, asking, refused_by) {
            kept[at].push(Reverse((fit, asking)));
            if kept[at].len() <= capacity {
                break;
            }
            let Some(Reverse((fit, worst))) = kept[at].pop() else { break };
            (asking, refused_by) = (worst, Some((fit, at)));
        }
    }
    let mut owners = vec![0; partitions as usize];
    for (at, heap) in kept.iter().enumerate() {
        for Reverse((_, partition)) in heap {
            owners[*partition as usize] = at;
        }
    }
    owners
}

/// The best member for a partition, or the best of those that come after the one that refused it.
fn next_choice(
    seeds: &[u64],
    partition: u32,
    refused_by: Option<(u64, usize)>,
) -> Option<(u64, usize)> {
    let scores = seeds.iter().enumerate().map(|(at, seed)| (score(*seed, partition), at));
    scores.filter(|fit| refused_by.is_none_or(|refused| *fit < refused)).max()
}
