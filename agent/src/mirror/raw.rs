//! An object of any kind as an API server sends it: its name and its version, and its text, which is read later.
//!
//! An object that can't be read must not keep the others of its list from being read. As a tree of JSON that could be told too, but
//! a page of large slices would take some ten times its text as trees.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, api::ApiResource, core::DynamicResourceScope};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use std::borrow::Cow;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct RawObject {
    /// Of it: name, namespace, resourceVersion and deletionTimestamp, as far as they can be read.
    pub(super) metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl RawObject {
    /// What it is.
    pub(super) fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.text.get())
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self { metadata: head(text.get()), text })
    }
}

/// What can be read of an object's metadata, whatever else is in there; nothing of what is no object.
fn head(text: &str) -> ObjectMeta {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
    }
    let read = serde_json::from_str(text).map(|Head { metadata }| metadata);
    let metadata = read.unwrap_or_else(|_| {
        let object: Value = serde_json::from_str(text).unwrap_or_default();
        let said = |field: &str| Some(object["metadata"][field].as_str()?.to_owned());
        Metadata {
            name: said("name"),
            namespace: said("namespace"),
            resource_version: said("resourceVersion"),
            deletion_timestamp: None,
        }
    });
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        resource_version: metadata.resource_version,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

impl Resource for RawObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use kube::api::{ObjectList, WatchEvent};

    #[test]
    fn one_object_that_can_t_be_read_leaves_its_list_readable() {
        let list = r#"{"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "odd", "namespace": "shop", "labels": ["not", "a", "map"]}},
            {"metadata": {"name": "good", "namespace": "shop", "resourceVersion": "5", "labels": {"app": "good"}}}
        ]}"#;
        let list: ObjectList<RawObject> = serde_json::from_str(list).unwrap();
        let [odd, good] = &list.items[..] else { panic!("two of them") };
        assert_eq!(odd.metadata.name.as_deref(), Some("odd"));
        assert!(odd.read::<Service>().is_err());
        assert_eq!(good.metadata.resource_version.as_deref(), Some("5"));
        assert_eq!(good.read::<Service>().unwrap().metadata.labels.unwrap()["app"], "good");
    }

    #[test]
    fn whatever_a_hostile_peer_lists_the_others_are_read_and_what_it_is_called_if_that_can_be() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let at = |metadata: &str| format!("{{\"metadata\": {metadata}}}");
        for (hostile, name) in [
            (at("null"), None),
            (at("7"), None),
            (at("[]"), None),
            (at("\"odd\""), None),
            (at(r#"{"name": null}"#), None),
            (at(r#"{"name": 7}"#), None),
            (at(r#"{"name": {"name": "odd"}}"#), None),
            (at(r#"{"name": "odd", "namespace": 7}"#), Some("odd")),
            (at(r#"{"name": "odd", "labels": {"a": 1}}"#), Some("odd")),
            (at(r#"{"name": "odd", "labels": 7, "annotations": ["a"]}"#), Some("odd")),
            (at(r#"{"name": "odd", "resourceVersion": 7}"#), Some("odd")),
            (at(r#"{"name": "odd", "deletionTimestamp": "some day"}"#), Some("odd")),
            (at(r#"{"name": "odd", "name": "even"}"#), Some("even")),
            (at(&format!(r#"{{"name": "odd", "labels": {deep}}}"#)), Some("odd")),
            (r#"{"metadata": {"name": "odd"}, "metadata": null}"#.to_owned(), None),
            (format!(r#"{{"metadata": {{"name": 7}}, "spec": {deep}}}"#), None),
            ("{}".to_owned(), None),
            ("null".to_owned(), None),
            ("7".to_owned(), None),
            ("\"odd\"".to_owned(), None),
            ("[[]]".to_owned(), None),
            (deep.clone(), None),
        ] {
            let good = r#"{"metadata": {"name": "good", "namespace": "shop"}, "spec": {"ports": []}}"#;
            let list = format!(
                r#"{{"apiVersion": "v1", "kind": "ServiceList", "metadata": {{"resourceVersion": "7"}}, "items": [{hostile}, {good}]}}"#
            );
            let list = serde_json::from_str::<ObjectList<RawObject>>(&list);
            let list = list.unwrap_or_else(|error| panic!("{hostile}: {error}"));
            let [odd, good] = &list.items[..] else { panic!("{hostile}: two of them") };
            assert_eq!(odd.metadata.name.as_deref(), name, "{hostile}");
            assert!(odd.metadata.deletion_timestamp.is_none(), "{hostile}");
            assert_eq!(good.metadata.name.as_deref(), Some("good"), "{hostile}");
            assert!(good.read::<Service>().is_ok(), "{hostile}");
        }
    }

    #[test]
    fn a_watch_tells_of_it_too() {
        let line =
            r#"{"type":"MODIFIED","object":{"metadata":{"name":"good","deletionTimestamp":"2026-01-02T03:04:05Z"}}}"#;
        let WatchEvent::Modified(object) = serde_json::from_str::<WatchEvent<RawObject>>(line).unwrap() else {
            panic!("modified")
        };
        assert!(object.metadata.deletion_timestamp.is_some());
    }
}
