//! What is wrong with links, in a person's words: `tombolo check`.
//!
//! Looks for itself, with the credentials that the mirror has, and from where it runs: whether pods can be reached from here says something
//! of the nodes only if this is one of them, or a pod. What the mirror says of its links is told beside that.

mod judge;
mod own;
mod peer;

use super::{
    lease::Terms,
    links::book::{Book, Definer, Wanted},
    source::LinkName,
};
use crate::{
    model::{ClusterName, ObjectName},
    sources::kubernetes::chain,
};
use kube::Client;
use serde::Serialize;
use std::collections::BTreeMap;
use tokio::task::JoinSet;

/// How it stands with what was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// It works, and may not for long, or not for all.
    Warning,
    /// It doesn't work.
    Problem,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The link; none for the own cluster.
    pub link: Option<String>,
    /// What was looked at.
    pub check: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// Why, and what to do.
    pub text: String,
}

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The namespace of Links.
    pub namespace: String,
    /// The namespace of Linkerd's Links.
    pub linkerd: String,
    /// One link; all of them otherwise.
    pub only: Option<String>,
    /// Whether pods are dialled.
    pub probes: bool,
}

/// Looks at the own cluster and at its links, all at once.
pub async fn check(own: &Client, scope: &Scope) -> Vec<Finding> {
    let mut findings = own::kinds(own).await;
    let (objects, listed) = own::links(own, scope).await;
    findings.extend(listed);
    // Only a name that nobody has: links to the own cluster are for the mirror to refuse.
    let mut book = Book::new(ClusterName(String::new()), Terms::default(), Default::default());
    for (name, object) in objects.tombolo {
        book.put_tombolo(name, Some(object));
    }
    for (name, object) in objects.linkerd {
        book.put_linkerd(name, Some(object));
    }
    for secret in book.secrets() {
        match own::secret(own, &secret).await {
            Ok(held) => book.put_secret(secret, held),
            Err(reason) => findings.push(found(None, "secrets", Verdict::Unknown, reason)),
        }
    }
    let (links, left) = book.links();
    for (definer, reason) in left {
        findings.push(found(Some(name(&definer)), "link", Verdict::Problem, format!("left out: {reason}")));
    }
    let wanted: BTreeMap<LinkName, Wanted> = links
        .iter()
        .filter(|(name, _)| scope.only.as_ref().is_none_or(|only| name.0 == *only))
        .map(|(name, wanted)| (name.clone(), wanted.clone()))
        .collect();
    if wanted.is_empty() {
        let text = match &scope.only {
            Some(only) => format!("there is no link {only}"),
            None => "there are no links: `tombolo link NAME` prints one".to_owned(),
        };
        findings.push(found(None, "links", Verdict::Problem, text));
    }
    let addresses = own::addresses(own).await;
    if let Err(reason) = &addresses {
        let text = format!("ranges can't be compared with this cluster's own: {reason}");
        findings.push(found(None, "addresses", Verdict::Unknown, text));
    }
    let addresses = addresses.unwrap_or_default();
    let mut peers = JoinSet::new();
    for (name, wanted) in wanted {
        findings.extend(judge::link(&name, &wanted, &links, &addresses));
        let probes = scope.probes;
        peers.spawn(async move { peer::look(&name, &wanted, probes).await });
    }
    while let Some(looked) = peers.join_next().await {
        findings.extend(looked.unwrap_or_else(|error| vec![found(None, "peer", Verdict::Unknown, error.to_string())]));
    }
    findings.sort_by(|one, other| one.link.cmp(&other.link));
    findings
}

fn name(definer: &Definer) -> String {
    let (Definer::Tombolo(ObjectName { name, .. }) | Definer::Linkerd(ObjectName { name, .. })) = definer;
    name.clone()
}

fn found(link: Option<String>, check: &'static str, verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { link, check, verdict, text: text.into() }
}
