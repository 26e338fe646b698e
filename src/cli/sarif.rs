//! Findings as SARIF 2.1.0, the format of code review:
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>. GitHub's demands on top of it:
//! <https://docs.github.com/en/code-security/reference/code-scanning/sarif-support-for-code-scanning>.

use super::validate::Finding;
use crate::{names::OPERATOR, rules::RULES};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write as _};

/// Rules that stand in no table with a text that fits every finding.
const ABOUT: [(&str, &str); 13] = [
    (
        "FieldValueForbidden",
        "A namespace or image that the operator's administrator does not allow",
    ),
    ("FieldValueInvalid", "A value that breaks a bound or a pattern"),
    ("FieldValueNotSupported", "A value that is none of the supported ones"),
    ("FieldValueRequired", "A field that has to be there is not"),
    ("FieldValueTooLong", "A value that is longer than allowed"),
    ("FieldValueTypeInvalid", "A value of the wrong JSON type"),
    ("UnknownField", "A field that a KSMScale does not have"),
    ("drains-blocked", "A PodDisruptionBudget that lets no pod go"),
    ("duplicate-metrics", "Several pods without sharding export every series each"),
    ("long-name", "A name that leaves little room in the names of what is made for it"),
    ("old-image-with-sharding", "A release of kube-state-metrics with known faults in sharding"),
    ("scope-overlap", "Several KSMScales export the same cluster"),
    ("unfit-shard-count", "A number of shards that does not fit the number of nodes"),
];

/// The log of one run.
pub(super) fn log(findings: &[Finding]) -> Value {
    let ids: BTreeSet<_> = findings.iter().map(|finding| &*finding.rule).collect();
    let rules: Vec<_> = ids.iter().map(|id| rule(id, findings)).collect();
    let at = |id: &str| ids.iter().position(|other| *other == id);
    let results: Vec<_> =
        findings.iter().map(|finding| result(finding, at(&finding.rule))).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": OPERATOR,
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn rule(id: &str, findings: &[Finding]) -> Value {
    let level = findings.iter().find(|finding| finding.rule == id).map(|finding| finding.severity);
    let (of_table, of_schema) = (
        RULES.iter().find(|rule| rule.id == id).map(|rule| rule.message),
        ABOUT.iter().find(|(other, _)| *other == id).map(|(_, text)| *text),
    );
    let about = of_table.or(of_schema).unwrap_or(id);
    let help = format!("{about}. The reference of KSMScale has every field with its bounds.");
    json!({
        "id": id,
        "shortDescription": {"text": about},
        "fullDescription": {"text": about},
        "help": {"text": help},
        "defaultConfiguration": {"level": level},
    })
}

fn result(finding: &Finding, rule: Option<usize>) -> Value {
    let Finding { severity, file, place, name, field, message, .. } = finding;
    json!({
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": severity,
        "message": {"text": format!("KSMScale {name}: {field}: {message}")},
        "locations": [{
            "physicalLocation": {
                "artifactLocation": {"uri": uri(file)},
                "region": {"startLine": place.line, "startColumn": place.column},
            },
            "logicalLocations": [{"fullyQualifiedName": format!("KSMScale/{name}/{field}")}],
        }],
    })
}

/// A path as the URI reference that it is relative to where the command ran: in CI the repository's
/// top, of which code review knows the files.
fn uri(file: &str) -> String {
    let file = file.strip_prefix("./").unwrap_or(file);
    let mut uri = String::from(if file.starts_with('/') { "file://" } else { "" });
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn o2_a_path_is_a_uri_whatever_is_in_it() {
        assert_eq!(uri("./a/b.yaml"), "a/b.yaml");
        assert_eq!(uri("/tmp/b.yaml"), "file:///tmp/b.yaml");
        assert_eq!(uri("über uns/50%.yaml"), "%C3%BCber%20uns/50%25.yaml");
        assert_eq!(uri("<stdin>"), "%3Cstdin%3E");
    }
}
