//! What arrives: the envelope, in the form of admission.k8s.io/v1, and the objects in it.
//!
//! One pass over the bytes reads the envelope and of each object what decides most requests; the
//! rest is skipped. What cannot be read that way is left to serde_json, which says what is wrong. An
//! object of another shape does not take the envelope with it: the answer needs the request's uid.
//!
//! A key that stands twice in the envelope makes it unreadable: two readers could take two meanings
//! of it. Inside an object the last one counts, as in the API server, which sends neither.

use super::scan::Scan;
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
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Given<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl<'a> Text<'a> {
    pub(super) fn get(&self) -> &str {
        self.0.as_ref().map_or("", |given| &given.0)
    }

    /// `None` unless a text is next, and the first for this place.
    fn scan(&mut self, scan: &mut Scan<'a>) -> Option<()> {
        first(&mut self.0, Given(scan.text()?))
    }
}

/// `None` if there is something in `place` already.
fn first<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
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

/// An `AdmissionReview`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<'a> {
    #[serde(borrow, default)]
    pub(super) api_version: Text<'a>,
    #[serde(borrow, default)]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default)]
    pub(super) request: Option<Keyed<Request<'a>>>,
}

impl<'a> Envelope<'a> {
    fn scan(text: &'a str) -> Option<Self> {
        let (mut scan, mut envelope) = (Scan::new(text), Self::default());
        scan.object(|scan, key| match key {
            "apiVersion" => envelope.api_version.scan(scan),
            "kind" => envelope.kind.scan(scan),
            "request" => first(&mut envelope.request, Keyed(Request::scan(scan)?)),
            _ => scan.skip(),
        })?;
        scan.is_at_end().then_some(envelope)
    }
}

/// An `AdmissionRequest`, as far as it is asked for anything here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
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
    #[serde(borrow, default)]
    pub(super) object: Option<Object<'a>>,
    #[serde(borrow, default)]
    pub(super) old_object: Option<Object<'a>>,
}

impl<'a> Request<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let mut request = Self::default();
        let (mut kind, mut resource, mut object, mut old_object) = (None, None, None, None);
        scan.object(|scan, key| match key {
            "uid" => request.uid.scan(scan),
            "kind" => first(&mut kind, GroupVersionKind::scan(scan)?),
            "resource" => first(&mut resource, GroupVersionResource::scan(scan)?),
            "subResource" => request.sub_resource.scan(scan),
            "name" => request.name.scan(scan),
            "operation" => request.operation.scan(scan),
            "userInfo" => first(&mut request.user_info, UserInfo::scan(scan)?),
            "object" => first(&mut object, Object::scan(scan)?),
            "oldObject" => first(&mut old_object, Object::scan(scan)?),
            _ => scan.skip(),
        })?;
        request.kind = kind.unwrap_or_default();
        request.resource = resource.unwrap_or_default();
        (request.object, request.old_object) = (object.flatten(), old_object.flatten());
        Some(request)
    }
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

impl<'a> GroupVersionKind<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let mut found = Self::default();
        scan.object(|scan, key| match key {
            "group" => found.group.scan(scan),
            "version" => found.version.scan(scan),
            "kind" => found.kind.scan(scan),
            _ => scan.skip(),
        })?;
        Some(found)
    }
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

impl<'a> GroupVersionResource<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let mut found = Self::default();
        scan.object(|scan, key| match key {
            "group" => found.group.scan(scan),
            "version" => found.version.scan(scan),
            "resource" => found.resource.scan(scan),
            _ => scan.skip(),
        })?;
        Some(found)
    }
}

/// Who asks, as the API server authenticated them.
#[derive(Debug, Default, Deserialize)]
pub(super) struct UserInfo<'a> {
    #[serde(borrow, default)]
    pub(super) username: Text<'a>,
    #[serde(borrow, default)]
    pub(super) uid: Text<'a>,
    #[serde(borrow, default)]
    pub(super) groups: Option<Vec<Given<'a>>>,
    #[serde(borrow, default)]
    pub(super) extra: Option<BTreeMap<Given<'a>, Vec<Given<'a>>>>,
}

impl<'a> UserInfo<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let mut user = Self::default();
        scan.object(|scan, key| match key {
            "username" => user.username.scan(scan),
            "uid" => user.uid.scan(scan),
            "groups" => first(&mut user.groups, texts(scan)?),
            "extra" => {
                let mut extra = BTreeMap::new();
                scan.object(|scan, key| {
                    let key = Given(Cow::Owned(key.to_owned()));
                    extra.insert(key, texts(scan)?).is_none().then_some(())
                })?;
                first(&mut user.extra, extra)
            }
            _ => scan.skip(),
        })?;
        Some(user)
    }
}

fn texts<'a>(scan: &mut Scan<'a>) -> Option<Vec<Given<'a>>> {
    let mut texts = Vec::new();
    scan.list(|scan| {
        texts.push(Given(scan.text()?));
        Some(())
    })?;
    Some(texts)
}

/// An object in a review.
#[derive(Debug)]
pub(super) enum Object<'a> {
    /// It has the shape of a Kubernetes object.
    Shaped(Head<'a>),
    /// Any other JSON.
    Other(&'a str),
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(input)?.get();
        Ok(Head::scan(&mut Scan::new(raw)).map_or(Self::Other(raw), Self::Shaped))
    }
}

/// What is read of an object at once.
#[derive(Debug, Default)]
pub(super) struct Head<'a> {
    api_version: Text<'a>,
    kind: Text<'a>,
    metadata: Metadata<'a>,
    spec: Option<&'a str>,
    /// The values in `spec`, once somebody has asked.
    values: OnceCell<Result<Value, Violation>>,
}

impl<'a> Head<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let (mut head, mut metadata, mut spec) = (Self::default(), None, None);
        scan.object(|scan, key| match key {
            "apiVersion" => head.api_version.scan(scan),
            "kind" => head.kind.scan(scan),
            "metadata" => first(&mut metadata, Metadata::scan(scan)?),
            "spec" => first(&mut spec, scan.raw()?),
            _ => scan.skip(),
        })?;
        head.metadata = metadata.unwrap_or_default();
        head.spec = spec.filter(|spec| *spec != "null");
        Some(head)
    }

    fn read(&self) -> Result<Value, Violation> {
        self.spec.map_or(Ok(Value::Null), |spec| parsed(spec, "spec"))
    }

    fn values(&self) -> Result<&Value, &Violation> {
        self.values.get_or_init(|| self.read()).as_ref()
    }
}

#[derive(Debug, Default)]
struct Metadata<'a> {
    name: Text<'a>,
    generate_name: Text<'a>,
    uid: Text<'a>,
    deletion_timestamp: Option<&'a str>,
}

impl<'a> Metadata<'a> {
    fn scan(scan: &mut Scan<'a>) -> Option<Self> {
        let mut metadata = Self::default();
        scan.object(|scan, key| match key {
            "name" => metadata.name.scan(scan),
            "generateName" => metadata.generate_name.scan(scan),
            "uid" => metadata.uid.scan(scan),
            "deletionTimestamp" => first(&mut metadata.deletion_timestamp, scan.raw()?),
            // One by one, since most of them stand in the old object as well.
            "managedFields" => scan.list(Scan::skip),
            _ => scan.skip(),
        })?;
        metadata.deletion_timestamp = metadata.deletion_timestamp.filter(|time| *time != "null");
        Some(metadata)
    }
}

impl<'a> Object<'a> {
    /// `None` for null.
    #[expect(clippy::option_option, reason = "like every reader, it gives up with `None`")]
    fn scan(scan: &mut Scan<'a>) -> Option<Option<Self>> {
        if scan.is_null()? {
            return Some(None);
        }
        Head::scan(scan).map(|head| Some(Self::Shaped(head)))
    }

    /// `metadata.name`, or the empty text.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Shaped(head) => head.metadata.name.get(),
            Self::Other(_) => "",
        }
    }

    /// `metadata.uid`, or the empty text.
    pub(super) fn uid(&self) -> &str {
        match self {
            Self::Shaped(head) => head.metadata.uid.get(),
            Self::Other(_) => "",
        }
    }

    /// Whether it is being deleted, and waits for finalizers.
    pub(super) fn is_deleting(&self) -> bool {
        matches!(self, Self::Shaped(head) if head.metadata.deletion_timestamp.is_some())
    }

    /// What of it is its author's: type, name and spec. The values are not copied, so whoever asks
    /// again has them read again.
    ///
    /// # Errors
    /// Why it cannot be read as values.
    pub(super) fn authored(&mut self) -> Result<Value, Violation> {
        match self {
            Self::Shaped(head) => {
                let spec = head.values.take().unwrap_or_else(|| head.read())?;
                let mut object = json!({
                    "apiVersion": head.api_version.get(),
                    "kind": head.kind.get(),
                    "metadata": {"name": head.metadata.name.get()},
                });
                let prefix = head.metadata.generate_name.get();
                if !prefix.is_empty() {
                    object["metadata"]["generateName"] = json!(prefix);
                }
                object["spec"] = spec;
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

    /// These fields of the spec, null where they are absent; `None` where it is no object or cannot be
    /// read.
    pub(super) fn of_spec(&self, names: [&str; 2]) -> Option<[Value; 2]> {
        let Self::Shaped(Head { spec: Some(spec), .. }) = self else {
            let spec = self.spec().filter(|spec| spec.is_object())?;
            return Some(names.map(|name| spec[name].clone()));
        };
        let mut values = [Value::Null, Value::Null];
        Scan::new(spec).object(|scan, key| {
            let Some(i) = names.iter().position(|name| *name == key) else { return scan.skip() };
            values[i] = serde_json::from_str(scan.raw()?).ok()?;
            Some(())
        })?;
        Some(values)
    }

    /// Whether both have the same spec to the byte.
    pub(super) fn is_spelled_as(&self, other: &Object<'_>) -> bool {
        match (self, other) {
            (Self::Shaped(one), Object::Shaped(two)) => one.spec == two.spec,
            (Self::Other(one), Object::Other(two)) => one == two,
            _ => false,
        }
    }

    /// Whether both have the same spec, whatever its spelling. Never true of one that cannot be
    /// read, unless both are the same bytes.
    pub(super) fn has_spec_of(&self, other: &Object<'_>) -> bool {
        let same_values = || self.spec().is_some_and(|spec| Some(spec) == other.spec());
        self.is_spelled_as(other) || same_values()
    }
}

/// The values in `raw`, which stands at `field`. What is nested too deeply has none.
fn parsed(raw: &str, field: &str) -> Result<Value, Violation> {
    serde_json::from_str(raw).map_err(|error| {
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
pub(super) fn read(body: &[u8]) -> Result<Envelope<'_>, String> {
    // Checked once for all texts in it.
    let body = str::from_utf8(body).map_err(|error| error.to_string())?;
    Envelope::scan(body).map_or_else(|| parsed_by_serde(body), Ok)
}

/// The same, read by serde_json.
fn parsed_by_serde(body: &str) -> Result<Envelope<'_>, String> {
    let envelope = serde_json::from_str::<Keyed<Envelope<'_>>>(body);
    envelope.map(|envelope| envelope.0).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
