//! What a link's Secret holds: a kubeconfig, whole in itself, and how long it will do.
//!
//! Whoever may write that Secret must not gain more than a link to an API server of his: what would start a program here, or send a
//! file of this pod there, is refused. No word of it reaches a log: errors name fields, never values.

use anyhow::anyhow;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    config::{AuthInfo, Cluster, Kubeconfig},
};
use serde_json::Value;
use std::{fmt, time::Duration};
use x509_cert::{Certificate, der::DecodePem};

/// The key of a Secret's data that the kubeconfig is under, as Linkerd has it too.
pub const KEY: &str = "kubeconfig";

/// A credential that is good for long is worth a word so many seconds before its end: there is a weekend in it.
const SOON: i64 = 7 * 86_400;

/// How long a credential is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Since when, if it says so.
    pub from: Option<Timestamp>,
    /// Its end.
    pub end: Timestamp,
}

impl Validity {
    /// Whether its end is near: a week, and a third of its time for one that is renewed more often than every two weeks.
    pub fn is_short(&self, now: Timestamp) -> bool {
        let whole = self.from.map(|from| self.end.as_second() - from.as_second());
        let soon = whole.filter(|whole| *whole < 2 * SOON).map_or(SOON, |whole| whole / 3);
        self.end.as_second() - now.as_second() < soon
    }
}

/// A kubeconfig as a Secret holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(Vec<u8>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(not shown)")
    }
}

impl Credentials {
    /// The text of a kubeconfig.
    pub fn new(kubeconfig: Vec<u8>) -> Self {
        Self(kubeconfig)
    }

    /// A client of the API server that it leads to.
    ///
    /// # Errors
    ///
    /// It can't be used or must not be, in a person's words. Whether the server answers shows later.
    pub async fn client(&self) -> Result<Client, String> {
        let read = self.read()?;
        let made = crate::sources::kubernetes::connect_as(read).await;
        // Errors of kube name what is missing or can't be decoded, by position.
        made.map_err(|error| format!("the kubeconfig can't be used: {error:#}"))
    }

    /// The kubeconfig, of which everything that isn't in itself was refused.
    ///
    /// # Errors
    ///
    /// As for [`client`](Self::client).
    pub fn read(&self) -> Result<Kubeconfig, String> {
        let text = std::str::from_utf8(&self.0).map_err(|_| "the kubeconfig is not text".to_owned())?;
        // What a parser says of a text quotes it.
        let read = Kubeconfig::from_yaml(text).map_err(|_| "the kubeconfig can't be read as one".to_owned())?;
        let (cluster, user) = current(&read)?;
        let refused = [
            (user.exec.is_some(), "users.exec would start a program"),
            (user.auth_provider.is_some(), "users.auth-provider would start a program"),
            (user.token_file.is_some(), "users.tokenFile names a file"),
            (user.client_certificate.is_some(), "users.client-certificate names a file"),
            (user.client_key.is_some(), "users.client-key names a file"),
            (cluster.certificate_authority.is_some(), "clusters.certificate-authority names a file"),
        ];
        if let Some((_, reason)) = refused.into_iter().find(|(is_so, _)| *is_so) {
            return Err(format!("the kubeconfig is refused: {reason}, and it has to hold everything itself"));
        }
        match cluster.server.as_deref() {
            Some(server) if server.starts_with("https://") => {}
            Some(_) => return Err("the kubeconfig is refused: clusters.server is not https".to_owned()),
            None => return Err("the kubeconfig names no server".to_owned()),
        }
        Ok(read)
    }

    /// The address of the API server.
    pub fn server(&self) -> Option<String> {
        let read = self.read().ok()?;
        current(&read).ok()?.0.server.clone()
    }

    /// Whether anybody who answers at that address is taken for the peer.
    pub fn is_unverified(&self) -> bool {
        let Ok(read) = self.read() else { return false };
        current(&read).is_ok_and(|(cluster, _)| cluster.insecure_skip_tls_verify == Some(true))
    }

    /// How long it is good, if that ends: by the token's `iat` and `exp`, or the client certificate, whichever is used.
    pub fn validity(&self) -> Option<Validity> {
        let read = self.read().ok()?;
        let (_, user) = current(&read).ok()?;
        let exposed = serde_json::to_value(user).ok()?;
        if let Some(token) = exposed["token"].as_str() {
            return token_validity(token);
        }
        certificate_validity(user.client_certificate_data.as_deref()?)
    }
}

/// The cluster and the user of the current context.
fn current(read: &Kubeconfig) -> Result<(&Cluster, &AuthInfo), String> {
    let name = read.current_context.as_deref().ok_or("the kubeconfig has no current-context")?;
    let context = read.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|it| it.context.as_ref()).ok_or("the kubeconfig lacks its current-context")?;
    let cluster = read.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|it| it.cluster.as_ref()).ok_or("the kubeconfig lacks its context's cluster")?;
    let user = read.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    let user = user.and_then(|it| it.auth_info.as_ref()).ok_or("the kubeconfig lacks its context's user")?;
    Ok((cluster, user))
}

/// The `exp` of a JWT; service account tokens of Secrets have none and never end.
fn token_validity(token: &str) -> Option<Validity> {
    let claims = token.split('.').nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let time = |claim: &str| Timestamp::from_second(claims[claim].as_i64()?).ok();
    Some(Validity { from: time("iat"), end: time("exp")? })
}

/// The validity of the first certificate in a PEM file that was encoded once more.
fn certificate_validity(data: &str) -> Option<Validity> {
    let text = base64::prelude::BASE64_STANDARD.decode(data.trim()).ok()?;
    let certificate = Certificate::from_pem(&text).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let second = |time: Duration| Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok();
    let end = second(validity.not_after.to_unix_duration())?;
    Some(Validity { from: second(validity.not_before.to_unix_duration()), end })
}

/// A kubeconfig of one cluster and one user with a token, as it goes into a link's Secret.
///
/// # Errors
///
/// The cluster's part names a file that can't be read, or no server.
pub fn kubeconfig(name: &str, cluster: &Cluster, server: Option<&str>, token: &str) -> anyhow::Result<String> {
    let server = server.or(cluster.server.as_deref()).ok_or_else(|| anyhow!("the kubeconfig names no server"))?;
    let mut entry = serde_json::json!({"server": server});
    if let Some(data) = &cluster.certificate_authority_data {
        entry["certificate-authority-data"] = data.clone().into();
    } else if let Some(file) = &cluster.certificate_authority {
        let read = std::fs::read(file).map_err(|error| anyhow!("read certificate authority {file}: {error}"))?;
        entry["certificate-authority-data"] = base64::prelude::BASE64_STANDARD.encode(read).into();
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        entry["insecure-skip-tls-verify"] = true.into();
    }
    if let Some(name) = &cluster.tls_server_name {
        entry["tls-server-name"] = name.clone().into();
    }
    let document = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": entry}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    // JSON is YAML, and needs no writer of it.
    Ok(serde_json::to_string_pretty(&document)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_would_start_a_program_or_send_a_file_is_refused() {
        for (part, value, said) in [
            ("user", json!({"exec": {"command": "sh"}}), "exec would start a program"),
            ("user", json!({"auth-provider": {"name": "gcp"}}), "auth-provider would start a program"),
            ("user", json!({"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}), "tokenFile names"),
            ("user", json!({"client-certificate": "/a", "client-key": "/b"}), "client-certificate names a file"),
            ("cluster", json!({"server": "https://x", "certificate-authority": "/etc/passwd"}), "names a file"),
            ("cluster", json!({"server": "http://x"}), "is not https"),
            ("cluster", json!({}), "names no server"),
        ] {
            let error = credentials(part, &value).read().unwrap_err();
            assert!(error.contains(said), "{value}: {error}");
        }
        assert!(credentials("user", &json!({"token": "t"})).read().is_ok());
    }

    #[test]
    fn no_error_and_no_debug_text_says_anything_of_what_is_in_it() {
        let canary = "canary-7f3a";
        for text in [
            format!("users: [{{name: a, user: {{token: {canary}"),
            canary.to_owned(),
            format!("apiVersion: {canary}\nclusters: {canary}"),
            format!("current-context: {canary}"),
        ] {
            let credentials = Credentials::new(text.clone().into_bytes());
            let error = credentials.read().unwrap_err();
            assert!(!error.contains(canary), "{text}: {error}");
            assert!(!format!("{credentials:?}").contains(canary));
        }
    }

    #[test]
    fn the_end_of_a_token_is_known_and_one_without_an_end_has_none() {
        let token = |claims: &Value| format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let expires = |token: &str| credentials("user", &json!({"token": token})).validity();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let validity = expires(&token(&json!({"iat": 1_700_000_000, "exp": 1_800_000_000})));
        assert_eq!(validity, Some(Validity { from: Some(at(1_700_000_000)), end: at(1_800_000_000) }));
        assert_eq!(expires(&token(&json!({"sub": "x"}))), None);
        assert_eq!(expires("opaque"), None);
    }

    #[test]
    fn an_end_is_near_a_week_before_and_for_what_is_renewed_often_later() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let day = 86_400;
        for (whole, left, is_short) in [
            (None, 8 * day, false),
            (None, 6 * day, true),
            (Some(365 * day), 8 * day, false),
            (Some(365 * day), 6 * day, true),
            (Some(3600), 3000, false),
            (Some(3600), 1100, true),
            (Some(3600), -1, true),
        ] {
            let validity = Validity { from: whole.map(|whole| at(left - whole)), end: at(left) };
            assert_eq!(validity.is_short(at(0)), is_short, "{whole:?} {left}");
        }
    }

    #[test]
    fn a_client_certificates_end_is_known() {
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-keyout", "/dev/null", "-days", "30", "-subj", "/CN=x"])
            .output();
        let Ok(made) = made else { return println!("skipped: there is no openssl") };
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let data = base64::prelude::BASE64_STANDARD.encode(&made.stdout);
        let user = json!({"client-certificate-data": data, "client-key-data": ""});
        let validity = credentials("user", &user).validity().unwrap();
        assert_eq!(validity.end.as_second() - validity.from.unwrap().as_second(), 30 * 86_400);
        assert!(!validity.is_short(Timestamp::now()));
    }

    #[test]
    fn what_is_written_for_a_link_can_be_read_again() {
        let cluster = Cluster {
            server: Some("https://10.0.0.1:6443".to_owned()),
            certificate_authority_data: Some("Y2E=".to_owned()),
            ..Cluster::default()
        };
        let written = kubeconfig("east", &cluster, Some("https://east.example:6443"), "t0ken").unwrap();
        let read = Credentials::new(written.into_bytes()).read().unwrap();
        let (cluster, user) = current(&read).unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://east.example:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Y2E="));
        assert!(user.token.is_some());
    }

    fn credentials(part: &str, value: &Value) -> Credentials {
        let mut cluster = json!({"server": "https://10.0.0.1:6443"});
        let mut user = json!({"token": "t"});
        if part == "user" {
            user = value.clone()
        } else {
            cluster = value.clone()
        }
        let document = json!({
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        Credentials::new(document.to_string().into_bytes())
    }
}
