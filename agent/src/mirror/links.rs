//! Links: what says which peers there are, and what of them is wanted.
//!
//! Two kinds of objects do, Tombolo's own Link ([`object`]) and Linkerd's, each with a Secret ([`credentials`]). What they
//! come to is decided without any I/O ([`book`]); [`follow`] watches them, and [`status`] says what became of them.

pub mod book;
pub mod credentials;
pub mod follow;
pub mod manifests;
pub mod object;
pub mod part;
pub mod status;

use super::{
    conventions,
    lease::Standing,
    names,
    source::{Link, LinkName, Quota, Selector, Selectors, Understood},
    validate,
    world::{Cluster, Peer},
};
use crate::{
    model::{ClusterName, ObjectName},
    sources::objects::cluster_name,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Linkerd's Link, in v1alpha3 and v1alpha2, as far as it says what is imported.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LinkerdLink {
    /// The object's metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it is.
    #[serde(default)]
    pub spec: LinkerdSpec,
}

/// The spec of Linkerd's Link. What is about its gateway doesn't matter here: that refuses whoever has no Linkerd proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkerdSpec {
    /// The peer's name; empty on the link of the own cluster.
    pub target_cluster_name: Option<String>,
    /// The Secret with the peer's kubeconfig, in the namespace of the Link.
    pub cluster_credentials_secret: Option<String>,
    /// What is exported through the gateway.
    pub selector: Option<LabelSelector>,
    /// What is exported directly.
    pub remote_discovery_selector: Option<LabelSelector>,
    /// What joins federated Services.
    pub federated_service_selector: Option<LabelSelector>,
    /// What mirrors don't get.
    pub excluded_labels: Option<Vec<String>>,
    /// What mirrors don't get.
    pub excluded_annotations: Option<Vec<String>>,
}

/// The link to a peer that nothing is said of but its name: flat, by Linkerd's usual labels.
pub fn plain(cluster: ClusterName, created: i64) -> Link {
    Link {
        suffix: cluster.0.clone(),
        cluster,
        understood: Understood::Whole,
        created,
        selectors: conventions::default_selectors(),
        excluded_labels: Vec::new(),
        excluded_annotations: Vec::new(),
        is_linkerds: false,
        is_flat: true,
        pod_ranges: Vec::new(),
        gateway_ranges: Vec::new(),
        quota: Quota::default(),
    }
}

/// A peer behind `link` of which nothing was heard yet.
pub fn unheard(link: Link) -> Peer {
    Peer {
        link,
        is_listed: false,
        shows_services: false,
        shows_endpoints: false,
        standing: Standing::Fresh,
        is_given_up: false,
        before: Default::default(),
        cluster: Cluster::default(),
    }
}

/// A link as Linkerd's Link says it; none for the own cluster's.
///
/// What Linkerd's has no field for are annotations: `tombolo.io/cluster`, where two links lead to one cluster, `tombolo.io/pod-ranges`, and
/// `tombolo.io/gateway-ranges`, comma separated.
///
/// # Errors
///
/// A name or a range that is none, in a person's words: such a link lets nothing in.
pub fn linkerd(object: &LinkerdLink) -> Result<Option<(LinkName, Link)>, String> {
    let spec = &object.spec;
    let Some(target) = spec.target_cluster_name.as_deref().filter(|target| !target.is_empty()) else {
        return Ok(None);
    };
    let annotation = |name: &str| object.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    let target = cluster_name(target).map_err(|reason| format!("spec.targetClusterName: {reason}"))?;
    let cluster = match annotation(names::LINK_CLUSTER) {
        Some(cluster) => {
            cluster_name(cluster).map_err(|reason| format!("annotation {}: {reason}", names::LINK_CLUSTER))?
        }
        None => target.clone(),
    };
    let selector = |given: &Option<LabelSelector>| given.as_ref().map(self::selector).unwrap_or_default();
    let name = LinkName(object.metadata.name.clone().unwrap_or_default());
    let link = Link {
        suffix: target.0.clone(),
        created: super::read::created(&object.metadata),
        selectors: Selectors {
            gateway: selector(&spec.selector),
            flat: selector(&spec.remote_discovery_selector),
            federated: selector(&spec.federated_service_selector),
        },
        excluded_labels: spec.excluded_labels.clone().unwrap_or_default(),
        excluded_annotations: spec.excluded_annotations.clone().unwrap_or_default(),
        is_linkerds: true,
        pod_ranges: ranges(annotation(names::POD_RANGES), names::POD_RANGES)?,
        gateway_ranges: ranges(annotation(names::GATEWAY_RANGES), names::GATEWAY_RANGES)?,
        ..plain(cluster, 0)
    };
    Ok(Some((name, link)))
}

/// The cluster that Linkerd's Link leads to, if that alone can be understood, and what mirror Services are called after.
pub fn linkerd_cluster(object: &LinkerdLink, name: &str) -> (Option<ClusterName>, String) {
    let given = object.metadata.annotations.as_ref().and_then(|all| all.get(names::LINK_CLUSTER));
    let target = object.spec.target_cluster_name.as_deref().filter(|target| !target.is_empty());
    let target = target.and_then(|target| cluster_name(target).ok());
    let suffix = target.as_ref().map_or_else(|| name.to_owned(), |target| target.0.clone());
    let cluster = match given {
        Some(given) => cluster_name(given).ok(),
        None => target,
    };
    (cluster, suffix)
}

/// The Secret that Linkerd's Link names: it is in the Link's namespace.
///
/// # Errors
///
/// It names none.
pub fn linkerd_secret(object: &LinkerdLink, name: &ObjectName) -> Result<object::SecretKey, String> {
    let given = object.spec.cluster_credentials_secret.as_deref().filter(|name| !name.is_empty());
    let secret = given.ok_or("spec.clusterCredentialsSecret is missing")?.to_owned();
    let secret = ObjectName { namespace: name.namespace.clone(), name: secret };
    Ok(object::SecretKey { secret, key: credentials::KEY.to_owned() })
}

fn ranges(text: Option<&str>, annotation: &str) -> Result<Vec<IpNet>, String> {
    let Some(text) = text else { return Ok(Vec::new()) };
    text.split(',')
        .map(|part| validate::range(part).map_err(|reason| format!("annotation {annotation}: {reason}")))
        .collect()
}

fn selector(given: &LabelSelector) -> Selector {
    let mut selector = Selector::default();
    for (name, value) in given.match_labels.iter().flatten() {
        selector.is_in.push((name.clone(), BTreeSet::from([value.clone()])));
    }
    for expression in given.match_expressions.iter().flatten() {
        let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
        match expression.operator.as_str() {
            "In" => selector.is_in.push((expression.key.clone(), values)),
            "NotIn" => selector.is_not_in.push((expression.key.clone(), values)),
            "Exists" => selector.exists.push(expression.key.clone()),
            "DoesNotExist" => selector.is_absent.push(expression.key.clone()),
            // No value is in an empty set: nothing is selected by what isn't understood.
            _ => selector.is_in.push((expression.key.clone(), BTreeSet::new())),
        }
    }
    selector
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_selector_that_is_empty_or_not_understood_selects_nothing() {
        for (given, matched) in [
            (json!({}), false),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["1"]}]}), false),
        ] {
            let selector = selector(&serde_json::from_value(given.clone()).unwrap());
            let labels = [("a".to_owned(), "1".to_owned())].into();
            assert_eq!(selector.matches(&labels), matched, "{given}");
        }
    }

    #[test]
    fn what_linkerds_link_has_no_field_for_are_annotations() {
        let (name, link) = linkerd(&example(json!({}))).unwrap().unwrap();
        assert_eq!((name.0.as_str(), link.cluster.0.as_str(), link.suffix.as_str()), ("east-gw", "east-gw", "east-gw"));
        let annotations = json!({
            "tombolo.io/cluster": "east", "tombolo.io/pod-ranges": "10.108.0.0/14, fd00:108::/48",
        });
        let (_, link) = linkerd(&example(annotations)).unwrap().unwrap();
        assert_eq!((link.cluster.0.as_str(), link.suffix.as_str()), ("east", "east-gw"));
        assert_eq!(link.pod_ranges.len(), 2);
    }

    #[test]
    fn a_link_with_a_range_that_is_none_says_so() {
        for (range, said) in [
            ("10.0.0.0", "is not of the form"),
            ("10.0.0.1/8", "bits set beyond"),
            ("0.0.0.0/0", "declares nothing"),
            ("127.0.0.0/8", "Loopback"),
            ("169.254.0.0/16", "LinkLocal"),
            ("::ffff:10.0.0.0/104", "EmbeddedIPv4"),
        ] {
            let error = linkerd(&example(json!({"tombolo.io/pod-ranges": range}))).unwrap_err();
            assert!(error.contains(said) && error.contains("pod-ranges"), "{range}: {error}");
        }
    }

    #[test]
    fn the_own_clusters_link_leads_nowhere() {
        let mut link = example(json!({}));
        link.spec.target_cluster_name = Some(String::new());
        assert_eq!(linkerd(&link), Ok(None));
    }

    fn example(annotations: Value) -> LinkerdLink {
        serde_json::from_value(json!({
            "metadata": {"name": "east-gw", "namespace": "linkerd-multicluster", "annotations": annotations},
            "spec": {"targetClusterName": "east-gw", "selector": {"matchLabels": {"mirror.linkerd.io/exported": "true"}}},
        }))
        .unwrap()
    }
}
