//! Everything that fuzzing has found interesting, again, and a little around it. Needs no fuzzer;
//! `make fuzz` goes on from here.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use proptest::{prelude::*, sample::Index, strategy::ValueTree as _, test_runner::TestRunner};
use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library elsewhere")]
mod targets;

/// Inputs made of each one in a corpus.
const VARIANTS: usize = 8;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The files in a folder, without their endings, in order.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let stem = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    entries.map(|entry| stem(entry.expect("an entry").path())).collect()
}

/// The same bytes with one to three changes: another byte, a copy of a part, an end.
fn variant(input: &[u8], runner: &mut TestRunner) -> Vec<u8> {
    let change = (any::<Index>(), any::<Index>(), any::<u8>(), 0..4);
    let changes =
        prop::collection::vec(change, 1..=3).new_tree(runner).expect("no filter").current();
    let mut bytes = input.to_vec();
    for (at, to, byte, what) in changes {
        let length = bytes.len().max(1);
        let (at, to) = (at.index(length).min(bytes.len()), to.index(length).min(bytes.len()));
        match what {
            0 | 1 if at < bytes.len() => bytes[at] = byte,
            2 => drop(bytes.splice(at..at, bytes.clone()[at.min(to)..at.max(to)].to_vec())),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn replay(name: &str) {
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let corpus = folder("corpus").join(name);
    let mut runner = TestRunner::deterministic();
    for file in
        fs::read_dir(&corpus).expect("a corpus").map(|entry| entry.expect("an entry").path())
    {
        let input = fs::read(&file).expect("an input");
        let variants = (0..VARIANTS).map(|_| variant(&input, &mut runner)).collect::<Vec<_>>();
        for bytes in [input].into_iter().chain(variants) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
                println!("of {}: {}", file.display(), bytes.escape_ascii());
                resume_unwind(panic);
            }
        }
    }
}

#[test]
fn w6_every_body_in_the_corpus_is_answered() {
    replay("raw_reviews");
}

#[test]
fn w3_every_review_in_the_corpus_is_judged_by_what_it_changes() {
    replay("reviews");
}

#[test]
fn w1_every_patch_in_the_corpus_is_what_defaulting_means() {
    replay("patches");
}

#[test]
fn t2_every_secret_in_the_corpus_is_judged() {
    replay("certificates");
}

#[test]
fn w4_every_warning_in_the_corpus_reaches_the_user() {
    replay("warnings");
}

#[test]
fn w6_no_client_in_the_corpus_keeps_others_from_being_served() {
    replay("connections");
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let known: BTreeSet<_> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("fuzz_targets")), known);
    assert_eq!(names(&folder("corpus")), known);
    let manifest = fs::read_to_string(folder("Cargo.toml")).expect("text");
    let is_built = |name: &String| manifest.contains(&format!("name = \"{name}\""));
    assert!(known.iter().all(is_built), "{known:?} are not all in fuzz/Cargo.toml");
}
