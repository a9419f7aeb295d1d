//! Whether this node has a way out: what the kernel says of its default routes and of the links they go over.

use std::{collections::BTreeSet, fs};

/// A link that default routes go over; whether it is an IPv4 or IPv6 one does not matter.
type Links = BTreeSet<String>;

/// Watches the default routes. A node that never had any is connected by other means: nothing is said of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Uplink {
    had_route: bool,
}

impl Uplink {
    /// Whether there is a default route over a link that works, as far as can be seen.
    pub(super) fn is_up(&mut self) -> bool {
        let links = default_links();
        self.had_route |= !links.is_empty();
        !self.had_route || links.iter().any(|link| has_carrier(link) != Some(false))
    }
}

fn default_links() -> Links {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let (v4, v6) = (read("route"), read("ipv6_route"));
    v4.lines().filter_map(link_of_v4).chain(v6.lines().filter_map(link_of_v6)).map(str::to_owned).collect()
}

/// The link of a default route: destination and mask are 0, and the route is up (bit 0 of the flags).
fn link_of_v4(line: &str) -> Option<&str> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [link, "00000000", _, flags, _, _, _, "00000000", ..] = fields[..] else { return None };
    is_up(flags).then_some(link)
}

/// The same; routes that refuse (bit 9) go over `lo`.
fn link_of_v6(line: &str) -> Option<&str> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, "00", _, _, _, _, _, _, flags, link] = fields[..] else { return None };
    let is_default = destination.bytes().all(|digit| digit == b'0') && link != "lo";
    (is_default && is_up(flags)).then_some(link)
}

fn is_up(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1)
}

/// Whether a link has its carrier; none if that can't be known, be it that `/sys` shows another network namespace.
fn has_carrier(link: &str) -> Option<bool> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let here: BTreeSet<String> =
        devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    let shown = fs::read_dir("/sys/class/net").ok()?;
    let links = shown.flatten().filter(|entry| entry.path().is_dir());
    let shown: BTreeSet<String> = links.filter_map(|link| link.file_name().into_string().ok()).collect();
    if shown != here {
        return None;
    }
    // A link that is set down has no carrier that could be read (EINVAL).
    match fs::read_to_string(format!("/sys/class/net/{link}/carrier")) {
        Ok(carrier) => Some(carrier.trim() == "1"),
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_told_from_others() {
        let v4 = |line| link_of_v4(line);
        assert_eq!(v4("eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"), Some("eth0"));
        assert_eq!(v4("eth0\t00000000\t0100A8C0\t0002\t0\t0\t100\t00000000\t0\t0\t0"), None, "down");
        assert_eq!(v4("eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0"), None);
        assert_eq!(v4("tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0"), None, "half of all");
        assert_eq!(v4("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"), None);
        let zero = "00000000000000000000000000000000";
        let v6 = |destination: &str, flags: &str, link: &str| {
            let line = format!(
                "{destination} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags} {link}"
            );
            link_of_v6(&line).map(str::to_owned)
        };
        assert_eq!(v6(zero, "00000003", "eth0").as_deref(), Some("eth0"));
        assert_eq!(v6(zero, "00200200", "lo"), None, "unreachable");
        assert_eq!(v6("fd000000000000000000000000000000", "00000001", "eth0"), None);
    }
}
