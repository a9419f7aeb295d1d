//! What follows from what is known: no I/O.

use super::{Finding, Verdict, found};
use crate::mirror::{
    links::book::{Definer, Wanted},
    source::LinkName,
    world::OwnAddresses,
};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// Clocks that are further apart than this, in seconds, are worth a word; than that, trouble.
const APART: i64 = 5;
const FAR_APART: i64 = 300;

/// What is wrong with a link by itself and beside others.
pub(super) fn link(
    name: &LinkName,
    wanted: &Wanted,
    all: &BTreeMap<LinkName, Wanted>,
    own: &OwnAddresses,
) -> Vec<Finding> {
    let say = |check, verdict, text: String| found(Some(name.0.clone()), check, verdict, text);
    let mut findings = Vec::new();
    match &wanted.problem {
        Some(problem) => findings.push(say("link", Verdict::Problem, problem.clone())),
        None => {
            let kind = if matches!(wanted.definer, Definer::Linkerd(_)) { "Linkerd's Link" } else { "Link" };
            let mode = if wanted.link.is_flat { "flat" } else { "by gateway" };
            findings.push(say("link", Verdict::Ok, format!("{kind} to cluster {}, {mode}", wanted.link.cluster.0)));
        }
    }
    for condition in ["Accepted", "CredentialsValid", "Connected", "EndpointsAccepted", "Written"] {
        if let Some([status, reason, message]) = wanted.told.conditions.get(condition)
            && status == "False"
        {
            let text = format!("the mirror says: {condition} is False ({reason}): {message}");
            findings.push(say("status", Verdict::Warning, text));
        }
    }
    if wanted.told.conditions.is_empty() && matches!(wanted.definer, Definer::Tombolo(_)) {
        let text = "no mirror has said anything of this link: does one run, and may it watch Links?";
        findings.push(say("status", Verdict::Warning, text.to_owned()));
    }
    findings.push(match ranges(name, wanted, all, own) {
        Ok(text) => say("ranges", Verdict::Ok, text),
        Err((verdict, text)) => say("ranges", verdict, text),
    });
    findings.push(match &wanted.credentials {
        Err(reason) => say("credential", Verdict::Problem, reason.clone()),
        Ok(credentials) => {
            let now = Timestamp::now();
            let left = credentials.validity().map(|it| (it.end.as_second() - now.as_second(), it.is_short(now)));
            let (verdict, text) = credential(left, credentials.is_unverified());
            say("credential", verdict, text)
        }
    });
    findings
}

/// What to say of a credential that ends in so many seconds, if it ends, and whether that is soon.
fn credential(left: Option<(i64, bool)>, is_unverified: bool) -> (Verdict, String) {
    match left {
        Some((left, _)) if left <= 0 => (Verdict::Problem, format!("the credential ended {} ago", span(-left))),
        Some((left, true)) => (Verdict::Warning, format!("the credential ends in {}", span(left))),
        _ if is_unverified => {
            let text =
                "the kubeconfig says insecure-skip-tls-verify: whoever answers at that address is taken for the peer";
            (Verdict::Warning, text.to_owned())
        }
        Some((left, false)) => (Verdict::Ok, format!("ends in {}", span(left))),
        None => (Verdict::Ok, "doesn't end by itself".to_owned()),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Whether a link's ranges hold the peer's addresses and nobody else's.
fn ranges(
    name: &LinkName,
    wanted: &Wanted,
    all: &BTreeMap<LinkName, Wanted>,
    own: &OwnAddresses,
) -> Result<String, (Verdict, String)> {
    let link = &wanted.link;
    let overlaps = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    for range in link.pod_ranges.iter().chain(&link.gateway_ranges) {
        if let Some(theirs) = own.pod_ranges.iter().find(|theirs| overlaps(range, theirs)) {
            let text = format!(
                "{range} overlaps this cluster's own pods ({theirs}): an address in both can't be told apart, and is refused. \
                 Clusters that are linked flat need pod ranges of their own"
            );
            return Err((Verdict::Problem, text));
        }
        if let Some(host) = own.hosts.iter().find(|host| range.contains(*host)) {
            return Err((
                Verdict::Problem,
                format!("{range} holds a node of this cluster ({host}): the range is too wide"),
            ));
        }
        if let Some(theirs) = own.service_ranges.iter().find(|theirs| overlaps(range, theirs)) {
            let text =
                format!("{range} overlaps this cluster's own Services ({theirs}): addresses in both are refused");
            return Err((Verdict::Problem, text));
        }
        for (other, another) in
            all.iter().filter(|(other, another)| *other != name && another.link.cluster != link.cluster)
        {
            if let Some(theirs) = another.link.pod_ranges.iter().find(|theirs| overlaps(range, theirs)) {
                let text = format!(
                    "{range} overlaps {theirs} of link {other}: one of the two is wrong, or the clusters' pods overlap"
                );
                return Err((Verdict::Problem, text));
            }
        }
    }
    if link.is_flat && link.pod_ranges.is_empty() {
        let hint = if link.is_linkerds { "annotation tombolo.io/pod-ranges" } else { "spec.podRanges" };
        let text = format!(
            "no pod ranges ({hint}): the peer may offer endpoints at any address that isn't refused for another reason"
        );
        return Err((Verdict::Warning, text));
    }
    let named: Vec<String> = link.pod_ranges.iter().chain(&link.gateway_ranges).map(ToString::to_string).collect();
    Ok(if named.is_empty() { "none declared".to_owned() } else { named.join(", ") })
}

/// What to say of a clock that showed `theirs`, in whole seconds, to a question asked at `asked` and answered `took` later.
pub(super) fn clock(theirs: Timestamp, asked: Timestamp, took: Duration) -> (Verdict, String) {
    let earliest = asked.as_second() - 1;
    let latest = asked.as_second() + i64::try_from(took.as_secs()).unwrap_or(i64::MAX - 1) + 1;
    let apart = match theirs.as_second() {
        theirs if theirs < earliest => theirs - earliest,
        theirs if theirs > latest => theirs - latest,
        _ => 0,
    };
    let which = if apart < 0 { "behind" } else { "ahead of" };
    let text = format!("the peer's clock is {} {which} this one", span(apart.abs()));
    match apart.abs() {
        0..APART => (Verdict::Ok, "clocks agree".to_owned()),
        APART..FAR_APART => (Verdict::Warning, format!("{text}: ages of exports may be compared wrongly")),
        _ => (Verdict::Problem, format!("{text}: tokens and certificates may count as not valid yet, or ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mirror::{lease::Terms, links::plain, source::Told},
        model::{ClusterName, ObjectName},
    };

    #[test]
    fn ranges_that_hold_others_addresses_are_problems() {
        let own = OwnAddresses {
            pod_ranges: vec!["10.100.0.0/24".parse().unwrap()],
            service_ranges: vec!["10.96.0.10/32".parse().unwrap()],
            hosts: ["192.168.7.4".parse().unwrap()].into(),
            ready_nodes: [].into(),
        };
        let north = ("north", wanted("north", &["10.116.0.0/14"]));
        let all = BTreeMap::from([(LinkName(north.0.to_owned()), north.1)]);
        for (range, verdict, said) in [
            ("10.108.0.0/14", None, ""),
            ("10.100.0.0/14", Some(Verdict::Problem), "this cluster's own pods (10.100.0.0/24)"),
            ("192.168.0.0/16", Some(Verdict::Problem), "a node of this cluster (192.168.7.4)"),
            ("10.96.0.0/12", Some(Verdict::Problem), "this cluster's own"),
            ("10.116.4.0/24", Some(Verdict::Problem), "overlaps 10.116.0.0/14 of link north"),
        ] {
            let found = ranges(&LinkName("east".to_owned()), &wanted("east", &[range]), &all, &own);
            assert_eq!(found.as_ref().err().map(|(verdict, _)| *verdict), verdict, "{range}");
            assert!(found.err().is_none_or(|(_, text)| text.contains(said)), "{range}");
        }
        let none = ranges(&LinkName("east".to_owned()), &wanted("east", &[]), &all, &own);
        assert_eq!(none.unwrap_err().0, Verdict::Warning);
        let twice = ranges(&LinkName("north-gw".to_owned()), &wanted("north", &["10.116.0.0/14"]), &all, &own);
        assert!(twice.is_ok(), "two links to one cluster have one range");
    }

    #[test]
    fn a_credential_that_ends_soon_is_told_a_week_before() {
        for (left, verdict, said) in [
            (None, Verdict::Ok, "doesn't end"),
            (Some((30 * 86_400, false)), Verdict::Ok, "ends in 30 days"),
            (Some((6 * 86_400, true)), Verdict::Warning, "ends in 6 days"),
            (Some((3000, true)), Verdict::Warning, "ends in 50 min"),
            (Some((-7300, true)), Verdict::Problem, "ended 2 h ago"),
        ] {
            let (found, text) = credential(left, false);
            assert!(found == verdict && text.contains(said), "{left:?}: {text}");
        }
        assert_eq!(credential(None, true).0, Verdict::Warning);
    }

    #[test]
    fn what_the_way_there_and_back_explains_is_no_difference_of_clocks() {
        let asked = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        for (theirs, took, verdict) in [
            (at(0), 0, Verdict::Ok),
            (at(4), 4, Verdict::Ok),
            (at(-4), 0, Verdict::Ok),
            (at(-9), 0, Verdict::Warning),
            (at(60), 2, Verdict::Warning),
            (at(3600), 2, Verdict::Problem),
            (at(-3600), 2, Verdict::Problem),
        ] {
            assert_eq!(clock(theirs, asked, Duration::from_secs(took)).0, verdict, "{theirs} {took}");
        }
    }

    #[test]
    fn a_link_that_no_mirror_looked_at_says_so() {
        let wanted = wanted("east", &["10.108.0.0/14"]);
        let findings = link(&LinkName("east".to_owned()), &wanted, &BTreeMap::new(), &OwnAddresses::default());
        let ill: Vec<_> = findings.iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
        assert_eq!(ill.iter().map(|finding| finding.check).collect::<Vec<_>>(), ["status", "credential"]);
    }

    fn wanted(cluster: &str, ranges: &[&str]) -> Wanted {
        let mut link = plain(ClusterName(cluster.to_owned()), 0);
        link.pod_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Wanted {
            definer: Definer::Tombolo(ObjectName { namespace: "tombolo-system".to_owned(), name: cluster.to_owned() }),
            version: (String::new(), 1),
            told: Told::default(),
            link,
            terms: Terms::default(),
            credentials: Err("Secret x is not there".to_owned()),
            problem: None,
        }
    }
}
