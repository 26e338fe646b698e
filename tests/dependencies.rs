//! The dependency graph, as far as it can be checked without tools that have to be installed.

use std::{collections::BTreeSet, fs, path::Path};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("a file")
}

/// The text between quotes after `key` on each line that starts with `start`.
fn quoted<'t>(text: &'t str, start: &str, key: &str) -> BTreeSet<&'t str> {
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with(start));
    lines.filter_map(|line| line.split_once(key)?.1.split('"').nth(1)).collect()
}

/// `Cargo.lock` holds whatever any platform and any feature can bring in, so a name that is not
/// there cannot be in a build.
#[test]
fn no_banned_crate_is_in_the_graph() {
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let banned = quoted(&deny, "{ crate =", "crate =");
    assert!(banned.contains("aws-lc-rs") && banned.contains("openssl-sys"), "{banned:?}");
    let used = quoted(&lock, "name =", "name =");
    assert!(used.contains("kube") && used.contains("ring"), "Cargo.lock is not read correctly");
    let both: Vec<_> = banned.intersection(&used).collect();
    assert!(
        both.is_empty(),
        "{both:?}: see their reasons in deny.toml; `cargo tree -i` says who brings them"
    );
}

#[test]
fn every_crate_comes_from_the_one_registry() {
    let lock = read("Cargo.lock");
    let sources = quoted(&lock, "source =", "source =");
    assert_eq!(
        sources,
        BTreeSet::from(["registry+https://github.com/rust-lang/crates.io-index"]),
        "only what is published and stays published can be built again"
    );
}

/// Everything else that names the version, or the compiler, says what `Cargo.toml` says.
#[test]
fn the_version_and_the_compiler_are_said_once() {
    let version = env!("CARGO_PKG_VERSION");
    for (page, line) in [
        ("deploy/base/deployment.yaml", "image: ksm-scale-operator:"),
        ("deploy/helm/ksm-scale-operator/Chart.yaml", "version: "),
        ("deploy/helm/ksm-scale-operator/Chart.yaml", "appVersion: "),
        ("docs/guides/gitops.md", "newTag: "),
        ("docs/validate.md", "rev: v"),
        ("Dockerfile", "registry.example.com/ksm-scale-operator:"),
        ("README.md", "docker build --tag registry.example.com/ksm-scale-operator:"),
    ] {
        let text = read(page);
        let said: Vec<_> =
            text.match_indices(line).map(|(at, _)| &text[at + line.len()..]).collect();
        assert!(!said.is_empty(), "{page} has no {line:?} any more");
        assert!(
            said.iter().all(|rest| rest.starts_with(version)),
            "{page}: {line:?} is not {version}"
        );
    }

    let manifest = read("Cargo.toml");
    let [oldest] = Vec::from_iter(quoted(&manifest, "rust-version = \"", "rust-version ="))[..]
    else {
        panic!("one rust-version")
    };
    let toolchain = read("rust-toolchain.toml");
    let [pinned] = Vec::from_iter(quoted(&toolchain, "channel", "channel"))[..] else {
        panic!("one channel")
    };
    // So the oldest compiler is the one that all tests run with.
    assert_eq!(pinned.strip_prefix(oldest), Some(".0"), "{oldest} and {pinned}");
    let dockerfile = read("Dockerfile");
    for line in [format!("rust:{pinned}-alpine"), format!("RUSTUP_TOOLCHAIN={pinned} ")] {
        assert!(dockerfile.contains(&line), "Dockerfile: {line}");
    }
}
