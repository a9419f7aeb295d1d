//! One manifest: its objects, what of it can't be used, and what stays of an earlier reading.

use crate::{
    model::{Change, ObjectName, Pod, Service, ServiceKind, ServiceRef, Slice},
    sources::{
        documents::{self, Document, Unreadable},
        key::Key,
        objects::{self, Field, ObjectError, Options, Seen, ServiceImport, Step},
    },
};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};
use tracing::debug;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Object {
    Service(Service),
    Slice(Slice),
    Pod(Pod),
}

/// An object and the line it stands on.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) object: Arc<Object>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) objects: BTreeMap<Key, Entry>,
    /// By line; none for the file as a whole.
    pub(super) problems: Vec<(Option<usize>, String)>,
    /// Documents that can't be used.
    bad: Vec<Bad>,
    /// Objects that are well but not for us.
    left: BTreeSet<Key>,
    /// Whether everything that this file holds, or held when it was good last, is in `objects`. False until it could be read
    /// whole for the first time: an agent before us may have known more of it.
    pub(super) complete: bool,
}

/// A document that can't be used.
#[derive(Debug)]
struct Bad {
    line: usize,
    reason: String,
    was: Was,
}

/// What a bad document was when it was good.
#[derive(Debug, PartialEq, Eq)]
enum Was {
    /// This object.
    Object(Key),
    /// Nothing that could ever have been delivered.
    Nothing,
    /// Any object.
    Unknown,
    /// All there was: the file is empty.
    Blank,
}

impl Bad {
    fn key(&self) -> Option<&Key> {
        match &self.was {
            Was::Object(key) => Some(key),
            Was::Nothing | Was::Unknown | Was::Blank => None,
        }
    }
}

/// A kind that is read.
#[derive(Clone, Copy)]
enum Kind {
    Service,
    ServiceImport,
    Slice,
    Pod,
}

impl Contents {
    pub(super) fn read(bytes: &[u8], options: &Options) -> Self {
        let mut contents = Self::default();
        let documents = documents::documents(bytes);
        if documents.is_empty() && documents::is_blank(bytes) {
            contents.bad.push(Bad { line: 1, reason: "nothing is in it".to_owned(), was: Was::Blank });
        }
        for document in documents {
            match document {
                Ok(document) => contents.take(document, options),
                Err(Unreadable { line, reason }) => contents.bad.push(Bad { line, reason, was: Was::Unknown }),
            }
        }
        contents
    }

    /// Takes over what was read now, and keeps of what was there before the objects that are bad now.
    ///
    /// A document that is so bad that its object can't be told might be any: then all that isn't there again stays.
    pub(super) fn replace(&mut self, new: Self) {
        let old = mem::replace(self, new);
        self.complete = old.complete || self.bad.iter().all(|bad| bad.was == Was::Nothing);
        let unknown = self.bad.iter().any(|bad| matches!(bad.was, Was::Unknown | Was::Blank));
        let bad_keys: BTreeSet<&Key> = self.bad.iter().filter_map(Bad::key).collect();
        let mut kept = BTreeSet::new();
        for (key, entry) in old.objects {
            let is_bad = unknown || bad_keys.contains(&key);
            if is_bad && !self.left.contains(&key) && !self.objects.contains_key(&key) {
                kept.insert(key.clone());
                self.objects.insert(key, entry);
            }
        }
        for bad in mem::take(&mut self.bad) {
            let outcome = match &bad.was {
                Was::Object(key) if kept.contains(key) => "; its last good state stays",
                Was::Unknown if !kept.is_empty() => "; what this file held before and lacks now stays",
                Was::Blank if !kept.is_empty() => "; what it held before stays until the file goes",
                Was::Blank => continue,
                Was::Object(_) | Was::Unknown | Was::Nothing => "",
            };
            self.problems.push((Some(bad.line), format!("{}{outcome}", bad.reason)));
        }
        self.problems.sort();
    }

    /// The file can't be read at all: what it held stays.
    pub(super) fn fail(&mut self, reason: &str) {
        let stays = if self.objects.is_empty() { "" } else { "; what it held stays" };
        self.problems = vec![(None, format!("{reason}{stays}"))];
    }

    fn take(&mut self, document: Document<'_>, options: &Options) {
        let line = document.line;
        let kind = match kind(&document.value) {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                let kind = document.value.get("kind").and_then(Value::as_str);
                return debug!(line, kind, "document left out: not a kind that is read");
            }
            Err(error) => return self.refuse(&document, Was::Unknown, &error),
        };
        let key = key(kind, &document.value);
        match convert(kind, &document.value, options) {
            Err(error) => {
                let was = match (key, kind) {
                    (Some(key), _) => Was::Object(key),
                    // Delivered by its UID only.
                    (None, Kind::Pod) => Was::Nothing,
                    (None, _) => Was::Unknown,
                };
                self.refuse(&document, was, &error);
            }
            Ok(Seen::Left(reason)) => {
                debug!(line, reason, "object left out");
                self.left.extend(key);
            }
            Ok(Seen::Taken((key, object))) => {
                if let Object::Service(service) = &object {
                    let reasons = service.problems.iter().map(|problem| format!("{key}: {problem}"));
                    self.problems.extend(reasons.map(|reason| (Some(line), reason)));
                }
                let entry = Entry { line, object: Arc::new(object) };
                if let Some(earlier) = self.objects.insert(key.clone(), entry) {
                    let reason = format!("{key} is also on line {line}, which holds");
                    self.problems.push((Some(earlier.line), reason));
                }
            }
        }
    }

    fn refuse(&mut self, document: &Document<'_>, was: Was, error: &ObjectError) {
        let line = document.line_of(&error.field.0);
        let reason = match &was {
            Was::Object(key) => format!("{key}: {error}"),
            Was::Nothing | Was::Unknown | Was::Blank => error.to_string(),
        };
        self.bad.push(Bad { line, reason, was });
    }
}

impl Key {
    /// What tells the model of `object`; of its absence, if there is none.
    ///
    /// An object is only ever stored under a key of its own kind.
    pub(super) fn change(&self, object: Option<&Arc<Object>>) -> Change {
        match self {
            Self::Service(name) => {
                let service = object.and_then(|object| match &**object {
                    Object::Service(service) => Some(service.clone()),
                    Object::Slice(_) | Object::Pod(_) => None,
                });
                Change::Service(name.clone(), service)
            }
            Self::Slice(name) => {
                let slice = object.and_then(|object| match &**object {
                    Object::Slice(slice) => Some(slice.clone()),
                    Object::Service(_) | Object::Pod(_) => None,
                });
                Change::Slice(name.clone(), slice)
            }
            Self::Pod(uid) => {
                let pod = object.and_then(|object| match &**object {
                    Object::Pod(pod) => Some(pod.clone()),
                    Object::Service(_) | Object::Slice(_) => None,
                });
                Change::Pod(uid.clone(), pod)
            }
        }
    }
}

impl Kind {
    /// The versions of the API that are read.
    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Service | Self::Pod => &["v1"],
            Self::ServiceImport => &["multicluster.x-k8s.io/v1alpha1", "multicluster.x-k8s.io/v1beta1"],
            Self::Slice => &["discovery.k8s.io/v1"],
        }
    }
}

/// Which kind a document is of, in whatever version; none if of one that isn't read.
fn kind(value: &Value) -> Result<Option<Kind>, ObjectError> {
    let (version, kind) = (text(value, "apiVersion")?, text(value, "kind")?);
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    Ok(match (group, kind) {
        ("", "Service") => Some(Kind::Service),
        ("", "Pod") => Some(Kind::Pod),
        ("discovery.k8s.io", "EndpointSlice") => Some(Kind::Slice),
        ("multicluster.x-k8s.io", "ServiceImport") => Some(Kind::ServiceImport),
        _ => None,
    })
}

fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str, ObjectError> {
    let text = value.get(field).ok_or_else(|| Field::new(field).wrong("missing"))?;
    text.as_str().ok_or_else(|| Field::new(field).wrong("not a string"))
}

/// The object that a document, good or bad, is about.
fn key(kind: Kind, value: &Value) -> Option<Key> {
    let text = |name| value.get("metadata")?.get(name)?.as_str();
    let name = text("name")
        .map(|name| ObjectName { namespace: text("namespace").unwrap_or("default").to_owned(), name: name.to_owned() });
    let service = |kind| name.clone().map(|object| Key::Service(ServiceRef { kind, object }));
    match kind {
        Kind::Service => service(ServiceKind::Service),
        Kind::ServiceImport => service(ServiceKind::ServiceImport),
        Kind::Slice => name.map(Key::Slice),
        Kind::Pod => text("uid").map(|uid| Key::Pod(uid.to_owned())),
    }
}

fn convert(kind: Kind, value: &Value, options: &Options) -> Result<Seen<(Key, Object)>, ObjectError> {
    let version = text(value, "apiVersion")?;
    if !kind.versions().contains(&version) {
        let read = kind.versions().join(", ");
        return Err(Field::new("apiVersion").wrong(format!("{version} is not read, only {read}")));
    }
    match kind {
        Kind::Service => {
            let (name, service) = objects::service(&decode::<core::Service>(value)?, options)?;
            Ok(Seen::Taken((Key::Service(name), Object::Service(service))))
        }
        Kind::ServiceImport => {
            let (name, service) = objects::service_import(&decode::<ServiceImport>(value)?, options)?;
            Ok(Seen::Taken((Key::Service(name), Object::Service(service))))
        }
        Kind::Slice => Ok(match objects::slice(&decode::<discovery::EndpointSlice>(value)?)? {
            Seen::Left(reason) => Seen::Left(reason),
            Seen::Taken((name, slice)) => Seen::Taken((Key::Slice(name), Object::Slice(slice))),
        }),
        Kind::Pod => Ok(match objects::pod(&decode::<core::Pod>(value)?, options)? {
            Seen::Left(reason) => Seen::Left(reason),
            Seen::Taken((uid, pod)) => Seen::Taken((Key::Pod(uid), Object::Pod(pod))),
        }),
    }
}

fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, ObjectError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        use serde_path_to_error::Segment;
        let steps = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        Field(steps.collect()).wrong(error.inner().to_string())
    })
}
