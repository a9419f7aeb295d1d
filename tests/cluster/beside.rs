//! Beside Linkerd's own service-mirror, which makes the Services: `TOMBOLO_LINKERD_CONTROLLER` names the program, for it is
//! built elsewhere. Without it the test says that it skips.

use super::{
    linked::{Mirror, apply, install, until},
    linkerd::{Discovery, LINKERD, NAMESPACE, account, define_links, mirrored, namespaces, source},
    server::Server,
};
use anyhow::Context;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fmt::Debug,
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Links of the own cluster, and the peers that they lead to: east is linked twice.
const LINKS: [(&str, &str); 3] = [("east", "east"), ("east-too", "east"), ("north", "north")];

#[tokio::test]
async fn endpoints_are_those_of_the_services_that_linkerds_own_mirror_makes() -> anyhow::Result<()> {
    let Some(program) = env::var_os("TOMBOLO_LINKERD_CONTROLLER") else {
        println!("skipped: TOMBOLO_LINKERD_CONTROLLER names no program");
        return Ok(());
    };
    let (Some(own), Some(east), Some(north)) = (Server::start().await?, Server::start().await?, Server::start().await?)
    else {
        return Ok(());
    };
    let admin = own.client(0, "admin").await?;
    install(&own)?;
    define_links(&own)?;
    for (server, octet) in [(&own, 100), (&east, 108), (&north, 116)] {
        namespaces(server)?;
        apply(server, source(octet)?)?;
    }
    for (link, peer) in LINKS {
        let peer = if peer == "east" { &east } else { &north };
        apply(&own, link_objects(link, &account(peer).await?))?;
    }
    let folder = tempfile::tempdir()?;
    let config = own.kubeconfig(0, "admin")?;
    let start = |arguments: &[&str]| Linkerds::start(&program, &folder, &config, arguments);
    let mut theirs = vec![start(&["-local-mirror", "-federated-service-selector=mirror.linkerd.io/federated=member"])?];
    for (link, _) in LINKS {
        theirs.push(start(&[link])?);
    }
    let mut mirror = Mirror::start(&own, "west").await?;
    mirror.until("north", "connected", |facts| facts.is_connected).await?;

    let peers = BTreeMap::from([("east", east.client(0, "admin").await?), ("north", north.client(0, "admin").await?)]);
    let (east, north) = (peers["east"].clone(), peers["north"].clone());
    let discovery = Discovery { own: admin.clone(), peers, links: LINKS.into() };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let agree = async |when: &str, made: &[&str]| {
        until(when, || async { Ok(mirrored(&admin).await? == names(made)) }).await.context("made")?;
        discovery.agrees(when).await
    };
    let all = ["api-east", "api-east-too", "api-north", "frontend-federated"];
    let found = agree("begun", &all).await?;
    assert_eq!((found["frontend-federated"].len(), found["api-east"].len()), (9, 2), "{found:?}");

    let ready = json!({"endpoints": [{"addresses": ["10.108.0.20"], "conditions": {"ready": false}}]});
    patch::<EndpointSlice>(&east, "api-1", ready).await?;
    assert_eq!(agree("none ready", &all).await?["api-east"], BTreeSet::new());
    patch::<EndpointSlice>(&east, "api-1", json!({"endpoints": [{"addresses": ["10.108.0.22"]}]})).await?;
    assert_eq!(agree("another one", &all).await?["api-east-too"].len(), 1);

    // Members leave and join again, peers' and the own cluster's.
    for (cluster, left) in [(&north, 6), (&admin, 6), (&east, 6)] {
        patch::<Service>(cluster, "frontend", labels(&json!({"mirror.linkerd.io/federated": null}))).await?;
        assert_eq!(agree("a member left", &all).await?["frontend-federated"].len(), left);
        patch::<Service>(cluster, "frontend", labels(&json!({"mirror.linkerd.io/federated": "member"}))).await?;
        assert_eq!(agree("it came back", &all).await?["frontend-federated"].len(), 9);
    }
    // Both at once, and a label that changes in place.
    let federated = json!({"mirror.linkerd.io/federated": "member"});
    patch::<Service>(&east, "api", labels(&federated)).await?;
    let more = ["api-east", "api-east-too", "api-federated", "api-north", "frontend-federated"];
    assert_eq!(agree("federated as well", &more).await?["api-federated"].len(), 1);
    patch::<Service>(&east, "api", labels(&json!({"mirror.linkerd.io/exported": null}))).await?;
    agree("federated only", &["api-federated", "api-north", "frontend-federated"]).await?;
    patch::<Service>(&east, "api", labels(&json!({"mirror.linkerd.io/federated": null}))).await?;
    agree("neither", &["api-north", "frontend-federated"]).await?;
    Api::<Service>::namespaced(north.clone(), NAMESPACE).delete("api", &DeleteParams::default()).await?;
    agree("deleted", &["frontend-federated"]).await?;
    for process in &mut theirs {
        process.is_running()?;
    }
    Ok(())
}

async fn patch<K>(client: &Client, name: &str, patch: Value) -> anyhow::Result<()>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

fn labels(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

/// A Link as Linkerd has it for a flat network, and its Secret.
fn link_objects(link: &str, kubeconfig: &str) -> Vec<Value> {
    let secret = format!("cluster-credentials-{link}");
    let selects = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    vec![
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "mirror.linkerd.io/remote-kubeconfig",
            "metadata": {"name": secret, "namespace": LINKERD}, "stringData": {"kubeconfig": kubeconfig},
        }),
        json!({
            "apiVersion": "multicluster.linkerd.io/v1alpha3", "kind": "Link",
            "metadata": {"name": link, "namespace": LINKERD},
            "spec": {
                "targetClusterName": link, "targetClusterDomain": "cluster.local",
                "targetClusterLinkerdNamespace": "linkerd", "clusterCredentialsSecret": secret,
                "remoteDiscoverySelector": selects("mirror.linkerd.io/exported", "remote-discovery"),
                "federatedServiceSelector": selects("mirror.linkerd.io/federated", "member"),
            },
        }),
    ]
}

/// One of Linkerd's mirrors, which runs until the value is dropped.
struct Linkerds(Child);

impl Linkerds {
    fn start(program: &OsString, folder: &TempDir, config: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let log = File::create(folder.path().join(format!("{port}.log")))?;
        let child = Command::new(program)
            .args(["service-mirror", "-namespace", LINKERD, &format!("-metrics-addr=127.0.0.1:{port}"), "-kubeconfig"])
            .arg(config)
            .args(arguments)
            .env("HOSTNAME", format!("mirror-{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start Linkerd's mirror")?;
        Ok(Self(child))
    }

    fn is_running(&mut self) -> anyhow::Result<()> {
        let ended = self.0.try_wait()?;
        anyhow::ensure!(ended.is_none(), "Linkerd's mirror ended: {ended:?}");
        Ok(())
    }
}

impl Drop for Linkerds {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            println!("Linkerd's mirror was not ended: {error}");
        }
    }
}
