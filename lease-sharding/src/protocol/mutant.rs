//! Ways to break the protocol. Tests switch one on and must find out.

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests can switch one on"))]
pub(crate) enum Mutant {
    /// Acts on what placement says, without claims: consistent hashing alone.
    NoClaims,
    /// Acts as soon as a claim is acknowledged, without having seen it among the others.
    NoEcho,
    /// Renews without a precondition.
    BlindRenewal,
    /// Gives a partition away before work on it has ended.
    ReleaseBeforeStop,
    /// Counts the fence from the answer, not from the request.
    FenceFromAnswer,
    /// Takes a Lease that did not change for dead, without taking its claims away first.
    DeathWithoutWrite,
    /// Takes no notice of keyspaces.
    OneKeyspace,
    /// Claims nothing while another keyspace has claims, but acts on what it had claimed before.
    MixedKeyspaces,
    /// Keeps its claims, though it can't act, while another keyspace has claims.
    StubbornKeyspace,
}
