//! Where pods may run and with which image (W5).
//!
//! Whoever may write a KSMScale picks an image, and the operator runs it in a namespace of their
//! choice under an account that lists most of the cluster. So the operator's administrator bounds
//! both, and the bounds hold wherever a KSMScale is looked at: in the webhook, before each
//! reconcile (the webhook may be off or failed open), and offline.

use crate::{
    names::OPERATOR_NAMESPACE,
    rules::Reason,
    validate::{Scale, Valid, Violation, Violations},
};
use std::{borrow::Cow, fmt, str::FromStr};

/// The repository of the default image, which is the only one unless the administrator says
/// otherwise.
const UPSTREAM: &str = "registry.k8s.io/kube-state-metrics/kube-state-metrics";

/// What KSMScales may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Namespaces of the pods. A pattern ends in `*`, or is the whole name.
    pub namespaces: Vec<NamespacePattern>,
    /// Repositories of the pods' image.
    pub images: Vec<ImagePattern>,
}

impl Default for Allowed {
    /// The operator's own namespace, and the repository of the default image.
    fn default() -> Self {
        let (namespace, image) = (OPERATOR_NAMESPACE.to_owned(), UPSTREAM.to_owned());
        Self {
            namespaces: vec![NamespacePattern(Pattern::Exact(namespace))],
            images: vec![ImagePattern(Pattern::Exact(image))],
        }
    }
}

impl Allowed {
    /// Every namespace and every image.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            namespaces: vec![NamespacePattern(Pattern::Any)],
            images: vec![ImagePattern(Pattern::Any)],
        }
    }

    /// The verdict of [`crate::validate::validate`], with what is not allowed as violations too.
    ///
    /// # Errors
    /// Every violation.
    pub fn check(
        &self,
        verdict: Result<Valid<Scale>, Violations>,
    ) -> Result<Valid<Scale>, Violations> {
        let scale = verdict?;
        match self.violations(&scale) {
            none if none.is_empty() => Ok(scale),
            found => Err(Violations(found)),
        }
    }

    /// What `scale` asks for and may not have, by field; empty if it may have everything.
    #[must_use]
    pub fn violations(&self, scale: &Scale) -> Vec<Violation> {
        let (namespace, repository) = (&scale.namespace, repository(&scale.image));
        let mut found = Vec::new();
        if !self.namespaces.iter().any(|pattern| pattern.0.matches(namespace)) {
            found.push(forbidden("spec.namespace", self.namespace_forbidden(namespace)));
        }
        if !self.images.iter().any(|pattern| pattern.0.matches(&repository)) {
            found.push(forbidden("spec.monitorImage", self.image_forbidden(&repository)));
        }
        found
    }

    /// What is said of a namespace that is not allowed.
    pub(crate) fn namespace_forbidden(&self, namespace: &str) -> String {
        format!(
            "Forbidden: the operator may not put pods in namespace {namespace:?}, only in {}: take one of these, or have it added to --allowed-namespaces",
            list(&self.namespaces)
        )
    }

    /// What is said of an image that is not allowed, by its repository.
    pub(crate) fn image_forbidden(&self, repository: &str) -> String {
        format!(
            "Forbidden: the operator may not run {repository}, only {}: take one of these, or have it added to --allowed-images",
            list(&self.images)
        )
    }
}

fn forbidden(field: &str, message: String) -> Violation {
    Violation { field: field.to_owned(), reason: Reason::FieldValueForbidden, message }
}

fn list(patterns: &[impl fmt::Display]) -> String {
    let texts: Vec<_> = patterns.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "nowhere".to_owned() } else { texts.join(", ") }
}

/// Everything, what begins so, or exactly this.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    Prefix(String),
    Exact(String),
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => text.starts_with(prefix),
            Self::Exact(exact) => text == exact,
        }
    }

    /// [`Pattern::matches`] as CEL, over an expression for the text. No pattern has a character
    /// that a literal would have to escape.
    fn cel(&self, text: &str) -> String {
        match self {
            Self::Any => "true".to_owned(),
            Self::Prefix(prefix) => format!("{text}.startsWith('{prefix}')"),
            Self::Exact(exact) => format!("{text} == '{exact}'"),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

/// A namespace, `team-*`, or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePattern(Pattern);

impl NamespacePattern {
    /// As CEL, over an expression for the namespace's name.
    pub(crate) fn cel(&self, namespace: &str) -> String {
        self.0.cel(namespace)
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NamespacePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |text: &str| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !text.is_empty() && text.len() <= 63 && text.bytes().all(fits)
        };
        let bad =
            || format!("{text:?} is no namespace: write a name, a prefix such as team-*, or *");
        let pattern = match text.strip_suffix('*') {
            Some("") => Pattern::Any,
            Some(prefix) if name(prefix) => Pattern::Prefix(prefix.to_owned()),
            None if name(text) => Pattern::Exact(text.to_owned()),
            _ => return Err(bad()),
        };
        Ok(Self(pattern))
    }
}

/// A repository without tag and digest, everything below one (`registry.example.com/mirror/*`), or
/// `*`. Any tag and digest of the repository will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePattern(Pattern);

impl ImagePattern {
    /// As CEL, over an expression for what [`REPOSITORY_CEL`] gives.
    pub(crate) fn cel(&self, repository: &str) -> String {
        self.0.cel(repository)
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImagePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!(
                "{text:?} is no repository: {why}; write one such as {UPSTREAM}, everything below a path such as registry.example.com/mirror/*, or *"
            ))
        };
        let pattern = match text.strip_suffix('*') {
            Some("") => Pattern::Any,
            // Without the slash, `registry.example.com*` would match a stranger's registry.
            Some(prefix) if prefix.len() > 1 && prefix.ends_with('/') => {
                Pattern::Prefix(with_registry(prefix).into_owned())
            }
            Some(_) => return bad("a pattern ends in /*"),
            None if text.is_empty() => return bad("it is empty"),
            None if repository(text) != with_registry(text) => {
                return bad("it has a tag or a digest");
            }
            None => Pattern::Exact(with_registry(text).into_owned()),
        };
        let said = pattern.to_string();
        let name = said.strip_suffix('*').unwrap_or(&said);
        if name.contains('*') {
            return bad("* stands at its end only");
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        if !name.chars().all(fits) {
            return bad("no repository has such a character");
        }
        Ok(Self(pattern))
    }
}

/// The repository of an image reference, with its registry.
fn repository(image: &str) -> Cow<'_, str> {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    // A colon before the last slash is a registry's port.
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    with_registry(name)
}

/// As container runtimes read a reference: without a registry it is Docker Hub's, and without a
/// path of its library (<https://github.com/distribution/reference>, `normalize.go`).
fn with_registry(name: &str) -> Cow<'_, str> {
    match name.split_once('/') {
        Some((first, _)) if is_registry(first) => name.into(),
        Some(_) => format!("docker.io/{name}").into(),
        None => format!("docker.io/library/{name}").into(),
    }
}

fn is_registry(first: &str) -> bool {
    // Only a registry may have capitals: `Evil/x` is not Docker Hub's.
    first == "localhost" || first.contains(|c: char| matches!(c, '.' | ':' | 'A'..='Z'))
}

/// [`repository`] without its registry, as CEL, over `object.spec.monitorImage`.
pub(crate) const NAME_CEL: &str = r"object.spec.monitorImage.split('@')[0].find('^(.*/)?[^:/]*')";

/// [`with_registry`] as CEL, over a variable for what [`NAME_CEL`] gives.
pub(crate) const REPOSITORY_CEL: &str = "variables.imageName.matches('^([^/]*[.:A-Z][^/]*|localhost)/') ? variables.imageName : (variables.imageName.contains('/') ? 'docker.io/' : 'docker.io/library/') + variables.imageName";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::validate;
    use serde_json::{Value, json};

    fn fields(allowed: &Allowed, spec: &Value) -> Vec<String> {
        let scale = validate(&json!({"metadata": {"name": "x"}, "spec": spec})).unwrap();
        allowed.violations(&scale).into_iter().map(|violation| violation.field).collect()
    }

    fn allowed(namespaces: &[&str], images: &[&str]) -> Allowed {
        Allowed {
            namespaces: namespaces.iter().map(|text| text.parse().unwrap()).collect(),
            images: images.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn w5_by_default_pods_run_in_the_operators_namespace_with_the_upstream_image() {
        let default = Allowed::default();
        assert_eq!(fields(&default, &json!({})), [""; 0]);
        let digest = format!("{UPSTREAM}@sha256:{}", "0".repeat(64));
        assert_eq!(fields(&default, &json!({"monitorImage": digest})), [""; 0]);
        let both = json!({"namespace": "kube-system", "monitorImage": "evil.example.com/x:v1"});
        assert_eq!(fields(&default, &both), ["spec.namespace", "spec.monitorImage"]);
    }

    #[test]
    fn w5_a_namespace_matches_whole_or_by_its_beginning() {
        let some = allowed(&["monitoring", "team-*"], &["*"]);
        for (namespace, fits) in
            [("monitoring", true), ("team-a", true), ("monitoring2", false), ("team", false)]
        {
            let found = fields(&some, &json!({"namespace": namespace}));
            assert_eq!(found.is_empty(), fits, "{namespace}");
        }
        assert_eq!(fields(&allowed(&["*"], &["*"]), &json!({"namespace": "any"})), [""; 0]);
    }

    #[test]
    fn w5_an_image_matches_by_its_repository_however_it_is_written() {
        let some = allowed(&["*"], &["ksm", "mirror.example.com:5000/k8s/*", "docker.io/Evil/*"]);
        for (image, fits) in [
            ("ksm", true),
            ("ksm:v2", true),
            ("docker.io/library/ksm:v2", true),
            ("mirror.example.com:5000/k8s/ksm:v2", true),
            ("mirror.example.com:5000/k8s/a/b", true),
            ("mirror.example.com:5000/k8sx/ksm", false),
            ("mirror.example.com/k8s/ksm", false),
            ("other/ksm", false),
            ("ksm2", false),
            ("Evil/ksm", false),
        ] {
            let found = fields(&some, &json!({"monitorImage": image}));
            assert_eq!(found.is_empty(), fits, "{image}");
        }
    }

    #[test]
    fn w5_a_pattern_that_would_allow_more_than_it_says_is_refused() {
        for text in ["", "Team", "a*b", "**", "-*-", "a/b", "a.b"] {
            let error = text.parse::<NamespacePattern>().unwrap_err();
            assert!(error.contains("no namespace"), "{error}");
        }
        for text in [
            "",
            "registry.example.com*",
            "a:v1",
            "a@sha256:00",
            "a/*/b",
            "*/a",
            "/*",
            "a/**",
            "a'",
            "a b",
            "a,b",
        ] {
            let error = text.parse::<ImagePattern>().unwrap_err();
            assert!(error.contains("no repository"), "{error}");
        }
    }
}
