//! What pages refer to is there: files, headings, and the tests that they name.

#![allow(clippy::panic, reason = "a helper of tests reports as a test does")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the repository with this ending, but for what is built.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() && !entry.is_symlink() && !name.starts_with('.') && name != "target" {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == ending) {
                found.push(entry);
            }
        }
    }
    found
}

/// The page without code, in which nothing is a link or a heading.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        if !fence && !in_block {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// Headings, as GitHub makes anchors of them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    headings
        .map(anchor)
        .map(|anchor| {
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
        })
        .collect()
}

/// Targets of links, outside of code.
fn links(page: &str) -> Vec<String> {
    let text: String = page.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// Why a link of the page at `path` leads nowhere.
fn broken(path: &Path, target: &str) -> Option<String> {
    if target.contains("://") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let there =
        if file.is_empty() { path.to_owned() } else { path.parent().expect("a folder").join(file) };
    if !there.exists() {
        return Some(format!("{}: there is no {target}", path.display()));
    }
    let page = || prose(&fs::read_to_string(&there).expect("a page"));
    let lost = !anchor.is_empty() && !anchors(&page()).contains(anchor);
    lost.then(|| format!("{}: {} has no heading #{anchor}", path.display(), there.display()))
}

#[test]
fn o8_every_link_of_every_page_leads_somewhere() {
    let mut wrong = Vec::new();
    for path in files("md") {
        let page = prose(&fs::read_to_string(&path).expect("a page"));
        wrong.extend(links(&page).iter().filter_map(|target| broken(&path, target)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names of tests in the table of threats, and in others like it.
#[test]
fn o8_every_test_that_a_page_names_is_there() {
    let code: String =
        files("rs").iter().map(|file| fs::read_to_string(file).expect("source")).collect();
    let is_test = |word: &str| {
        let is_id = |id: &str| id.len() > 1 && id[1..].chars().all(|c| c.is_ascii_digit());
        let mut parts = word.splitn(2, '_');
        let id = parts.next().unwrap_or_default();
        let plain = |rest: &str| rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        parts.next().is_some_and(plain)
            && id.starts_with(|c: char| c.is_ascii_lowercase())
            && is_id(id)
    };
    let mut named = 0;
    for path in files("md") {
        let page = prose(&fs::read_to_string(&path).expect("a page"));
        for word in page.split('`').skip(1).step_by(2).filter(|word| is_test(word)) {
            named += 1;
            assert!(code.contains(&format!("fn {word}(")), "{}: no test {word}", path.display());
        }
    }
    assert!(named > 20, "only {named} tests are named");
}

#[test]
fn o8_anchors_are_those_that_github_makes() {
    let page = "# One `two`\n## What, now?\n## What now\ntext\n## Ünïcode – and_more\n";
    let wanted = ["one-two", "what-now", "what-now-1", "ünïcode--and_more"];
    assert_eq!(anchors(page), wanted.map(str::to_owned).into());
    assert_eq!(links("[a](b.md) `[c](d)` [e](f#g)"), ["b.md", "f#g"]);
}
