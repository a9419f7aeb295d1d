//! Turns API objects into what the model knows: Services, ServiceImports, EndpointSlices and pods.
//!
//! Pure, and blind to where an object came from, so that manifests and an API server are understood alike. An object that
//! the API server would have refused is an [`ObjectError`] that names the field. What is merely not for us is [`Seen::Left`].

mod field;
mod marks;
pub(crate) mod names;
mod pod;
mod service;
mod slice;
mod traffic;

pub use field::{Field, ObjectError, Step};
pub use names::barred;
pub use pod::{pod, pod_uid};
pub use service::{ServiceImport, ServiceImportSpec, service, service_import};
pub use slice::slice;

use crate::model::{ClusterName, ObjectName, Protocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::net::IpAddr;

/// What the meaning of an object depends on besides itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The agent's cluster.
    pub cluster: ClusterName,
    /// The agent's node: pods of other nodes are left out.
    pub node: String,
    /// Whether every Service is translated, federated or not.
    pub all_services: bool,
}

/// An object that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// It concerns the agent.
    Taken(T),
    /// It doesn't, and this is why. A source that delivered it before says that it is gone.
    Left(&'static str),
}

/// An object's name; the namespace is `default` if none is given, as for `kubectl apply`.
///
/// # Errors
///
/// The name is missing, or one of the two can't be a name in the API.
pub fn object_name(meta: &ObjectMeta) -> Result<ObjectName, ObjectError> {
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    if !names::is_label(namespace) {
        return Err(Field::new("metadata").key("namespace").wrong(format!("{namespace:?} is not a DNS label")));
    }
    let field = Field::new("metadata").key("name");
    match meta.name.as_deref() {
        None | Some("") => Err(field.wrong("missing")),
        Some(name) if !names::is_subdomain(name) => Err(field.wrong(format!("{name:?} is not a DNS name"))),
        Some(name) => Ok(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }),
    }
}

/// A cluster's id: an RFC 1123 subdomain, and no longer than the value of a label can be.
///
/// # Errors
///
/// It is neither, which is said with what would be.
pub fn cluster_name(text: &str) -> Result<ClusterName, String> {
    if text.len() <= 63 && names::is_subdomain(text) {
        return Ok(ClusterName(text.to_owned()));
    }
    Err(format!("{text:?} can't be a cluster's name: at most 63 of a to z, 0 to 9, - and ."))
}

/// An address, IPv4 if it is an IPv4-mapped one. Those that can be nobody's are refused.
fn address(text: &str, field: Field) -> Result<IpAddr, ObjectError> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(field.wrong(format!("{text:?} is not an IP address")));
    };
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err(field.wrong(format!("{text} is nobody's address")));
    }
    Ok(address)
}

fn port(number: i32, field: Field) -> Result<u16, ObjectError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(field.wrong(format!("{number} is not from 1 to 65535"))),
    }
}

/// TCP if it isn't said; none for SCTP, which is not translated.
fn protocol(name: Option<&str>, field: Field) -> Result<Option<Protocol>, ObjectError> {
    match name {
        None | Some("" | "TCP") => Ok(Some(Protocol::Tcp)),
        Some("UDP") => Ok(Some(Protocol::Udp)),
        Some("SCTP") => Ok(None),
        Some(other) => Err(field.wrong(format!("{other:?} is none of TCP, UDP, SCTP"))),
    }
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}
