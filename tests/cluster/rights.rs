//! What the agent has to be granted.

use super::{
    followed::Followed,
    objects::{define, ground, kind, put_defined, put_mirrored},
    server::Server,
};
use anyhow::Context;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tombolo::sources::kubernetes::{cluster_id, connect};

#[tokio::test]
async fn a_missing_right_is_named_and_once_granted_it_is_used() -> anyhow::Result<()> {
    let Some(server) = Server::start().await? else { return Ok(()) };
    let admin = server.client(0, "admin").await?;
    ground(&admin).await?;
    put_mirrored(&admin, "web-east", "web", "10.1.0.1").await?;

    let mut followed = Followed::start(&server, 0, "agent").await?;
    let said = |it: &Followed, text: &str| it.problems.iter().any(|problem| problem.to_string().contains(text));
    for resource in ["services", "endpointslices.discovery.k8s.io", "pods"] {
        followed.until(resource, |it| said(it, &format!("RBAC grants no list on {resource} (403"))).await?;
    }
    followed.until("node", |it| said(it, "Node node-1: RBAC grants no get on nodes")).await?;
    assert_eq!((followed.synced, followed.slices()), (None, Vec::new()));

    grant(&admin).await?;
    followed.until("synced", |it| it.synced == Some(true)).await?;
    assert_eq!(followed.slices(), ["shop/web-east"]);
    followed.until("all well", |it| it.problems.is_empty()).await?;

    let client = connect(Some(&server.kubeconfig(0, "agent")?)).await?;
    let error = format!("{:#}", cluster_id(&client).await.unwrap_err());
    assert!(error.contains("has no ClusterProperty cluster.clusterset.k8s.io"), "{error}");
    let kind = kind("about.k8s.io", "v1alpha1", "ClusterProperty", "clusterproperties");
    let property = json!({"metadata": {"name": "cluster.clusterset.k8s.io"}, "spec": {"value": "west-1"}});
    define(&admin, &kind, "Cluster").await?;
    put_defined(Api::all_with(admin.clone(), &kind), &kind, property).await?;
    assert_eq!(cluster_id(&client).await?.0, "west-1");
    Ok(())
}

#[test]
fn the_agent_is_granted_nothing_that_changes_anything() -> anyhow::Result<()> {
    for rule in role()?.rules.unwrap_or_default() {
        let reads = |verb: &String| ["get", "list", "watch"].contains(&verb.as_str());
        let is_named = |resource: &String| resource != "*" && resource != "secrets";
        let resources = rule.resources.unwrap_or_default();
        anyhow::ensure!(
            rule.verbs.iter().all(reads) && resources.iter().all(is_named),
            "{:?} {resources:?}",
            rule.verbs
        );
    }
    Ok(())
}

/// What `deploy/` grants.
fn role() -> anyhow::Result<ClusterRole> {
    let text = include_str!("../../deploy/agent/rbac.yaml");
    let document = text.split("\n---\n").find(|document| document.contains("kind: ClusterRole\n"));
    let role: Value = serde_saphyr::from_str(document.context("there is no ClusterRole")?)?;
    Ok(serde_json::from_value(role)?)
}

async fn grant(admin: &Client) -> anyhow::Result<()> {
    let mut role = role()?;
    role.metadata.name = Some("tombolo".to_owned());
    Api::all(admin.clone()).create(&PostParams::default(), &role).await?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "tombolo"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tombolo"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}],
    }))?;
    Api::all(admin.clone()).create(&PostParams::default(), &binding).await?;
    Ok(())
}
