//! Every number in `vectors/ring.json`, which the Go library itself printed. `RING_VECTORS` names
//! another file of the same form.

use lease_sharding::{
    hash::KeyHash,
    ring::{Compat, Error, Ring, RingConfig},
};
use serde_json::Value;

const SECTIONS: [&str; 5] = ["hashes", "cases", "sequences", "edge_cases", "order_dependence"];

fn rows(section: &str) -> Vec<Value> {
    #[expect(clippy::disallowed_methods, reason = "the variable is these tests' interface")]
    let path = std::env::var("RING_VECTORS").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/ring.json").to_owned()
    });
    let text = std::fs::read_to_string(&path).expect("vectors can be read");
    let all: Value = serde_json::from_str(&text).expect("vectors are JSON");
    let rows = all[section].as_array().cloned().unwrap_or_default();
    assert!(!rows.is_empty(), "{path} has no {section}");
    rows
}

fn hash_of(row: &Value) -> KeyHash {
    let named =
        [("blake3-le64", KeyHash::Blake3), ("xxh64", KeyHash::Xxh64), ("fnv1-64", KeyHash::Fnv1)];
    let found = named.into_iter().find(|(name, _)| row["hash"].as_str() == Some(name));
    found.expect("a known hash").1
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a number")).expect("a small number")
}

fn compat_of(row: &Value) -> Compat {
    let named = [("v0.10.0", Compat::V0_10), ("v1.0.0", Compat::V1_0)];
    let found = named.into_iter().find(|(name, _)| row["library"].as_str() == Some(name));
    found.expect("a known library").1
}

fn config_of(row: &Value) -> RingConfig {
    RingConfig {
        compat: compat_of(row),
        hash: hash_of(row),
        partitions: number(&row["partition_count"]),
        replication: number(&row["replication_factor"]),
        load: row["load"].as_f64().expect("a load"),
    }
}

fn names(value: &Value) -> Vec<String> {
    let names = value.as_array().expect("names");
    names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn hex(text: &Value) -> u64 {
    u64::from_str_radix(text.as_str().expect("hex"), 16).expect("hex")
}

/// The partition table, loads and capacity of `ring` as `row` says.
fn check_table(ring: &Ring, row: &Value, what: &str) {
    let members = names(&row["members"]);
    let expected: Vec<_> = row["partitions"]
        .as_array()
        .expect("partitions")
        .iter()
        .map(|at| members[number(at) as usize].as_str())
        .collect();
    let owners: Vec<_> =
        (0..ring.partitions()).filter_map(|p| ring.owner_of_partition(p)).collect();
    assert_eq!(owners, expected, "{what}");
    assert_eq!(ring.capacity(), u64::from(number(&row["average_load"])), "{what}");
    let loads: Vec<_> = members.iter().map(|m| ring.load(m) as u64).collect();
    let expected: Vec<_> =
        row["loads"].as_array().expect("loads").iter().filter_map(Value::as_u64).collect();
    assert_eq!(loads, expected, "{what}");
}

#[test]
fn the_vectors_have_every_section() {
    for section in SECTIONS {
        rows(section);
    }
}

#[test]
fn hashes_agree_with_the_vectors() {
    for row in rows("hashes") {
        let text = row["input_hex"].as_str().expect("input");
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
        assert_eq!(hash_of(&row).hash(&bytes), hex(&row["value"]), "{row}");
    }
}

#[test]
fn s4_tables_keys_and_closest_members_agree_with_the_go_library() {
    for row in rows("cases") {
        let what = row["name"].as_str().expect("a name");
        let mut members = names(&row["members"]);
        let ring = Ring::new(config_of(&row), members.clone()).expect(what);
        check_table(&ring, &row, what);
        members.reverse();
        assert_eq!(Ring::new(config_of(&row), members).as_ref(), Ok(&ring), "{what}, reversed");
        let keys = row["keys"].as_array().expect("keys");
        assert!(!keys.is_empty(), "{what} has no keys");
        for key in keys {
            let bytes = key["key"].as_str().expect("a key").as_bytes();
            assert_eq!(hash_of(&row).hash(bytes), hex(&key["hash"]), "{what} {key}");
            assert_eq!(ring.partition_of(bytes), number(&key["partition"]), "{what} {key}");
            assert_eq!(ring.owner(bytes), key["owner"].as_str().expect("an owner"), "{what} {key}");
        }
        for closest in row["closest"].as_array().into_iter().flatten() {
            let key = closest["key"].as_str().expect("a key").as_bytes();
            let found = ring.closest(key, number(&closest["n"]) as usize).expect(what);
            assert_eq!(found, names(&closest["result"]), "{what} {closest}");
        }
        let all = ring.members().len();
        let none = Error::TooFewMembers { asked: all + 1, members: all };
        assert_eq!(ring.closest(b"key", all + 1), Err(none), "{what}");
    }
}

#[test]
fn additions_and_removals_relocate_what_they_relocate_in_the_go_library() {
    for row in rows("sequences") {
        let mut before: Option<Ring> = None;
        let steps = row["steps"].as_array().expect("steps");
        assert!(!steps.is_empty(), "a sequence without steps");
        for step in steps {
            let what = format!("{} {} {}", row["name"], step["op"], step["member"]);
            let after = match Ring::new(config_of(&row), names(&step["members"])) {
                Err(Error::NoMembers) => None,
                ring => Some(ring.expect(&what)),
            };
            let pair = before.as_ref().zip(after.as_ref());
            let relocated = pair.map_or(0, |(before, after)| before.relocated(after));
            assert_eq!(relocated as u64, step["relocated"].as_u64().expect("a count"), "{what}");
            match &after {
                Some(ring) => check_table(ring, step, &what),
                None => assert_eq!(number(&step["average_load"]), 0, "{what}"),
            }
            before = after;
        }
    }
}

#[test]
fn s4_what_panics_in_the_go_library_is_an_error_here() {
    for row in rows("edge_cases") {
        let what = format!("{} {}", row["name"], row["library"]);
        let mut members = names(&row["members"]);
        if let Some(count) = members[0].strip_prefix('(') {
            let count = count.split(' ').next().and_then(|n| n.parse().ok()).expect("a count");
            members = (0..count).map(|i: u32| format!("ksm-operator-6d5f7c9b48-{i:05}")).collect();
        }
        let built = Ring::new(config_of(&row), members.clone());
        let after = row["then"].as_str().map_or(built, |gone| {
            Ring::new(config_of(&row), members.into_iter().filter(|member| member != gone))
        });
        let outcome = row["outcome"].as_str().expect("an outcome");
        match (outcome.strip_prefix("ok: average_load="), after) {
            (Some("0"), after) => assert_eq!(after, Err(Error::NoMembers), "{what}"),
            (Some(load), after) => {
                assert_eq!(after.expect(&what).capacity().to_string(), load, "{what}");
            }
            // The removal panics there because it left a position behind; the set itself is fine
            // once no two members share a position.
            (None, Ok(ring)) => {
                assert!(outcome.contains("nil pointer"), "{what}: {outcome}");
                assert_eq!(ring.members().len(), 11, "{what}");
            }
            (None, Err(error)) => {
                let no_room = matches!(error, Error::NoRoom { .. });
                let shared = matches!(error, Error::SharedPosition(..));
                let expected = if outcome.contains("not enough room") { no_room } else { shared };
                assert!(expected, "{what}: {outcome}, but here {error}");
            }
        }
    }
}

#[test]
fn order_of_addition_matters_exactly_where_it_does_in_the_go_library() {
    for row in rows("order_dependence") {
        let listed = names(&row["members"]);
        let last = listed.last().and_then(|name| name.strip_prefix("op-")).expect("op-N");
        let last: u32 = last.parse().expect("a number");
        let forward: Vec<_> = (0..=last).map(|i| format!("op-{i}")).collect();
        let reverse: Vec<_> = forward.iter().rev().cloned().collect();
        let config = RingConfig {
            compat: compat_of(&row),
            partitions: number(&row["partition_count"]),
            ..RingConfig::OPERATOR_SCALING
        };
        let one = Ring::in_order_of_addition(config, forward.clone()).expect("a ring");
        let two = Ring::in_order_of_addition(config, reverse).expect("a ring");
        let differ = number(&row["partitions_that_differ_between_forward_and_reverse_insertion"]);
        assert_eq!(one.relocated(&two), differ as usize, "{row}");
        let positions = number(&row["distinct_ring_positions"]);
        assert_eq!(one.distinct_positions(), positions as usize, "{row}");
        let set = Ring::new(config, forward.clone());
        match differ {
            0 => assert_eq!(set.expect("a ring").relocated(&one), 0, "{row}"),
            _ => assert!(matches!(set, Err(Error::SharedPosition(..))), "{row}"),
        }
    }
}
