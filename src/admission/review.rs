//! What arrives: the envelope, in the form of admission.k8s.io/v1, and the objects in it.
//!
//! One pass over the bytes reads the envelope and of each object what decides most requests; the
//! rest (`managedFields` above all) is skipped. An object that cannot be read that way does not
//! take the envelope with it: the answer needs the request's uid.
//!
//! A key that stands twice in the envelope makes it unreadable: two readers could take two meanings
//! of it. Inside an object the last one counts, as in the API server, which sends neither.

use crate::{rules::Reason, validate::Violation};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, json, value::RawValue};
use std::{borrow::Cow, cell::OnceCell, collections::BTreeMap, fmt, marker::PhantomData};

/// The one version that is read and written.
pub(super) const API_VERSION: &str = "admission.k8s.io/v1";
/// The kind of the envelope, both ways.
pub(super) const KIND: &str = "AdmissionReview";

/// The path of a whole object in field errors, as Go writes it.
const ROOT: &str = "<nil>";

/// Text, borrowed from the body unless it has escapes. Absent, null and empty are the same, as in Go.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] Option<Given<'a>>);

/// Serde borrows a `Cow` only where it stands by itself.
#[derive(Debug, Deserialize)]
struct Given<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    pub(super) fn get(&self) -> &str {
        self.0.as_ref().map_or("", |given| &given.0)
    }
}

/// A `T` written as a JSON object. A derived reader takes a list of the fields as well.
#[derive(Debug, Default)]
pub(super) struct Keyed<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Keyed<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        input.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// An `AdmissionReview` with objects read as `O`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<'a, O> {
    #[serde(borrow, default)]
    pub(super) api_version: Text<'a>,
    #[serde(borrow, default)]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default = "none")]
    pub(super) request: Option<Keyed<Request<'a, O>>>,
}

/// An `AdmissionRequest`, as far as it is asked for anything here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a, O> {
    #[serde(borrow, default)]
    pub(super) uid: Text<'a>,
    #[serde(borrow, default)]
    pub(super) kind: GroupVersionKind<'a>,
    #[serde(borrow, default)]
    pub(super) resource: GroupVersionResource<'a>,
    #[serde(borrow, default)]
    pub(super) sub_resource: Text<'a>,
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) operation: Text<'a>,
    #[serde(borrow, default)]
    pub(super) user_info: Option<UserInfo<'a>>,
    #[serde(default = "none")]
    pub(super) object: Option<O>,
    #[serde(default = "none")]
    pub(super) old_object: Option<O>,
}

/// As a default, this asks nothing of the type that is absent.
fn none<T>() -> Option<T> {
    None
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct GroupVersionKind<'a> {
    #[serde(borrow, default)]
    pub(super) group: Text<'a>,
    #[serde(borrow, default)]
    pub(super) version: Text<'a>,
    #[serde(borrow, default)]
    pub(super) kind: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct GroupVersionResource<'a> {
    #[serde(borrow, default)]
    pub(super) group: Text<'a>,
    #[serde(borrow, default)]
    pub(super) version: Text<'a>,
    #[serde(borrow, default)]
    pub(super) resource: Text<'a>,
}

/// Who asks, as the API server authenticated them.
#[derive(Debug, Default, Deserialize)]
pub(super) struct UserInfo<'a> {
    #[serde(borrow, default)]
    pub(super) username: Text<'a>,
    #[serde(borrow, default)]
    pub(super) uid: Text<'a>,
    #[serde(default)]
    pub(super) groups: Option<Vec<String>>,
    #[serde(default)]
    pub(super) extra: Option<BTreeMap<String, Vec<String>>>,
}

/// An object in a review.
#[derive(Debug)]
pub(super) enum Object<'a> {
    /// It has the shape of a Kubernetes object.
    Shaped(Head<'a>),
    /// Any other JSON.
    Other(&'a RawValue),
}

/// What is read of an object at once.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head<'a> {
    #[serde(borrow, default)]
    api_version: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    metadata: Keyed<Metadata<'a>>,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    /// The values in `spec`, once somebody has asked.
    #[serde(skip)]
    values: OnceCell<Result<Value, Violation>>,
}

impl Head<'_> {
    fn values(&self) -> Result<&Value, &Violation> {
        let read = || self.spec.map_or(Ok(Value::Null), |spec| parsed(spec, "spec"));
        self.values.get_or_init(read).as_ref()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    generate_name: Text<'a>,
    #[serde(borrow, default)]
    uid: Text<'a>,
    #[serde(borrow, default)]
    deletion_timestamp: Option<&'a RawValue>,
}

impl<'a> Object<'a> {
    fn read(raw: &'a RawValue) -> Self {
        let head = serde_json::from_str::<Keyed<Head<'_>>>(raw.get());
        head.map_or(Self::Other(raw), |head| Self::Shaped(head.0))
    }

    /// `metadata.name`, or the empty text.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Shaped(head) => head.metadata.0.name.get(),
            Self::Other(_) => "",
        }
    }

    /// `metadata.uid`, or the empty text.
    pub(super) fn uid(&self) -> &str {
        match self {
            Self::Shaped(head) => head.metadata.0.uid.get(),
            Self::Other(_) => "",
        }
    }

    /// Whether it is being deleted, and waits for finalizers.
    pub(super) fn is_deleting(&self) -> bool {
        matches!(self, Self::Shaped(head) if head.metadata.0.deletion_timestamp.is_some())
    }

    /// What of it is its author's: type, name and spec.
    ///
    /// # Errors
    /// Why it cannot be read as values.
    pub(super) fn authored(&self) -> Result<Value, Violation> {
        match self {
            Self::Shaped(head) => {
                let mut object = json!({
                    "apiVersion": head.api_version.get(),
                    "kind": head.kind.get(),
                    "metadata": {"name": head.metadata.0.name.get()},
                });
                let prefix = head.metadata.0.generate_name.get();
                if !prefix.is_empty() {
                    object["metadata"]["generateName"] = json!(prefix);
                }
                object["spec"] = head.values().map_err(Clone::clone)?.clone();
                Ok(object)
            }
            Self::Other(raw) => {
                let mut object = parsed(raw, ROOT)?;
                if let Value::Object(fields) = &mut object {
                    fields.remove("status");
                }
                Ok(object)
            }
        }
    }

    /// The spec, null where there is none; `None` where it cannot be read.
    pub(super) fn spec(&self) -> Option<Cow<'_, Value>> {
        match self {
            Self::Shaped(head) => head.values().ok().map(Cow::Borrowed),
            Self::Other(raw) => {
                let mut object = parsed(raw, ROOT).ok()?;
                let spec = object.as_object_mut()?.remove("spec");
                Some(Cow::Owned(spec.unwrap_or_default()))
            }
        }
    }

    /// Whether both have the same spec, whatever its spelling. Never true of one that cannot be
    /// read, unless both are the same bytes.
    pub(super) fn has_spec_of(&self, other: &Object<'_>) -> bool {
        let same_bytes = match (self, other) {
            (Self::Shaped(one), Object::Shaped(two)) => {
                one.spec.map(RawValue::get) == two.spec.map(RawValue::get)
            }
            (Self::Other(one), Object::Other(two)) => one.get() == two.get(),
            _ => false,
        };
        let same_values = || self.spec().is_some_and(|spec| Some(spec) == other.spec());
        same_bytes || same_values()
    }
}

/// The values in `raw`, which stands at `field`. What is nested too deeply has none.
fn parsed(raw: &RawValue, field: &str) -> Result<Value, Violation> {
    serde_json::from_str(raw.get()).map_err(|error| {
        // Where, it says in columns of a text that nobody but us has seen.
        let error = error.to_string();
        let cause = error.split(" at line ").next().unwrap_or_default();
        Violation {
            field: field.to_owned(),
            reason: Reason::FieldValueInvalid,
            message: format!("Invalid value: {cause}"),
        }
    })
}

/// Reads `body`.
///
/// # Errors
/// What is wrong with the envelope, whatever its objects are.
pub(super) fn read(body: &[u8]) -> Result<Envelope<'_, Object<'_>>, String> {
    // Checked once for all texts in it.
    let body = str::from_utf8(body).map_err(|error| error.to_string())?;
    if let Ok(envelope) = serde_json::from_str::<Keyed<Envelope<'_, Keyed<Head<'_>>>>>(body) {
        return Ok(envelope.0.map(|head| Object::Shaped(head.0)));
    }
    let envelope = serde_json::from_str::<Keyed<Envelope<'_, &RawValue>>>(body);
    envelope.map(|envelope| envelope.0.map(Object::read)).map_err(|error| error.to_string())
}

impl<'a, O> Envelope<'a, O> {
    fn map<P>(self, read: fn(O) -> P) -> Envelope<'a, P> {
        let Self { api_version, kind, request } = self;
        let request = request.map(|request| Keyed(request.0.map(read)));
        Envelope { api_version, kind, request }
    }
}

impl<'a, O> Request<'a, O> {
    fn map<P>(self, read: fn(O) -> P) -> Request<'a, P> {
        Request {
            uid: self.uid,
            kind: self.kind,
            resource: self.resource,
            sub_resource: self.sub_resource,
            name: self.name,
            operation: self.operation,
            user_info: self.user_info,
            object: self.object.map(read),
            old_object: self.old_object.map(read),
        }
    }
}
