//! Which port of an import leads to which port of a member's endpoints.

use super::{Member, Problem};
use crate::mirror::source::{Port, SlicePort};
use std::collections::BTreeSet;

/// Most ports of one import, so that no member makes it larger than what an API server takes.
const MAX_PORTS: usize = 1000;

/// All ports that members have, those of the first members first, each name and each number of a protocol once.
///
/// Who has a port under another name or number is told in `problems`. A nameless port gets a name once it isn't alone.
pub(super) fn union(members: &[Member<'_>], problems: &mut BTreeSet<Problem>) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for member in members {
        for port in &member.service.ports {
            let same_number = ports.iter().find(|other| is_same_number(other, port));
            let same_name = ports.iter().find(|other| other.name == port.name && !port.name.is_empty());
            match (same_number, same_name) {
                (None, None) if ports.len() < MAX_PORTS => ports.push(port.clone()),
                (None, None) => drop(problems.insert(Problem::TooManyPorts(member.name.clone()))),
                (Some(other), _) if other.name == port.name => {}
                _ => {
                    let shown = format!("{} {}/{}", port.name, port.port, port.protocol.name());
                    problems.insert(Problem::Port(member.name.clone(), shown.trim_start().to_owned()));
                }
            }
        }
    }
    if ports.len() > 1 {
        let taken: BTreeSet<String> = ports.iter().map(|port| port.name.clone()).collect();
        for port in ports.iter_mut().filter(|port| port.name.is_empty()) {
            let plain = format!("{}-{}", port.protocol.name().to_lowercase(), port.port);
            let free = |number: usize| match number {
                0 => plain.clone(),
                _ => format!("{plain}-{number}"),
            };
            port.name = (0..).map(free).find(|name| !taken.contains(name)).expect("there are more numbers than ports");
        }
    }
    ports
}

/// `ports`, and those of `others` that fit in by name and number.
pub(super) fn added(ports: &[Port], others: Vec<Port>) -> Vec<Port> {
    let mut all = ports.to_vec();
    for port in others {
        let is_there = all.iter().any(|other| is_same_number(other, &port) || other.name == port.name);
        if !is_there && !port.name.is_empty() && all.iter().all(|other| !other.name.is_empty()) {
            all.push(port);
        }
    }
    all
}

fn is_same_number(one: &Port, other: &Port) -> bool {
    (one.port, one.protocol) == (other.port, other.protocol)
}

/// What the endpoints of a member's slice with `given` ports serve of the import's `ports`.
///
/// Each port is looked up by its number in the member's own Service, whose name of it is the slice's: so every cluster may
/// call it as it likes and lead it where it likes, and a member that lacks a port gets none of its connections.
pub(super) fn resolve(ports: &[Port], member: &Member<'_>, given: &[SlicePort]) -> Vec<SlicePort> {
    let mut resolved: Vec<SlicePort> = Vec::new();
    for port in ports {
        let Some(own) = member.service.ports.iter().find(|own| is_same_number(own, port)) else { continue };
        let target = given.iter().find(|target| target.name == own.name && target.protocol == own.protocol);
        if let Some(target) = target {
            resolved.push(target_of(port, target.port));
        }
    }
    resolved.sort();
    resolved
}

/// The import's `port`, which is `number` on endpoints.
pub(super) fn target_of(port: &Port, number: u16) -> SlicePort {
    SlicePort {
        name: port.name.clone(),
        port: number,
        protocol: port.protocol,
        app_protocol: port.app_protocol.clone(),
    }
}
