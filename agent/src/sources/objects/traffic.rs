//! How a Service's owner wants connections spread: annotations of ours, the API's own field, Cilium's annotation.
//!
//! What was written wrongly is said and left out, as if it had not been written; it never takes a Service away.

use super::{annotation, cluster_name, names};
use crate::model::{ClusterName, Order, Traffic};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// The wish of the object that `meta` belongs to; adds to `problems` what of it can't be met.
///
/// The first of these that is there decides on the order: annotation `tombolo.io/traffic`, annotation
/// `tombolo.io/clusters`, field `spec.trafficDistribution`, annotation `service.cilium.io/affinity`.
pub(super) fn traffic(
    meta: &ObjectMeta,
    distribution: Option<&str>,
    cluster: &ClusterName,
    problems: &mut Vec<String>,
) -> Traffic {
    let mut traffic = unannotated(meta, distribution, cluster, problems);
    let clusters = parse(meta, names::CLUSTERS, clusters, problems);
    match (parse(meta, names::TRAFFIC, named_order, problems), clusters) {
        (None | Some(Named::Clusters), Some(clusters)) => traffic = ordered(Order::Clusters(clusters)),
        (None, None) => {}
        (Some(Named::Clusters), None) => {
            problems.push(format!("annotation {}: clusters needs their names in {}", names::TRAFFIC, names::CLUSTERS));
        }
        (Some(Named::Order(order)), clusters) => {
            if clusters.is_some() {
                problems.push(format!("annotation {}: only with {}: clusters", names::CLUSTERS, names::TRAFFIC));
            }
            traffic = ordered(order);
        }
    }
    if let Some(weights) = parse(meta, names::WEIGHTS, weights, problems) {
        traffic.weights = weights;
    }
    if let Some(minimum) = parse(meta, names::LOCAL_MINIMUM, at_least_one, problems) {
        if traffic.order == Order::LocalFirst {
            traffic.local_minimum = Some(minimum);
        } else {
            problems.push(format!("annotation {}: only with {}: local-first", names::LOCAL_MINIMUM, names::TRAFFIC));
        }
    }
    traffic
}

/// What holds without annotations of ours.
fn unannotated(
    meta: &ObjectMeta,
    distribution: Option<&str>,
    cluster: &ClusterName,
    problems: &mut Vec<String>,
) -> Traffic {
    match distribution {
        None | Some("") => {}
        // Preferring the same node is more than we offer; the same zone comes nearest.
        Some("PreferClose" | "PreferSameZone" | "PreferSameNode") => return ordered(Order::ZoneFirst),
        Some(other) => problems.push(format!("spec.trafficDistribution: {other:?} is not known")),
    }
    if annotation(meta, names::CILIUM_GLOBAL) != Some("true") {
        return Traffic::default();
    }
    match annotation(meta, names::CILIUM_AFFINITY) {
        None | Some("" | "none") => Traffic::default(),
        // Cilium goes elsewhere only when no local endpoint is left: one carries the whole load.
        Some("local") => Traffic { local_minimum: Some(1), ..ordered(Order::LocalFirst) },
        // Nothing for the own cluster while another one has endpoints.
        Some("remote") => Traffic { weights: BTreeMap::from([(cluster.clone(), 0)]), ..Traffic::default() },
        Some(other) => {
            let known = "is none of local, remote, none";
            problems.push(format!("annotation {}: {other:?} {known}", names::CILIUM_AFFINITY));
            Traffic::default()
        }
    }
}

fn ordered(order: Order) -> Traffic {
    Traffic { order, ..Traffic::default() }
}

fn parse<T>(
    meta: &ObjectMeta,
    name: &str,
    parse: fn(&str) -> Result<T, String>,
    problems: &mut Vec<String>,
) -> Option<T> {
    parse(annotation(meta, name)?).map_err(|reason| problems.push(format!("annotation {name}: {reason}"))).ok()
}

enum Named {
    Order(Order),
    /// The clusters are in an annotation of their own.
    Clusters,
}

fn named_order(text: &str) -> Result<Named, String> {
    match text.trim() {
        "spread" => Ok(Named::Order(Order::Spread)),
        "local-first" => Ok(Named::Order(Order::LocalFirst)),
        "zone-first" => Ok(Named::Order(Order::ZoneFirst)),
        "clusters" => Ok(Named::Clusters),
        other => Err(format!("{other:?} is none of spread, local-first, zone-first, clusters")),
    }
}

fn clusters(text: &str) -> Result<Vec<ClusterName>, String> {
    let mut clusters = Vec::new();
    for name in text.split(',') {
        let name = cluster_name(name.trim())?;
        if clusters.contains(&name) {
            return Err(format!("{name} is there twice"));
        }
        clusters.push(name);
    }
    Ok(clusters)
}

fn weights(text: &str) -> Result<BTreeMap<ClusterName, u32>, String> {
    let mut weights = BTreeMap::new();
    for part in text.split(',') {
        let (name, share) =
            part.split_once('=').ok_or_else(|| format!("{:?} is not of the form cluster=percent", part.trim()))?;
        let name = cluster_name(name.trim())?;
        let share: u32 = match share.trim().parse() {
            Ok(share) if share <= 100 => share,
            _ => return Err(format!("{:?} is not from 0 to 100 per cent", share.trim())),
        };
        if weights.insert(name.clone(), share).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    let sum: u32 = weights.values().sum();
    if sum > 100 {
        return Err(format!("{sum} per cent in all are more than 100"));
    }
    Ok(weights)
}

fn at_least_one(text: &str) -> Result<u32, String> {
    match text.trim().parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{:?} is not a number from 1", text.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wish_connections_are_spread() {
        assert_eq!(wish(&[], None), (Traffic::default(), vec![]));
    }

    #[test]
    fn each_order_has_its_word() {
        for (word, order) in
            [("spread", Order::Spread), ("local-first", Order::LocalFirst), ("zone-first", Order::ZoneFirst)]
        {
            assert_eq!(wish(&[(names::TRAFFIC, word)], None), (ordered(order), vec![]));
        }
        let both = [(names::TRAFFIC, "clusters"), (names::CLUSTERS, "west, east")];
        let order = Order::Clusters(vec![cluster("west"), cluster("east")]);
        assert_eq!(wish(&both, None), (ordered(order.clone()), vec![]));
        assert_eq!(wish(&both[1..], None), (ordered(order), vec![]));
    }

    #[test]
    fn the_apis_field_holds_unless_an_annotation_says_otherwise() {
        for value in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
            assert_eq!(wish(&[], Some(value)).0.order, Order::ZoneFirst);
        }
        assert_eq!(wish(&[(names::TRAFFIC, "spread")], Some("PreferClose")).0.order, Order::Spread);
    }

    #[test]
    fn our_annotation_goes_before_ciliums() {
        let cilium = [(names::CILIUM_GLOBAL, "true"), (names::CILIUM_AFFINITY, "local")];
        let minimum = [cilium[0], cilium[1], (names::LOCAL_MINIMUM, "3")];
        assert_eq!(wish(&minimum, None).0, Traffic { local_minimum: Some(3), ..ordered(Order::LocalFirst) });
        let ours = [cilium[0], cilium[1], (names::TRAFFIC, "spread")];
        assert_eq!(wish(&ours, None).0, Traffic::default());
        assert_eq!(wish(&cilium[1..], None).0, Traffic::default());
    }

    #[test]
    fn weights_are_per_cent_by_cluster() {
        let (traffic, problems) = wish(&[(names::WEIGHTS, "north=10, west = 50")], None);
        assert_eq!(traffic.weights, BTreeMap::from([(cluster("north"), 10), (cluster("west"), 50)]));
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_said_and_left_out() {
        for (annotations, distribution, said) in [
            (&[(names::TRAFFIC, "fastest")][..], None, "\"fastest\" is none of"),
            (&[(names::TRAFFIC, "clusters")], None, "clusters needs their names in tombolo.io/clusters"),
            (&[(names::CLUSTERS, "west,,east")], None, "\"\" can't be a cluster's name"),
            (&[(names::CLUSTERS, "west,west")], None, "west is there twice"),
            (&[(names::TRAFFIC, "spread"), (names::CLUSTERS, "west")], None, "only with tombolo.io/traffic: clusters"),
            (&[(names::WEIGHTS, "north")], None, "not of the form cluster=percent"),
            (&[(names::WEIGHTS, "north=101")], None, "\"101\" is not from 0 to 100"),
            (&[(names::WEIGHTS, "north=-1")], None, "\"-1\" is not from 0 to 100"),
            (&[(names::WEIGHTS, "north=60,west=60")], None, "120 per cent in all"),
            (&[(names::WEIGHTS, "north=1,north=2")], None, "north is there twice"),
            (&[(names::WEIGHTS, "North=1")], None, "\"North\" can't be a cluster's name"),
            (&[(names::LOCAL_MINIMUM, "3")], None, "only with tombolo.io/traffic: local-first"),
            (&[(names::CILIUM_GLOBAL, "true"), (names::CILIUM_AFFINITY, "near")], None, "\"near\" is none of"),
            (&[], Some("PreferMoon"), "spec.trafficDistribution: \"PreferMoon\""),
        ] {
            let (traffic, problems) = wish(annotations, distribution);
            assert_eq!(traffic, Traffic::default(), "{annotations:?}");
            assert!(matches!(&problems[..], [problem] if problem.contains(said)), "{annotations:?}: {problems:?}");
        }
    }

    #[test]
    fn a_bad_minimum_leaves_the_order_as_it_is() {
        let (traffic, problems) = wish(&[(names::TRAFFIC, "local-first"), (names::LOCAL_MINIMUM, "0")], None);
        assert_eq!((traffic, problems.len()), (ordered(Order::LocalFirst), 1));
    }

    fn wish(annotations: &[(&str, &str)], distribution: Option<&str>) -> (Traffic, Vec<String>) {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let meta = ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() };
        let mut problems = Vec::new();
        let traffic = traffic(&meta, distribution, &cluster("west"), &mut problems);
        (traffic, problems)
    }

    fn cluster(name: &str) -> ClusterName {
        ClusterName(name.to_owned())
    }
}
