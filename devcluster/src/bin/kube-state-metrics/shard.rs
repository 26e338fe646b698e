//! kube-state-metrics' choice of a shard, a second time: tests judge the operator's by this one.

/// Which of `total` shards serves the object: jump consistent hash of the UID's FNV-1a hash.
pub(crate) fn shard_of(uid: &str, total: u32) -> u32 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    jump(hash, i64::from(total))
}

/// As in "A Fast, Minimal Memory, Consistent Hash Algorithm" by Lamping and Veach.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the paper defines it on doubles"
)]
fn jump(mut key: u64, buckets: i64) -> u32 {
    let (mut bucket, mut next) = (-1, 0_i64);
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    bucket as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_those_of_the_real_one() {
        assert_eq!([jump(42, 57), jump(256, 1024), jump(0xDEAD_10CC, 666)], [43, 520, 361]);
        let shards = |uid| [2, 3, 5, 7, 10].map(|total| shard_of(uid, total));
        assert_eq!(shards("6f9619ff-8b86-d011-b42d-00c04fc964ff"), [1, 2, 2, 2, 2]);
        assert_eq!(shards("550e8400-e29b-41d4-a716-446655440000"), [1, 1, 4, 4, 4]);
    }
}
