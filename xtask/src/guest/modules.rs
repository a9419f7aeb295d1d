//! Which kernel modules a guest gets: those that the lab and the tests use, and what these need.

use std::collections::{BTreeMap, BTreeSet};

/// Asked for by name; what a kernel lacks or has built in is left out. `modprobe` in the guest loads them when `ip`, `tc`
/// or `nft` ask the kernel for them.
pub(crate) const WANTED: &[&str] = &[
    // Links between namespaces, and paths that are slow or lossy.
    "veth",
    "bridge",
    "dummy",
    "sch_netem",
    "sch_tbf",
    "sch_prio",
    // Gateways, broken paths, and what stands in for kube-proxy.
    "nf_tables",
    "nft_ct",
    "nft_limit",
    "nft_log",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_chain_nat",
    "nft_fib_inet",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_numgen",
    "nft_hash",
    "nft_socket",
    // Clusters that go dark: without it no rule of the bridge family can ask for a protocol or a link.
    "nft_meta_bridge",
    // What `ss` and tests ask about sockets, and a protocol that isn't translated.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "sctp",
];

/// A module's name as the kernel spells it: files have `-` where names have `_`.
pub(crate) fn name_of_file(file: &str) -> Option<String> {
    let stem =
        file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz")).or_else(|| file.strip_suffix(".ko.zst"))?;
    Some(stem.replace('-', "_"))
}

/// The modules that `module`, an unpacked file, needs: its own `depends=` line.
pub(crate) fn needs(module: &[u8]) -> Vec<String> {
    const LINE: &[u8] = b"depends=";
    let lines = module.split(|byte| *byte == 0).filter_map(|line| line.strip_prefix(LINE));
    let names = lines.flat_map(|line| line.split(|byte| *byte == b','));
    names.filter(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name).replace('-', "_")).collect()
}

/// The modules `wanted` and all that they need, each read once with `read`, which returns nothing for one that isn't there.
pub(crate) fn closure<E>(
    wanted: &[&str],
    mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>, E>,
) -> Result<BTreeMap<String, Vec<u8>>, E> {
    let mut modules = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    while let Some(name) = next.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(module) = read(&name)? {
            next.extend(needs(&module));
            modules.insert(name, module);
        }
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn what_a_module_needs_is_taken_along_once() {
        let files = BTreeMap::from([
            ("nft_nat", "depends=nf-tables,nf_nat"),
            ("nf_tables", "depends=nfnetlink"),
            ("nf_nat", "depends=nf_conntrack"),
            ("nf_conntrack", "depends="),
            ("nfnetlink", "depends="),
            ("unrelated", "depends="),
        ]);
        let mut reads = Vec::new();
        let modules = closure(&["nft_nat", "nf_tables", "built_in"], |name| {
            reads.push(name.to_owned());
            Ok::<_, Infallible>(
                files.get(name).map(|line| format!("\x7fELF\0license=GPL\0{line}\0vermagic=6\0").into_bytes()),
            )
        })
        .unwrap();
        let names: Vec<&str> = modules.keys().map(String::as_str).collect();
        assert_eq!(names, ["nf_conntrack", "nf_nat", "nf_tables", "nfnetlink", "nft_nat"]);
        reads.sort();
        reads.dedup();
        assert_eq!(reads.len(), 6, "each is read once: {reads:?}");
    }

    #[test]
    fn files_are_known_by_the_name_the_kernel_uses() {
        assert_eq!(name_of_file("nf-log-syslog.ko.xz").as_deref(), Some("nf_log_syslog"));
        assert_eq!(name_of_file("veth.ko").as_deref(), Some("veth"));
        assert_eq!(name_of_file("modules.builtin"), None);
    }
}
