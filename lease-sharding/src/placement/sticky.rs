//! Least movement: who has a partition keeps it, as far as shares stay equal.

use super::{Candidate, Load, score, seeds};
use std::cmp::Reverse;

pub(super) fn place(partitions: u32, load: Load, members: &[Candidate<'_>]) -> Vec<usize> {
    let newest = members.iter().map(|member| member.generation).max().unwrap_or_default();
    let is_new: Vec<_> = members.iter().map(|member| member.generation == newest).collect();
    let seeds = seeds(members);
    let mut owners: Vec<Option<usize>> = vec![None; partitions as usize];
    for (at, member) in members.iter().enumerate() {
        for partition in member.claims.iter().take_while(|partition| *partition < partitions) {
            let fit = |at: usize| (is_new[at], score(seeds[at], partition));
            let owner = &mut owners[partition as usize];
            if owner.is_none_or(|other| fit(other) <= fit(at)) {
                *owner = Some(at);
            }
        }
    }
    let mut held = vec![vec![]; members.len()];
    for (partition, owner) in (0..).zip(&owners) {
        if let Some(at) = owner {
            held[*at].push((Reverse(score(seeds[*at], partition)), partition));
        }
    }
    let counts: Vec<usize> = held.iter().map(Vec::len).collect();
    let quotas = quotas(partitions, load, members, &is_new, &counts);
    for (share, quota) in held.iter_mut().zip(&quotas) {
        share.sort_unstable();
        for (_, partition) in share.drain(quota.keep.min(share.len())..) {
            owners[partition as usize] = None;
        }
    }
    let mut loads: Vec<usize> = held.iter().map(Vec::len).collect();
    // Who asks for a free partition already gets it, so that repeated answers converge; then the
    // least loaded; those that should get nothing only if all others are full.
    let asks =
        |at: usize, partition: u32| members[at].claims.contains(partition) && quotas[at].receives;
    for stage in 0..3 {
        for (partition, owner) in (0..).zip(&mut owners).filter(|(_, owner)| owner.is_none()) {
            let open = |at: &usize| {
                loads[*at] < quotas[*at].most
                    && match stage {
                        0 => asks(*at, partition),
                        1 => quotas[*at].receives,
                        _ => true,
                    }
            };
            let best = |at: &usize| (Reverse(loads[*at]), score(seeds[*at], partition));
            *owner = (0..members.len()).filter(open).max_by_key(best);
            if let Some(at) = owner {
                loads[*at] += 1;
            }
        }
    }
    owners.into_iter().map(Option::unwrap_or_default).collect()
}

/// How many partitions a member may have.
struct Quota {
    /// Of those it has.
    keep: usize,
    /// With those it gets.
    most: usize,
    /// Whether it is to get any.
    receives: bool,
}

fn quotas(
    partitions: u32,
    load: Load,
    members: &[Candidate<'_>],
    is_new: &[bool],
    held: &[usize],
) -> Vec<Quota> {
    let new = is_new.iter().filter(|new| **new).count();
    if new < members.len() {
        // One generation replaces the other: only their larger number is there to stay.
        let most = load.capacity(partitions, new.max(members.len() - new));
        return is_new.iter().map(|new| Quota { keep: most, most, receives: *new }).collect();
    }
    let (all, share) = (partitions as usize, partitions as usize / members.len());
    let mut by_load: Vec<usize> = (0..members.len()).collect();
    // Who has one more than the others keeps it. How far others are on their way to an equal share
    // must not matter: they would get another answer with each claim that they see.
    by_load.sort_by_key(|at| (held[*at] <= share, *at));
    let mut quotas: Vec<Quota> = Vec::new();
    quotas.resize_with(members.len(), || Quota { keep: 0, most: 0, receives: true });
    for (rank, at) in by_load.into_iter().enumerate() {
        let share = share + usize::from(rank < all % members.len());
        (quotas[at].keep, quotas[at].most) = (share, share);
    }
    quotas
}
