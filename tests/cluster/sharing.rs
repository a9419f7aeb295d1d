//! What of a cluster the agent gets to know.

use super::{
    followed::Followed,
    objects::{
        NAMESPACE, define, delete, ground, kind, patch, put_built_in, put_defined, put_mirrored, put_pod, put_service,
        put_slice,
    },
    server::Server,
};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::Api;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// Sooner than a quiet API server says anything by itself, which it does once a minute.
const UNASKED: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_api_server_with_nothing_federated_is_known_without_waiting_for_news() -> anyhow::Result<()> {
    let Some(server) = Server::start().await? else { return Ok(()) };
    ground(&server.client(0, "admin").await?).await?;
    let began = Instant::now();
    let mut followed = Followed::start(&server, 0, "admin").await?;
    followed.until("synced", |it| it.synced == Some(true)).await?;
    let elapsed = began.elapsed();
    assert!(elapsed < UNASKED, "{elapsed:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_federated_is_known_and_nothing_else() -> anyhow::Result<()> {
    let Some(server) = Server::start().await? else { return Ok(()) };
    let admin = server.client(0, "admin").await?;
    ground(&admin).await?;
    let mirrored = json!({"mirror.linkerd.io/mirrored-service": "true"});
    put_service(
        &admin,
        "web-federated",
        json!({"labels": mirrored, "annotations": {"multicluster.linkerd.io/local-discovery": "web"}}),
    )
    .await?;
    for plain in ["web", "other", "joined"] {
        put_service(&admin, plain, json!({})).await?;
    }
    put_service(&admin, "marked", json!({"annotations": {"service.cilium.io/global": "true"}})).await?;
    for service in ["web", "other", "joined", "marked"] {
        put_built_in(&admin, &format!("{service}-1"), service, "10.0.0.1").await?;
    }
    put_mirrored(&admin, "web-east", "web-federated", "10.1.0.1").await?;
    put_mirrored(&admin, "joined-east", "joined", "10.1.0.2").await?;
    put_slice(&admin, "web-last", json!({"tombolo.io/fallback-for": "web-federated"}), "10.2.0.1").await?;
    put_pod(&admin, "meshed", "node-1", &["app", "linkerd-proxy"]).await?;
    put_pod(&admin, "elsewhere", "node-2", &["app"]).await?;

    let imports = kind("multicluster.x-k8s.io", "v1alpha1", "ServiceImport", "serviceimports");
    define(&admin, &imports, "Namespaced").await?;
    let spec = json!({"type": "ClusterSetIP", "ips": ["10.99.200.1"], "ports": [{"port": 80, "protocol": "TCP"}]});
    let import = json!({"metadata": {"name": "imported"}, "spec": spec});
    put_defined(Api::namespaced_with(admin.clone(), NAMESPACE, &imports), &imports, import).await?;

    let mut followed = Followed::start(&server, 0, "admin").await?;
    followed.until("synced", |it| it.synced.is_some()).await?;
    assert_eq!((followed.synced, followed.pods_known), (Some(true), true));
    assert_eq!(followed.services(), ["shop/joined", "shop/marked", "shop/web-federated", "shop/imported"]);
    let expected = ["joined-1", "joined-east", "marked-1", "web-1", "web-east", "web-last"];
    assert_eq!(followed.slices(), expected.map(|name| format!("shop/{name}")));
    let pods: Vec<_> = followed.model.pods.values().map(|pod| (pod.name.name.as_str(), pod.meshed)).collect();
    assert_eq!(pods, [("meshed", true)]);
    followed.until("the node's zone", |it| it.zone.as_deref() == Some("a")).await?;

    // A mark, and the built-in slices come with it; it goes, and so do they.
    patch::<Service>(&admin, "other", json!({"metadata": {"annotations": {"service.cilium.io/global": "true"}}}))
        .await?;
    followed.until("marked in place", |it| it.services().contains(&"shop/other".to_owned())).await?;
    assert!(followed.slices().contains(&"shop/other-1".to_owned()), "the Service waits for its slices");
    patch::<Service>(&admin, "other", json!({"metadata": {"annotations": {"service.cilium.io/global": null}}})).await?;
    followed.until("mark removed", |it| !it.services().contains(&"shop/other".to_owned())).await?;
    followed.until("its slices too", |it| !it.slices().contains(&"shop/other-1".to_owned())).await?;

    delete::<EndpointSlice>(&admin, "joined-east").await?;
    followed.until("parted", |it| !it.services().contains(&"shop/joined".to_owned())).await?;
    put_pod(&admin, "late", "node-1", &["app"]).await?;
    followed.until("a new pod", |it| it.model.pods.len() == 2).await?;
    delete::<Pod>(&admin, "meshed").await?;
    followed.until("a pod gone", |it| it.model.pods.len() == 1).await?;
    assert_eq!(followed.problems, []);
    Ok(())
}
