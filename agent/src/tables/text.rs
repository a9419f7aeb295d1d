//! Names in the kernel's tables: fixed room, zero-filled.

use crate::model::{ClusterName, ObjectName};
use tombolo_ebpf::abi::{Cluster, ServiceName, verdict};

/// The entry of a cluster that takes connections; none if the name is empty or has no room.
pub fn cluster_entry(name: &ClusterName) -> Option<Cluster> {
    let mut entry = Cluster {
        verdict: verdict::OK,
        keepalive_idle: 0,
        keepalive_interval: 0,
        keepalive_count: 0,
        syn_timeout: 0,
        name: [0; 64],
    };
    let room = entry.name.get_mut(..name.0.len()).filter(|room| !room.is_empty())?;
    room.copy_from_slice(name.0.as_bytes());
    Some(entry)
}

/// The name in a cluster's entry.
pub fn cluster_name(entry: &Cluster) -> ClusterName {
    ClusterName(text(&entry.name))
}

/// The entry of a service's name, `namespace/name`, cut at 127 bytes.
pub fn service_name(name: &ObjectName) -> ServiceName {
    let mut entry = ServiceName { bytes: [0; 128] };
    let text = name.to_string();
    let text = &text[..text.floor_char_boundary(127)];
    entry.bytes[..text.len()].copy_from_slice(text.as_bytes());
    entry
}

/// The name in a service's entry, as far as it had room.
pub fn object_name(entry: &ServiceName) -> ObjectName {
    let text = text(&entry.bytes);
    let (namespace, name) = text.split_once('/').unwrap_or(("", &text));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_written() {
        let west = ClusterName("west".into());
        assert_eq!(cluster_name(&cluster_entry(&west).unwrap()), west);
        let name = ObjectName { namespace: "shop".into(), name: "frontend".into() };
        assert_eq!(object_name(&service_name(&name)), name);
    }

    #[test]
    fn a_service_name_is_cut_between_characters() {
        let name = ObjectName { namespace: "a".repeat(63), name: "é".repeat(64) };
        let entry = service_name(&name);
        assert_eq!(object_name(&entry).name, "é".repeat(31));
        assert_eq!(service_name(&object_name(&entry)), entry);
    }

    #[test]
    fn a_cluster_name_without_room_is_no_entry() {
        assert!(cluster_entry(&ClusterName("c".repeat(64))).is_some());
        assert_eq!(cluster_entry(&ClusterName("c".repeat(65))), None);
        assert_eq!(cluster_entry(&ClusterName(String::new())), None);
    }
}
