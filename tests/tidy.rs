//! The architecture, as a test: which module may use which, and which requirement is tested where.

#![allow(clippy::panic, reason = "a helper of tests reports as a test does")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Layers from the bottom up. A module may use those of lower layers and itself; a submodule
/// stands where the longest prefix that is listed here stands.
const LAYERS: &[&[&str]] = &[
    &["names"],
    &["api"],
    &["rules"],
    &["crd"],
    &["validate", "coverage", "certificates"],
    &["observed", "allowed", "audit", "exposition", "exposure"],
    &["plan"],
    &["status", "warnings", "forecast", "source"],
    &["admission", "readiness"],
    &["telemetry"],
    &["server", "membership"],
    &["controller", "webhook"],
    &["manifests"],
    &["cli"],
];

/// Layers below this one never wait, read a clock or talk to a cluster.
const PURE: &[&str] = &[
    "names",
    "api",
    "rules",
    "crd",
    "validate",
    "coverage",
    "observed",
    "plan",
    "status",
    "warnings",
    "admission",
    "forecast",
    "source",
    "certificates",
    "audit",
    "exposition",
    "exposure",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
            match entry.extension() {
                _ if entry.is_dir() => folders.push(entry),
                Some(ending) if ending == "rs" => found.push(entry),
                _ => {}
            }
        }
    }
    found
}

/// The first-level module that a source file belongs to.
fn module_of(file: &Path) -> String {
    let path = file.strip_prefix(root().join("src")).expect("below src");
    let first = path.components().next().expect("a component");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer_of(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer: give it one in LAYERS"))
}

fn used_modules(text: &str) -> BTreeSet<String> {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let text = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let name =
        |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => drop(used.insert(name(rest))),
            Some(list) => {
                let (mut depth, mut start) = (1, true);
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => start = true,
                        c if start && depth == 1 && c.is_alphabetic() => {
                            used.insert(name(&list[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    used.into_iter().filter(|m| m.chars().next().is_some_and(char::is_lowercase)).collect()
}

#[test]
fn modules_use_only_what_stands_below_them() {
    for file in rust_files("src") {
        let module = module_of(&file);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        for used in used_modules(&fs::read_to_string(&file).expect("source")) {
            assert!(
                used == module || layer_of(&used) < layer_of(&module),
                "{} uses crate::{used}, which does not stand below {module}",
                file.display()
            );
        }
    }
}

#[test]
fn the_pure_core_does_no_io() {
    let banned = [
        "async fn",
        ".await",
        "kube::Client",
        "tokio::",
        "std::fs",
        "std::net",
        "std::env",
        "tracing::",
        "Instant::now",
        "Timestamp::now",
    ];
    for file in rust_files("src").iter().filter(|file| PURE.contains(&module_of(file).as_str())) {
        let text = fs::read_to_string(file).expect("source");
        let shipped = text.split("#[cfg(test)]").next().expect("a first part");
        if file.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        for word in banned {
            assert!(!shipped.contains(word), "{} says {word}", file.display());
        }
    }
}

#[test]
fn no_source_file_is_longer_than_it_can_be_read() {
    for file in [
        "src",
        "devcluster/src",
        "lease-sharding/src",
        "lease-sharding/tests",
        "lease-sharding/examples",
        "lease-sharding/benches",
        "tests",
        "benches",
        "examples",
        "fuzz/src",
    ]
    .into_iter()
    .filter(|f| root().join(f).exists())
    .flat_map(rust_files)
    {
        let lines = fs::read_to_string(&file).expect("source").lines().count();
        let limit = if file.file_name().is_some_and(|name| name == "tests.rs") { 600 } else { 450 };
        assert!(lines <= limit, "{} has {lines} lines: it holds two ideas", file.display());
    }
}

/// Requirements of the scope built so far. Each is named by a test, as `r14_…` in its name.
const REQUIREMENTS: &[&str] = &[
    "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "r14", "r15", "r16",
    "r17", "r18", "r20", "r21", "r22", "r23", "r25", "r26", "r27", "r28", "r29", "r30", "r31",
    "r32", "r34", "r35", "r36", "r37", "r38", "r39", "r40", "r42", "r43", "r44", "r45", "r46",
    "r47", "r49", "r63", "r64", "r68", "r70", "r71", "r72", "r75", "r84", "w1", "w2", "w3", "w4",
    "w5", "w6", "w7", "t1", "t2", "t3", "o1", "o4", "o5", "o6", "o7", "o8", "o9", "s1", "s2", "s3",
    "s4", "s5", "s6", "s7", "v1", "v2", "v3", "v4", "v5", "v6",
];

#[test]
fn every_requirement_is_named_by_a_test() {
    let mut named = BTreeSet::new();
    let folders = ["src", "tests", "lease-sharding/src", "lease-sharding/tests"];
    for file in folders.into_iter().flat_map(rust_files) {
        let text = fs::read_to_string(file).expect("source");
        for line in text.lines().filter_map(|line| line.trim_start().split_once("fn ")) {
            named.extend(line.1.split(['_', '(']).map(str::to_owned));
        }
    }
    let missing: Vec<_> = REQUIREMENTS.iter().filter(|id| !named.contains(**id)).collect();
    assert!(missing.is_empty(), "no test names {missing:?}");
}
