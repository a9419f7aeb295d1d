//! What is let in of a peer's values is what an API server takes, by what a real one says of each.

use super::{objects::NAMESPACE, server::Server};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::fmt::Debug;
use tombolo::mirror::values;

#[tokio::test]
async fn no_value_is_let_in_that_an_api_server_refuses_and_none_is_left_out_that_it_takes() -> anyhow::Result<()> {
    let Some(west) = Server::start().await? else { return Ok(()) };
    west.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    let admin = west.client(0, "admin").await?;
    let (long, longer) = ("x".repeat(63), "x".repeat(64));
    let (prefixed, too_prefixed) = (format!("{}/a", ["x"; 127].join(".")), format!("{}/a", ["x"; 128].join(".")));
    let texts = [
        "a",
        "A",
        "a1",
        "1a",
        "1",
        "a.b",
        "a..b",
        "a_b",
        "_a",
        "a-",
        "-a",
        "a.",
        "a b",
        "a/b",
        "A/b",
        "a/B_c",
        "a/b/c",
        "/a",
        "a/",
        "a.b/c",
        "é",
        "http",
        "http-web",
        &long,
        &longer,
        &prefixed,
        &too_prefixed,
    ];
    type Rule = fn(&str) -> bool;
    let fields: [(&str, Rule); 10] = [
        ("hostname", values::is_host_name),
        ("zone", values::is_label_value),
        ("port", values::is_port_name),
        ("appProtocol", values::is_qualified),
        ("service port", values::is_port_name),
        ("service appProtocol", values::is_qualified),
        ("label", values::is_qualified),
        ("label value", values::is_label_value),
        ("annotation", values::is_annotation),
        ("service", values::is_service_name),
    ];
    let mut tried = 0;
    for (field, is_let_in) in fields {
        for text in texts {
            let taken = takes(&admin, field, text).await?;
            assert_eq!(is_let_in(text), taken, "{field} {text:?}");
            tried += 1;
        }
    }
    println!("{tried} values: let in as the API server takes them");
    for (seconds, is_taken) in [(0, false), (1, true), (values::MAX_AFFINITY, true), (values::MAX_AFFINITY + 1, false)]
    {
        let spec = json!({
            "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        });
        let taken = is_valid::<Service>(&admin, json!({"metadata": {"name": "a"}, "spec": spec})).await?;
        assert_eq!(taken, is_taken, "{seconds}");
    }
    Ok(())
}

/// Whether the API server would take this text in this place.
async fn takes(client: &Client, field: &str, text: &str) -> anyhow::Result<bool> {
    let mut service = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"name": "x", "port": 80}]}});
    let mut endpoint = json!({"addresses": ["10.108.0.1"]});
    let mut port = json!({"name": "x", "port": 80});
    match field {
        "hostname" => endpoint["hostname"] = json!(text),
        "zone" => endpoint["hints"] = json!({"forZones": [{"name": text}]}),
        "port" => port["name"] = json!(text),
        "appProtocol" => port["appProtocol"] = json!(text),
        "service port" => service["spec"]["ports"][0]["name"] = json!(text),
        "service appProtocol" => service["spec"]["ports"][0]["appProtocol"] = json!(text),
        "label" => service["metadata"]["labels"] = json!({text: "x"}),
        "label value" => service["metadata"]["labels"] = json!({"x": text}),
        "annotation" => service["metadata"]["annotations"] = json!({text: "x"}),
        _ => service["metadata"]["name"] = json!(text),
    }
    if ["hostname", "zone", "port", "appProtocol"].contains(&field) {
        let slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [endpoint], "ports": [port]});
        return is_valid::<EndpointSlice>(client, slice).await;
    }
    is_valid::<Service>(client, service).await
}

async fn is_valid<K>(client: &Client, object: Value) -> anyhow::Result<bool>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug,
{
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match Api::<K>::namespaced(client.clone(), NAMESPACE).create(&params, &serde_json::from_value(object)?).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(false),
        Err(error) => Err(error.into()),
    }
}
