//! Whether a command printed what its page says.

use regex::Regex;

/// What differs between two runs, and what it is called instead.
const VARIES: [(&str, &str); 6] = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    (r"\b(\d+d)?(\d+h)?(\d+m)?\d+s\b|\b\d+[dhm](\d+[hms])*\b", "<age>"),
    (r"\bksm-scale-operator-[0-9a-z]{6,10}-[0-9a-z]{5}\b", "<replica>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{8,}\b", "<hash>"),
    (r"\b(kube-state-metrics-[0-9a-z-]+-\d+)-[0-9a-z]{5}\b", "$1-<revision>"),
    (r"[ \t]+", " "),
];

/// The same text without what differs from run to run: times, ages, hashes, and how wide columns are.
fn normal(text: &str) -> Vec<String> {
    let replace = |line: &str| {
        VARIES.iter().fold(line.to_owned(), |line, (pattern, name)| {
            Regex::new(pattern).expect("a pattern").replace_all(&line, *name).into_owned()
        })
    };
    let lines = text.trim().lines().map(|line| replace(line).trim_end().to_owned());
    // kubectl tells causes in no order.
    let mut lines: Vec<_> = lines.collect();
    lines
        .chunk_by_mut(|one, next| one.starts_with("* ") && next.starts_with("* "))
        .for_each(<[_]>::sort_unstable);
    lines
}

/// Whether `printed` is what `shown` says. A line `…` of `shown` stands for any number of lines.
pub(crate) fn agrees(shown: &str, printed: &str) -> bool {
    fn rest(shown: &[String], printed: &[String]) -> bool {
        match shown.split_first() {
            None => printed.is_empty(),
            Some((line, after)) if line == "…" => {
                (0..=printed.len()).any(|skipped| rest(after, &printed[skipped..]))
            }
            Some((line, after)) => printed
                .split_first()
                .is_some_and(|(first, others)| first == line && rest(after, others)),
        }
    }
    rest(&normal(shown), &normal(printed))
}

#[test]
fn o8_only_what_differs_from_run_to_run_may_differ() {
    let shown = "NAME   NODES   AGE\ndev    4       30s\n…\nlast 2026-01-01T00:00:00Z\n";
    let printed = "NAME  NODES  AGE\ndev   4      1m5s\na\nb\nlast 2027-11-30T10:00:01.5Z\n";
    assert!(agrees(shown, printed));
    assert!(!agrees(shown, &printed.replace('4', "5")), "a number is no age");
    assert!(!agrees(shown, &printed.replace("last", "least")));
    assert!(agrees("* b\n* a\n", "* a\n* b\n"));
    let replica = "ksm-scale-operator-5f7d9c8b6d-x2x4k";
    assert!(agrees(&format!("pod {replica}"), "pod ksm-scale-operator-b6d5f7d9c8-zzzzz"));
}
