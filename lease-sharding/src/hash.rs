//! The hash functions that rings and keys can use.

/// A 64-bit hash with fixed results: replicas of different builds must agree during a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// XXH3, 64 bits, seed 0: the fastest, and the default where nothing has to be matched.
    #[default]
    Xxh3,
    /// XXH64, seed 0: what the examples of `buraksezer/consistent` use.
    Xxh64,
    /// FNV-1 (multiply, then xor; not FNV-1a): what the tests of `buraksezer/consistent` use.
    Fnv1,
    /// The first 8 bytes of BLAKE3, little-endian: what `operator-scaling` uses.
    Blake3,
}

impl KeyHash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn hash(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Xxh3 => xxhash_rust::xxh3::xxh3_64(bytes),
            Self::Xxh64 => xxhash_rust::xxh64::xxh64(bytes, 0),
            Self::Fnv1 => bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(*byte)
            }),
            Self::Blake3 => {
                let mut first = [0; 8];
                first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
                u64::from_le_bytes(first)
            }
        }
    }
}
