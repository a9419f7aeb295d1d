//! In what ServiceExports of one name differ: the oldest decides, and all of them say so.

use crate::mirror::source::{Family, Port, Reach, Service, ServiceExport};
use std::collections::BTreeSet;

/// A reason of the standard's condition `Conflict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Ports of one name with other numbers, or ports that not all have.
    Port,
    /// Headless here, and with an address there.
    Type,
    /// Whether there is session affinity.
    SessionAffinity,
    /// Its timeout.
    SessionAffinityConfig,
    /// Exported labels.
    Labels,
    /// Exported annotations.
    Annotations,
    /// As the field.
    InternalTrafficPolicy,
    /// As the field.
    TrafficDistribution,
    /// A family that not all have.
    IpFamily,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Port,
        Self::Type,
        Self::SessionAffinity,
        Self::SessionAffinityConfig,
        Self::Labels,
        Self::Annotations,
        Self::InternalTrafficPolicy,
        Self::TrafficDistribution,
        Self::IpFamily,
    ];

    /// The reason that the standard spells so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// As the standard spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Port => "PortConflict",
            Self::Type => "TypeConflict",
            Self::SessionAffinity => "SessionAffinityConflict",
            Self::SessionAffinityConfig => "SessionAffinityConfigConflict",
            Self::Labels => "LabelsConflict",
            Self::Annotations => "AnnotationsConflict",
            Self::InternalTrafficPolicy => "InternalTrafficPolicyConflict",
            Self::TrafficDistribution => "TrafficDistributionConflict",
            Self::IpFamily => "IPFamilyConflict",
        }
    }

    /// In a person's words.
    pub fn message(self) -> &'static str {
        match self {
            Self::Port => "ports differ between clusters: each leads only to the clusters that have it",
            Self::Type => "headless in some clusters only",
            Self::SessionAffinity => "sessionAffinity differs between clusters",
            Self::SessionAffinityConfig => "the timeout of sessionAffinity differs between clusters",
            Self::Labels => "exportedLabels differ between clusters",
            Self::Annotations => "exportedAnnotations differ between clusters",
            Self::InternalTrafficPolicy => "internalTrafficPolicy differs between clusters",
            Self::TrafficDistribution => "trafficDistribution differs between clusters",
            Self::IpFamily => "IP families differ between clusters: each leads only to the clusters that have it",
        }
    }
}

/// In what `exports` differ from the first of them.
pub fn reasons(exports: &[(&Service, &ServiceExport)]) -> BTreeSet<Reason> {
    let Some(((first, first_export), others)) = exports.split_first() else { return BTreeSet::new() };
    let mut reasons = BTreeSet::new();
    for (service, export) in others {
        let timeouts_differ = service.affinity_seconds != first.affinity_seconds;
        let affinity_differs = service.affinity_seconds.is_some() != first.affinity_seconds.is_some();
        let differs = [
            (Reason::Port, ports(first) != ports(service)),
            (Reason::Type, (first.reach == Reach::Headless) != (service.reach == Reach::Headless)),
            (Reason::SessionAffinity, affinity_differs),
            (Reason::SessionAffinityConfig, timeouts_differ && !affinity_differs),
            (Reason::Labels, first_export.labels != export.labels),
            (Reason::Annotations, first_export.annotations != export.annotations),
            (Reason::InternalTrafficPolicy, is_node_local(first) != is_node_local(service)),
            (Reason::TrafficDistribution, first.traffic_distribution != service.traffic_distribution),
            (Reason::IpFamily, families(first) != families(service)),
        ];
        reasons.extend(differs.into_iter().filter(|(_, differs)| *differs).map(|(reason, _)| reason));
    }
    reasons
}

fn ports(service: &Service) -> BTreeSet<&Port> {
    service.ports.iter().collect()
}

/// Left out, it is `Cluster`.
fn is_node_local(service: &Service) -> bool {
    service.internal_traffic_policy.as_deref() == Some("Local")
}

fn families(service: &Service) -> BTreeSet<Family> {
    service.families.iter().copied().collect()
}
