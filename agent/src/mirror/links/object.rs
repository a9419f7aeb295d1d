//! Tombolo's own Link: an object in the mirror's namespace, beside the Secret that it names.

use super::plain;
use crate::{
    mirror::{
        lease::Terms,
        source::{Link, LinkName, Quota},
        validate,
    },
    model::{ClusterName, ObjectName},
    sources::objects::cluster_name,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// The group of Tombolo's own objects.
pub const GROUP: &str = "tombolo.io";
/// The version that is read and written.
pub const VERSION: &str = "v1alpha1";

/// A tombolo.io Link.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LinkObject {
    /// The object's metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it asks for.
    #[serde(default)]
    pub spec: LinkSpec,
    /// What was said of it.
    #[serde(default)]
    pub status: Option<Value>,
}

/// What a Link asks for. What is left out is as `deploy/crds/link.yaml` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkSpec {
    /// The peer's id in the ClusterSet; the Link's name by default.
    pub cluster: Option<String>,
    /// Where the peer's kubeconfig is.
    pub credentials: CredentialsSpec,
    /// What of the peer can be reached.
    pub mode: Mode,
    /// Where its pods may be.
    pub pod_ranges: Vec<String>,
    /// Where its gateways may be.
    pub gateway_ranges: Vec<String>,
    /// How much it may bring in.
    pub quotas: QuotaSpec,
    /// How long it may be silent.
    pub lease: LeaseSpec,
}

/// A key of a Secret in the Link's namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CredentialsSpec {
    /// The Secret's name.
    pub secret_name: Option<String>,
    /// The key of its data; `kubeconfig` by default.
    pub key: Option<String>,
}

/// What of a peer can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Mode {
    /// Its pods, by their addresses.
    #[default]
    Flat,
    /// Its gateways only.
    Gateway,
}

/// How much a peer may bring in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaSpec {
    /// Exports, each by each convention counted.
    pub exports: Option<u32>,
    /// Endpoints of one export.
    pub endpoints_per_export: Option<u32>,
}

/// How long a peer may be silent, in seconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Until it is lost.
    pub seconds: Option<u32>,
    /// Lost for so long, its endpoints come last.
    pub stale_after_seconds: Option<u32>,
    /// Lost for so long, its endpoints are removed.
    pub remove_after_seconds: Option<u32>,
}

/// The key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey {
    /// The Secret.
    pub secret: ObjectName,
    /// The key of its data.
    pub key: String,
}

/// The Secret that a Link names.
///
/// # Errors
///
/// It names none.
pub fn secret(object: &LinkObject, name: &ObjectName) -> Result<SecretKey, String> {
    let given = &object.spec.credentials;
    let secret = given.secret_name.as_deref().filter(|name| !name.is_empty());
    let secret = secret.ok_or("spec.credentials.secretName is missing")?;
    Ok(SecretKey {
        secret: ObjectName { namespace: name.namespace.clone(), name: secret.to_owned() },
        key: given.key.clone().unwrap_or_else(|| super::credentials::KEY.to_owned()),
    })
}

/// A link as a Link says it.
///
/// # Errors
///
/// A name, a range or a term that is none, in a person's words.
pub fn link(object: &LinkObject, name: &ObjectName) -> Result<(LinkName, Link), String> {
    let spec = &object.spec;
    let cluster = spec.cluster.as_deref().filter(|cluster| !cluster.is_empty()).unwrap_or(&name.name);
    let cluster = cluster_name(cluster).map_err(|reason| format!("spec.cluster: {reason}"))?;
    let default = Quota::default();
    let size = |given: Option<u32>, default| given.map_or(default, |given| usize::try_from(given).unwrap_or(default));
    let link = Link {
        suffix: name.name.clone(),
        is_flat: spec.mode == Mode::Flat,
        pod_ranges: ranges(&spec.pod_ranges, "spec.podRanges")?,
        gateway_ranges: ranges(&spec.gateway_ranges, "spec.gatewayRanges")?,
        quota: Quota {
            exports: size(spec.quotas.exports, default.exports),
            endpoints: size(spec.quotas.endpoints_per_export, default.endpoints),
        },
        ..plain(cluster, crate::mirror::read::created(&object.metadata))
    };
    Ok((LinkName(name.name.clone()), link))
}

/// The cluster that a Link leads to, if that alone can be understood: the one that it was understood to lead to last, as its
/// status says, else what its spec says by itself.
pub fn cluster(object: &LinkObject, name: &ObjectName) -> Option<ClusterName> {
    let told = object.status.as_ref().and_then(|status| cluster_name(status["cluster"].as_str()?).ok());
    let given = object.spec.cluster.as_deref().filter(|cluster| !cluster.is_empty());
    told.or_else(|| cluster_name(given.unwrap_or(&name.name)).ok())
}

/// How long the peer may be silent; `default` where the Link doesn't say.
///
/// # Errors
///
/// The terms contradict each other.
pub fn terms(object: &LinkObject, default: Terms) -> Result<Terms, String> {
    let given = &object.spec.lease;
    let seconds = |given: Option<u32>| given.map(|seconds| Duration::from_secs(seconds.into()));
    let lease = seconds(given.seconds).unwrap_or(default.lease);
    let removed = seconds(given.remove_after_seconds).unwrap_or(default.removed);
    let stale = match (seconds(given.stale_after_seconds), given.remove_after_seconds) {
        (Some(stale), _) => stale,
        (None, Some(_)) => removed / 6,
        (None, None) => default.stale,
    };
    if lease < Duration::from_secs(10) {
        return Err("spec.lease.seconds: less than 10 would take a hiccup for a loss".to_owned());
    }
    if stale > removed {
        return Err("spec.lease: staleAfterSeconds is more than removeAfterSeconds".to_owned());
    }
    Ok(Terms { lease, stale, removed, ..default })
}

fn ranges(given: &[String], field: &str) -> Result<Vec<IpNet>, String> {
    let range =
        |(index, text): (usize, &String)| validate::range(text).map_err(|reason| format!("{field}[{index}]: {reason}"));
    given.iter().enumerate().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_out_is_as_the_crd_says() {
        let (name, link) = link(&object(json!({})), &east()).unwrap();
        assert_eq!((name.0.as_str(), link.cluster.0.as_str(), link.suffix.as_str()), ("east", "east", "east"));
        assert!(link.is_flat && link.pod_ranges.is_empty() && link.quota == Quota::default());
        assert_eq!(terms(&object(json!({})), Terms::default()).unwrap(), Terms::default());
        assert_eq!(secret(&object(json!({})), &east()).unwrap_err(), "spec.credentials.secretName is missing");
        let key = secret(&object(json!({"credentials": {"secretName": "s"}})), &east()).unwrap();
        assert_eq!((key.secret.to_string().as_str(), key.key.as_str()), ("tombolo-system/s", "kubeconfig"));
    }

    #[test]
    fn what_is_said_is_taken() {
        let spec = json!({
            "cluster": "east-1", "mode": "Gateway", "podRanges": ["10.108.0.0/14"],
            "gatewayRanges": ["198.51.100.0/24"], "quotas": {"exports": 5, "endpointsPerExport": 7},
            "lease": {"seconds": 20, "removeAfterSeconds": 600},
        });
        let (_, link) = link(&object(spec.clone()), &east()).unwrap();
        assert_eq!((link.cluster.0.as_str(), link.suffix.as_str(), link.is_flat), ("east-1", "east", false));
        assert_eq!(link.quota, Quota { exports: 5, endpoints: 7 });
        let terms = terms(&object(spec), Terms::default()).unwrap();
        let seconds = |seconds| Duration::from_secs(seconds);
        assert_eq!((terms.lease, terms.stale, terms.removed), (seconds(20), seconds(100), seconds(600)));
    }

    #[test]
    fn what_makes_no_sense_is_named_by_its_field() {
        for (spec, said) in [
            (json!({"podRanges": ["10.0.0.0/8", "x"]}), "spec.podRanges[1]"),
            (json!({"gatewayRanges": ["127.0.0.0/8"]}), "spec.gatewayRanges[0]"),
            (json!({"cluster": "East!"}), "spec.cluster"),
        ] {
            let error = link(&object(spec.clone()), &east()).unwrap_err();
            assert!(error.contains(said), "{spec}: {error}");
        }
        for (lease, said) in [
            (json!({"seconds": 3}), "spec.lease.seconds"),
            (json!({"staleAfterSeconds": 900, "removeAfterSeconds": 600}), "staleAfterSeconds is more"),
        ] {
            let error = terms(&object(json!({"lease": lease})), Terms::default()).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    fn east() -> ObjectName {
        ObjectName { namespace: "tombolo-system".to_owned(), name: "east".to_owned() }
    }

    fn object(spec: Value) -> LinkObject {
        serde_json::from_value(json!({"metadata": {"name": "east", "namespace": "tombolo-system"}, "spec": spec}))
            .unwrap()
    }
}
