//! The decision of the admission webhooks, without the server around it: the bytes of a review in,
//! the bytes of an answer out (W1–W6).
//!
//! ```text
//! parse ── malformed ──────────────────────────────► Answer (HTTP 400)
//!   └► Review ── decide ── Final ───────────────────► Answer (HTTP 200)
//!                  └► NeedsAccess ── granted, refused ─► Answer (HTTP 200)
//!                                └── failed ──────────► Answer (HTTP 500)
//! ```
//!
//! The mutating webhook adds defaults. The validating one refuses what [`crate::validate`] and
//! [`crate::allowed`] refuse, all of it at once, in the words of the API server's own field errors.
//! An update is never refused for what the old object had already in a field that stays as it is
//! (W3), and never if it leaves the spec alone or the object is being deleted.

use crate::{
    allowed::Allowed,
    api::KSMScale,
    names::{GROUP, MUTATE_PATH, VALIDATE_PATH},
};
use kube::Resource;

mod access;
mod answer;
mod defaults;
mod review;
mod scan;
mod verdict;

pub use access::Access;
pub use answer::{Answer, Record, Verdict, refusal};

use review::Object;

/// One of the two webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Adds defaults.
    Mutate,
    /// Refuses what cannot be.
    Validate,
}

impl Endpoint {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mutate, Self::Validate];

    /// The webhook at `path`, which is without a query.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        match path {
            MUTATE_PATH => Some(Self::Mutate),
            VALIDATE_PATH => Some(Self::Validate),
            _ => None,
        }
    }

    /// The value of the metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// What of the cluster a decision depends on. Most depend on nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need<'r> {
    /// [`Knowledge::pods`], of the KSMScale with this UID.
    Pods {
        /// Never empty in a request of an API server.
        uid: &'r str,
    },
    /// Nodes and other KSMScales, for advice to the one of this name.
    Surroundings {
        /// Empty where it is yet to be made up.
        name: &'r str,
    },
}

/// What a decision depends on besides the request. Only what it needs is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// Nodes in the cluster, if their number is known.
    pub nodes: Option<u32>,
    /// How many KSMScales there are beside the one in question.
    pub others: usize,
    /// The name of one of these.
    pub other: Option<String>,
    /// Pods of the KSMScale in question.
    pub pods: u32,
}

/// What a request wants done.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and updates are most of them")]
enum Operation<'a> {
    Create(Object<'a>),
    Update { old: Object<'a>, new: Object<'a> },
    Delete(Object<'a>),
}

/// A request that can be decided.
#[derive(Debug)]
pub struct Review<'a> {
    endpoint: Endpoint,
    operation: Operation<'a>,
    /// Whether it is about the status, whose rules are the schema's alone.
    is_status: bool,
    user: review::UserInfo<'a>,
    record: Record,
}

/// What became of a request.
#[derive(Debug)]
pub enum Decision {
    /// This is the answer.
    Final(Answer),
    /// It depends on what the requester may do. Ask, and tell the [`Access`].
    NeedsAccess(Box<Access>),
}

/// Reads the body of a request to `endpoint`.
///
/// # Errors
/// The answer to a body that is no review of a KSMScale: HTTP 400, naming what is wrong. Objects
/// that are no KSMScales are not among the errors: a review of one is decided.
#[expect(clippy::result_large_err, reason = "an answer is what every request ends with")]
pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Review<'_>, Answer> {
    let mut record = Record::unknown(Some(endpoint), Verdict::BadRequest);
    match understand(body, &mut record) {
        Ok((operation, is_status, user)) => {
            Ok(Review { endpoint, operation, is_status, user, record })
        }
        Err(why) => {
            let message = format!("the body is no AdmissionReview that can be answered: {why}");
            Err(answer::without_verdict(400, "BadRequest", &message, record))
        }
    }
}

/// Fills `record` as far as it gets.
fn understand<'a>(
    body: &'a [u8],
    record: &mut Record,
) -> Result<(Operation<'a>, bool, review::UserInfo<'a>), String> {
    let envelope = review::read(body)?;
    expect("apiVersion", envelope.api_version.get(), review::API_VERSION)?;
    expect("kind", envelope.kind.get(), review::KIND)?;
    let request = envelope.request.ok_or("request is missing")?.0;
    let user = request.user_info.unwrap_or_default();
    request.uid.get().clone_into(&mut record.uid);
    user.username.get().clone_into(&mut record.user);
    request.name.get().clone_into(&mut record.name);
    if record.uid.is_empty() {
        return Err("request.uid is missing".to_owned());
    }
    let (kind, resource) = (&request.kind, &request.resource);
    expect("request.resource.group", resource.group.get(), GROUP)?;
    expect("request.resource.version", resource.version.get(), &KSMScale::version(&()))?;
    expect("request.resource.resource", resource.resource.get(), &KSMScale::plural(&()))?;
    expect("request.kind.group", kind.group.get(), GROUP)?;
    expect("request.kind.version", kind.version.get(), &KSMScale::version(&()))?;
    expect("request.kind.kind", kind.kind.get(), &KSMScale::kind(&()))?;
    let is_status = match request.sub_resource.get() {
        "" => false,
        "status" => true,
        other => return Err(format!("request.subResource {other:?} is none that is reviewed")),
    };
    let new = |object: Option<Object<'a>>| object.ok_or("request.object is missing");
    let old = |object: Option<Object<'a>>| object.ok_or("request.oldObject is missing");
    let operation = match request.operation.get() {
        "CREATE" => Operation::Create(new(request.object)?),
        "UPDATE" => Operation::Update { old: old(request.old_object)?, new: new(request.object)? },
        "DELETE" => Operation::Delete(old(request.old_object)?),
        other => {
            return Err(format!("request.operation {other:?} is none of CREATE, UPDATE, DELETE"));
        }
    };
    record.operation = operation.as_str();
    if record.name.is_empty() {
        // A request to create has no name where one is to be made up, one to delete a collection
        // has none at all.
        operation.object().name().clone_into(&mut record.name);
    }
    Ok((operation, is_status, user))
}

fn expect(field: &str, given: &str, expected: &str) -> Result<(), String> {
    if given == expected {
        Ok(())
    } else {
        Err(format!("{field} is {given:?} and has to be {expected:?}"))
    }
}

impl<'a> Operation<'a> {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Create(_) => "CREATE",
            Self::Update { .. } => "UPDATE",
            Self::Delete(_) => "DELETE",
        }
    }

    /// The object as it is to be, or was.
    fn object(&self) -> &Object<'a> {
        match self {
            Self::Create(object) | Self::Update { new: object, .. } | Self::Delete(object) => {
                object
            }
        }
    }

    /// Whether it is about an object that is being deleted already. Asked of what is stored: what
    /// arrives may claim anything.
    fn is_during_deletion(&self) -> bool {
        match self {
            Self::Create(_) => false,
            Self::Update { old, .. } | Self::Delete(old) => old.is_deleting(),
        }
    }
}

impl Review<'_> {
    /// What [`Review::decide`] has to know; `None` if nothing.
    #[must_use]
    pub fn need(&self) -> Option<Need<'_>> {
        if self.is_no_question() || self.endpoint == Endpoint::Mutate {
            return None;
        }
        match &self.operation {
            Operation::Delete(old) => {
                verdict::is_protected(old).then(|| Need::Pods { uid: old.uid() })
            }
            Operation::Update { old, new } if new.is_spelled_as(old) => None,
            Operation::Create(_) | Operation::Update { .. } => {
                Some(Need::Surroundings { name: &self.record.name })
            }
        }
    }

    /// Whether it passes whatever it says.
    fn is_no_question(&self) -> bool {
        self.is_status || self.operation.is_during_deletion()
    }

    /// The verdict, or what it still depends on. The same for the same arguments.
    #[must_use]
    pub fn decide(self, knowledge: &Knowledge, allowed: &Allowed) -> Decision {
        if self.is_no_question() {
            return Decision::Final(answer::allowed(self.record, Vec::new()));
        }
        match self.endpoint {
            Endpoint::Mutate => Decision::Final(self.mutate()),
            Endpoint::Validate => verdict::validate(self, knowledge, allowed),
        }
    }

    fn mutate(self) -> Answer {
        match self.operation {
            Operation::Delete(_) => answer::allowed(self.record, Vec::new()),
            Operation::Create(new) | Operation::Update { new, .. } => {
                let adds = new.spec().map(|spec| defaults::absent(&spec)).unwrap_or_default();
                answer::patched(self.record, &adds)
            }
        }
    }
}

#[cfg(test)]
mod tests;
