//! The CRDs that ship with the mirror, and which of them an API server needs.
//!
//! Other implementations of the MCS API install the same ones. Their labels say which release and which revision of it they
//! are, and what is newer is never replaced by what is older.

use anyhow::{Context, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// The manifests, by file name.
pub const MANIFESTS: [(&str, &str); 4] = [
    ("serviceexports.yaml", include_str!("../../../deploy/crds/serviceexports.yaml")),
    ("serviceimports.yaml", include_str!("../../../deploy/crds/serviceimports.yaml")),
    ("clusterproperties.yaml", include_str!("../../../deploy/crds/clusterproperties.yaml")),
    ("link.yaml", include_str!("../../../deploy/crds/link.yaml")),
];
/// The release of the MCS API that a CRD is from: `v0.5.0`.
const RELEASE: &str = "multicluster.x-k8s.io/release-version";
/// How often it changed since that release: a number.
const REVISION: &str = "multicluster.x-k8s.io/crd-schema-revision";
/// How often one of Tombolo's own changed: a number.
const OWN_REVISION: &str = "tombolo.io/crd-revision";
/// Who applies them.
const MANAGER: &str = "tombolo";
/// How long an API server may take to serve what it has accepted.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done about a CRD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It isn't there.
    Install,
    /// It is older, for this reason.
    Update(String),
    /// It is what we have, or as good.
    Keep,
    /// It is newer, for this reason.
    Newer(String),
}

/// The CRDs.
///
/// # Errors
///
/// A manifest can't be read, which is a defect.
pub fn ours() -> anyhow::Result<Vec<CustomResourceDefinition>> {
    let read = |(file, text): (&str, &str)| serde_saphyr::from_str(text).with_context(|| format!("read {file}"));
    MANIFESTS.into_iter().map(read).collect()
}

/// What is to be done, given what is `there`.
pub fn verdict(there: Option<&CustomResourceDefinition>, ours: &CustomResourceDefinition) -> Verdict {
    let Some(there) = there else { return Verdict::Install };
    // One that would lose a version could no longer read what is stored in it.
    let stored = there.status.iter().flat_map(|status| status.stored_versions.iter().flatten()).map(String::as_str);
    let theirs: BTreeSet<&str> = served(there).chain(stored).collect();
    let has: BTreeSet<&str> = served(ours).collect();
    if let Some(version) = theirs.difference(&has).next() {
        return Verdict::Newer(format!("it has version {version}"));
    }
    if let Some(version) = has.difference(&served(there).collect()).next() {
        return Verdict::Update(format!("it doesn't serve {version}"));
    }
    match (release(there), release(ours)) {
        (Some(theirs), Some(ours)) if theirs > ours => Verdict::Newer(format!("it is of {theirs}")),
        (Some(theirs), Some(ours)) if theirs < ours => Verdict::Update(format!("it is of {theirs}")),
        // Without labels, who made it is not known: it serves what is needed, and that is enough.
        _ => Verdict::Keep,
    }
}

fn served(crd: &CustomResourceDefinition) -> impl Iterator<Item = &str> {
    crd.spec.versions.iter().filter(|version| version.served).map(|version| version.name.as_str())
}

/// A release and a revision of it, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    version: [u64; 3],
    /// A release candidate comes before its release.
    is_final: bool,
    revision: u64,
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.version;
        let candidate = if self.is_final { "" } else { " (candidate)" };
        write!(f, "release v{major}.{minor}.{patch}{candidate}, revision {}", self.revision)
    }
}

fn release(crd: &CustomResourceDefinition) -> Option<Release> {
    if crd.spec.group == "tombolo.io" {
        // One from before there was such a label is older than all that have it.
        let revision = crd.labels().get(OWN_REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0);
        return Some(Release { version: [0; 3], is_final: true, revision });
    }
    let text = crd.labels().get(RELEASE)?.strip_prefix('v')?;
    let (numbers, candidate) = text.split_once('-').map_or((text, None), |(numbers, rest)| (numbers, Some(rest)));
    let mut version = [0; 3];
    let mut parts = numbers.split('.');
    for number in &mut version {
        *number = parts.next()?.parse().ok()?;
    }
    let revision = crd.labels().get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0);
    Some(Release { version, is_final: candidate.is_none(), revision })
}

/// Brings one CRD in, if `verdict` says so, and waits until it is served. What was found.
///
/// # Errors
///
/// The API server can't be asked, refuses, or doesn't serve it in time.
pub async fn install(client: &Client, ours: &CustomResourceDefinition) -> anyhow::Result<Verdict> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = ours.name_any();
    let there = api.get_opt(&name).await.with_context(|| format!("read the CRD {name}"))?;
    let verdict = verdict(there.as_ref(), ours);
    if matches!(verdict, Verdict::Keep | Verdict::Newer(_)) {
        return Ok(verdict);
    }
    // By force: whoever installed the older one doesn't apply that again on top, or else would have said so by a label.
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(ours)).await.with_context(|| format!("apply the CRD {name}"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = api.get(&name).await.with_context(|| format!("read the CRD {name}"))?;
        let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_established = conditions.into_iter().any(|it| it.type_ == "Established" && it.status == "True");
        if is_established {
            return Ok(verdict);
        }
        if Instant::now() > deadline {
            bail!("the API server took the CRD {name}, and doesn't serve it after {} s", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as api;

    #[test]
    fn both_versions_are_served_with_one_schema_and_the_newer_one_is_stored() {
        for crd in ours().unwrap().into_iter().filter(|crd| crd.spec.group != "tombolo.io") {
            let [beta, alpha] = &crd.spec.versions[..] else { panic!("{:?}", crd.spec.versions) };
            assert_eq!([beta.name.as_str(), alpha.name.as_str()], ["v1beta1", "v1alpha1"]);
            assert_eq!([beta.storage, alpha.storage, beta.served, alpha.served], [true, false, true, true]);
            assert_eq!(beta.schema, alpha.schema);
            assert_eq!(crd.name_any(), format!("{}.{}", crd.spec.names.plural, crd.spec.group));
        }
    }

    #[test]
    fn what_is_not_there_is_installed_and_what_is_the_same_is_kept() {
        for crd in ours().unwrap() {
            assert_eq!(verdict(None, &crd), Verdict::Install);
            assert_eq!(verdict(Some(&crd), &crd), Verdict::Keep);
        }
    }

    #[test]
    fn releases_are_compared_by_number_and_then_by_revision() {
        for (release, revision, expected) in [
            ("v0.4.1", Some("7"), "update"),
            ("v0.5.0-rc.1", Some("0"), "update"),
            ("v0.5.0", None, "keep"),
            ("v0.5.0", Some("0"), "keep"),
            ("v0.5.0", Some("1"), "newer"),
            ("v0.5.1", Some("0"), "newer"),
            ("v0.10.0", Some("0"), "newer"),
            ("nonsense", Some("1"), "keep"),
        ] {
            let mut there = example();
            let labels = there.metadata.labels.as_mut().unwrap();
            labels.insert(RELEASE.to_owned(), release.to_owned());
            match revision {
                Some(revision) => drop(labels.insert(REVISION.to_owned(), revision.to_owned())),
                None => drop(labels.remove(REVISION)),
            }
            let found = match verdict(Some(&there), &example()) {
                Verdict::Update(_) => "update",
                Verdict::Keep => "keep",
                Verdict::Newer(_) => "newer",
                Verdict::Install => "install",
            };
            assert_eq!(found, expected, "{release} {revision:?}");
        }
    }

    #[test]
    fn without_labels_versions_decide() {
        let mut alpha = example();
        alpha.metadata.labels = None;
        alpha.spec.versions.remove(0);
        assert!(matches!(verdict(Some(&alpha), &example()), Verdict::Update(_)));
        let mut both = example();
        both.metadata.labels = None;
        assert_eq!(verdict(Some(&both), &example()), Verdict::Keep);
    }

    #[test]
    fn a_version_that_ours_lacks_is_never_taken_away_even_if_it_is_only_stored() {
        let mut there = example();
        there.spec.versions.insert(
            0,
            api::CustomResourceDefinitionVersion {
                name: "v1".to_owned(),
                served: true,
                ..there.spec.versions[0].clone()
            },
        );
        assert_eq!(verdict(Some(&there), &example()), Verdict::Newer("it has version v1".to_owned()));
        let mut there = example();
        there.metadata.labels.as_mut().unwrap().insert(RELEASE.to_owned(), "v0.1.0".to_owned());
        there.status = Some(api::CustomResourceDefinitionStatus {
            stored_versions: Some(vec!["v1".to_owned()]),
            ..Default::default()
        });
        assert!(matches!(verdict(Some(&there), &example()), Verdict::Newer(_)));
    }

    #[test]
    fn our_own_are_known_by_their_revision() {
        let link = ours().unwrap().pop().unwrap();
        let with = |revision: Option<&str>| {
            let mut there = link.clone();
            let labels = there.metadata.labels.as_mut().unwrap();
            match revision {
                Some(revision) => drop(labels.insert(OWN_REVISION.to_owned(), revision.to_owned())),
                None => drop(labels.remove(OWN_REVISION)),
            }
            there
        };
        assert!(matches!(verdict(Some(&with(None)), &link), Verdict::Update(_)));
        assert!(matches!(verdict(Some(&with(Some("1000"))), &link), Verdict::Newer(_)));
        assert_eq!(verdict(Some(&link), &link), Verdict::Keep);
    }

    fn example() -> CustomResourceDefinition {
        ours().unwrap().remove(0)
    }
}
