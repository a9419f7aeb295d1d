//! Keys, certificates and kubeconfigs: each cluster has an authority of its own, and no user of one is a user of another.

use super::layout::{Cluster, MACHINE, Node};
use crate::process::{filter, output};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// How long certificates are valid. The clusters are for a day's work; state that lies longer is made anew.
const DAYS: &str = "365";

/// Whom a certificate names, and what for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// What its files are called.
    pub(crate) file: &'static str,
    /// Its group, if it has one.
    group: Option<&'static str>,
    name: String,
    /// Names and addresses that a server with it may have; a client's has none.
    servers: Vec<String>,
}

impl Subject {
    fn client(file: &'static str, group: Option<&'static str>, name: impl Into<String>) -> Self {
        Self { file, group, name: name.into(), servers: Vec::new() }
    }

    /// As openssl's `-subj` has it.
    fn text(&self) -> String {
        let group = self.group.map(|group| format!("/O={group}")).unwrap_or_default();
        format!("{group}/CN={}", self.name)
    }

    /// As openssl's `-extfile` has it.
    fn extensions(&self) -> String {
        if self.servers.is_empty() {
            return "extendedKeyUsage=clientAuth\n".to_owned();
        }
        format!("extendedKeyUsage=serverAuth\nsubjectAltName={}\n", self.servers.join(","))
    }
}

/// The certificates of a cluster's control plane, and its administrator's.
pub(crate) fn of_cluster(cluster: &Cluster) -> Vec<Subject> {
    let addresses = ["127.0.0.1", MACHINE, &cluster.api_service()].map(|address| format!("IP:{address}"));
    let service = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .chain(["kubernetes.default.svc.cluster.local"])
        .map(|name| format!("DNS:{name}"));
    let servers = addresses.into_iter().chain(service).collect();
    vec![
        Subject { file: "apiserver", group: None, name: "kube-apiserver".to_owned(), servers },
        Subject::client("admin", Some("system:masters"), "admin"),
        Subject::client("controller-manager", None, "system:kube-controller-manager"),
        Subject::client("scheduler", None, "system:kube-scheduler"),
        Subject::client("kubelet-client", Some("system:masters"), "kube-apiserver-kubelet-client"),
    ]
}

/// The certificates of a node.
pub(crate) fn of_node(node: &Node) -> Vec<Subject> {
    vec![
        // The group and the name by which the API server's Node authorizer knows whose kubelet asks.
        Subject::client("kubelet", Some("system:nodes"), format!("system:node:{}", node.name())),
        Subject::client("kube-proxy", None, "system:kube-proxy"),
    ]
}

/// Makes the authority of a cluster and the key that signs its service accounts' tokens, unless they are there.
pub(crate) fn authority(cluster: &Cluster) -> anyhow::Result<()> {
    let folder = cluster.pki();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("protect {}", folder.display()))?;
    if !folder.join("ca.crt").exists() {
        let usage = "keyUsage=critical,keyCertSign,digitalSignature";
        let mut make = openssl(&folder, &["req", "-x509", "-nodes", "-days", DAYS, "-addext", usage]);
        make.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        make.args(["-subj", &format!("/CN={}", cluster.name), "-keyout", "ca.key", "-out", "ca.crt"]);
        output(&mut make)?;
    }
    if !folder.join("sa.pub").exists() {
        let curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"];
        output(&mut openssl(&folder, &curve))?;
        output(&mut openssl(&folder, &["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"]))?;
    }
    Ok(())
}

/// Makes a key and a certificate of `cluster` in `folder`, unless they are there.
pub(crate) fn sign(cluster: &Cluster, folder: &Path, subject: &Subject) -> anyhow::Result<()> {
    let name = subject.file;
    if folder.join(format!("{name}.crt")).exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut request = openssl(folder, &["req", "-new", "-nodes", "-newkey", "ec"]);
    request.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &format!("{name}.key")]);
    let request = output(request.args(["-subj", &subject.text()]))?;
    fs::write(folder.join(format!("{name}.ext")), subject.extensions()).context("write a certificate's extensions")?;
    let mut sign = openssl(folder, &["x509", "-req", "-days", DAYS, "-extfile", &format!("{name}.ext")]);
    sign.arg("-CA").arg(cluster.pki().join("ca.crt")).arg("-CAkey").arg(cluster.pki().join("ca.key"));
    // A serial number by chance: two runs of openssl at once would share a file of serials.
    sign.args(["-set_serial", &format!("0x{}", serial()?), "-out", &format!("{name}.crt")]);
    filter(&mut sign, request.as_bytes())?;
    fs::remove_file(folder.join(format!("{name}.ext"))).context("remove a certificate's extensions")
}

/// Writes the kubeconfig `file` for the owner of the certificate `user` in `folder`.
pub(crate) fn write_kubeconfig(cluster: &Cluster, folder: &Path, user: &str, file: &Path) -> anyhow::Result<()> {
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("read {}", path.display()));
    let config = kubeconfig(
        cluster,
        user,
        &read(cluster.pki().join("ca.crt"))?,
        &read(folder.join(format!("{user}.crt")))?,
        &read(folder.join(format!("{user}.key")))?,
    );
    fs::write(file, format!("{config:#}\n")).with_context(|| format!("write {}", file.display()))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).with_context(|| format!("protect {}", file.display()))
}

/// A kubeconfig, which is YAML, as the JSON that every YAML reader takes. Its context has the cluster's name, so that
/// several can be merged (`KUBECONFIG=a:b`).
fn kubeconfig(cluster: &Cluster, user: &str, authority: &[u8], certificate: &[u8], key: &[u8]) -> Value {
    let user_name = format!("{user}-{}", cluster.name);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster.name, "cluster": {
            "server": cluster.server(), "certificate-authority-data": base64(authority)}}],
        "users": [{"name": user_name, "user": {
            "client-certificate-data": base64(certificate), "client-key-data": base64(key)}}],
        "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": user_name}}],
        "current-context": cluster.name,
    })
}

fn openssl(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(args).current_dir(folder);
    command
}

/// 16 random bytes in hexadecimal; the first is below 0x80, for a serial number is positive.
fn serial() -> anyhow::Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a random number")?;
    let digits: String = uuid.trim().chars().filter(char::is_ascii_hexdigit).skip(1).collect();
    Ok(format!("1{digits}"))
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        let letter = |index: usize| char::from(ALPHABET[(word >> (18 - 6 * index) & 0x3f) as usize]);
        // A chunk of n bytes is n + 1 letters, filled up to four.
        (0..4).map(move |index| if index <= chunk.len() { letter(index) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::super::layout::CLUSTERS;
    use super::*;

    #[test]
    fn a_kubelet_is_who_the_node_authorizer_expects() {
        let node = CLUSTERS[1].nodes(2).last().unwrap();
        let kubelet = &of_node(&node)[0];
        assert_eq!(kubelet.text(), "/O=system:nodes/CN=system:node:east-2");
        assert_eq!(kubelet.extensions(), "extendedKeyUsage=clientAuth\n");
    }

    #[test]
    fn an_api_server_is_trusted_by_every_name_that_leads_to_it() {
        let server = &of_cluster(&CLUSTERS[2])[0];
        assert_eq!(server.text(), "/CN=kube-apiserver");
        let extensions = server.extensions();
        for name in ["IP:10.89.0.1", "IP:10.98.0.1", "IP:127.0.0.1", "DNS:kubernetes.default.svc"] {
            assert!(extensions.contains(name), "{name} is not in {extensions}");
        }
        assert!(extensions.starts_with("extendedKeyUsage=serverAuth\n"));
    }

    #[test]
    fn only_the_administrator_and_the_api_server_may_do_everything() {
        let masters: Vec<&str> = of_cluster(&CLUSTERS[0])
            .iter()
            .filter(|subject| subject.group == Some("system:masters"))
            .map(|subject| subject.file)
            .collect();
        assert_eq!(masters, ["admin", "kubelet-client"]);
    }

    #[test]
    fn a_kubeconfig_holds_all_it_takes_and_bears_its_cluster_s_name() {
        let config = kubeconfig(&CLUSTERS[1], "admin", b"ca", b"crt", b"key");
        assert_eq!(config["current-context"], "east");
        assert_eq!(config["contexts"][0]["context"], json!({"cluster": "east", "user": "admin-east"}));
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://10.89.0.1:26010");
        assert_eq!(config["clusters"][0]["cluster"]["certificate-authority-data"], "Y2E=");
        assert_eq!(config["users"][0]["user"]["client-key-data"], "a2V5");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn serial_numbers_are_positive_and_differ() {
        let serials = [serial().unwrap(), serial().unwrap()];
        assert_ne!(serials[0], serials[1]);
        assert!(serials.iter().all(|serial| serial.len() == 32 && serial.starts_with('1')));
    }
}
