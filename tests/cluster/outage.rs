//! An API server that is gone for a minute, while endpoints change.

use super::{
    followed::{Followed, PATIENCE},
    objects::{NAMESPACE, delete, ground, patch, put_mirrored, put_service},
    server::Server,
};
use anyhow::Context;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::ListParams};
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tombolo::{
    model::{ObjectName, Slice},
    report::Watch,
    sources::objects::{self, Seen},
};

const SLICES: usize = 40;
const OUTAGE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_changed_while_the_api_server_was_gone_is_found_once_it_is_back() -> anyhow::Result<()> {
    let Some(mut server) = Server::start().await? else { return Ok(()) };
    server.start_api(1).await?;
    let admin = server.client(1, "admin").await?;
    ground(&admin).await?;
    put_service(&admin, "web-east", json!({"labels": {"mirror.linkerd.io/mirrored-service": "true"}})).await?;
    for number in 0..SLICES {
        put_mirrored(&admin, &name(number), "web-east", &format!("10.1.0.{}", number + 1)).await?;
    }
    let mut followed = Followed::start(&server, 0, "admin").await?;
    followed.until("synced", |it| it.synced == Some(true)).await?;
    assert_eq!(followed.model.slices, held(&admin).await?);

    server.kill_api(0)?;
    let killed = Instant::now();
    for number in 0..SLICES {
        match number % 4 {
            0 => delete::<EndpointSlice>(&admin, &name(number)).await?,
            _ => {
                let endpoints = json!([{"addresses": [format!("10.1.1.{}", number + 1)]}]);
                patch::<EndpointSlice>(&admin, &name(number), json!({"endpoints": endpoints})).await?;
            }
        }
    }
    put_mirrored(&admin, "added", "web-east", "10.1.2.1").await?;
    server.forget_history()?;
    let changed = followed.watch_for(OUTAGE.saturating_sub(killed.elapsed())).await;
    assert!(!changed, "an API server that is gone takes nothing away");
    let problems: Vec<_> = followed.problems.iter().map(ToString::to_string).collect();
    let lost =
        |problem: &String| problem.contains("of other clusters") && problem.contains("the API server doesn't answer");
    assert!(problems.iter().any(lost), "{problems:?}");

    server.start_api(0).await?;
    let back = Instant::now();
    let expected = held(&admin).await?;
    assert_eq!(expected.len(), SLICES - SLICES / 4 + 1);
    followed.until("in step", |it| it.model.slices == expected).await?;
    println!(
        "API server gone for {:.1} s; drift 0 {:.2} s after it was ready",
        (back - killed).as_secs_f64(),
        back.elapsed().as_secs_f64()
    );
    followed.until("all well", |it| it.problems.is_empty()).await?;
    // Its history was gone, so it has listed again, which is shown a moment later.
    let is_mirrored = |watch: &&Watch| watch.name == "EndpointSlices of other clusters";
    let has_listed = |watches: &Vec<Watch>| {
        let mirrored = watches.iter().find(is_mirrored);
        mirrored.is_some_and(|watch| watch.synced_for_s.is_some_and(|seconds| seconds < OUTAGE.as_secs()))
            && watches.iter().all(|watch| watch.problem.is_none())
    };
    let shown = timeout(PATIENCE, followed.watches.wait_for(has_listed)).await.context("listed again")??.clone();
    assert_eq!(shown.iter().find(is_mirrored).unwrap().objects, expected.len());

    let written = Instant::now();
    patch::<EndpointSlice>(&admin, "added", json!({"endpoints": [{"addresses": ["10.1.2.9"]}]})).await?;
    let address = IpAddr::from([10, 1, 2, 9]);
    let has = |it: &Followed| it.model.slices.values().any(|slice| slice.endpoints[0].address == address);
    followed.until("a change", has).await?;
    println!("a change is known {:.0} ms after it was begun to be written", written.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// The slices that the API server holds.
async fn held(admin: &Client) -> anyhow::Result<BTreeMap<ObjectName, Slice>> {
    let slices = Api::<EndpointSlice>::namespaced(admin.clone(), NAMESPACE).list(&ListParams::default()).await?;
    let mut held = BTreeMap::new();
    for slice in &slices.items {
        if let Seen::Taken((name, slice)) = objects::slice(slice)? {
            held.insert(name, slice);
        }
    }
    Ok(held)
}

fn name(number: usize) -> String {
    format!("web-east-{number}")
}
