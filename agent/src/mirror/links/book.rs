//! From Link objects and Secrets to the links that run: pure, and level-triggered as everything here.
//!
//! A name is one link's: one given as a flag comes first, then Tombolo's Link, then Linkerd's. An object that can't be
//! understood takes nothing away: the link runs on as it was understood last, and one that never was holds what is there for as
//! long as if its peer were not heard.

use super::{
    LinkerdLink, credentials,
    credentials::Credentials,
    linkerd, linkerd_cluster, linkerd_secret,
    object::{self, LinkObject, SecretKey},
    part::Unread,
    plain,
};
use crate::{
    mirror::{
        lease::Terms,
        read,
        source::{Link, LinkName, Told, Understood},
    },
    model::{ClusterName, ObjectName},
};
use std::collections::{BTreeMap, BTreeSet};

/// The object that defines a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Definer {
    /// Tombolo's Link of this name.
    Tombolo(ObjectName),
    /// Linkerd's Link of this name.
    Linkerd(ObjectName),
}

/// A link as it should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who asks for it.
    pub definer: Definer,
    /// The object's UID and generation, as its status names them.
    pub version: (String, i64),
    /// What the object's status says.
    pub told: Told,
    /// What is imported.
    pub link: Link,
    /// How long the peer may be silent.
    pub terms: Terms,
    /// What the peer is reached with; else why it can't be, yet.
    pub credentials: Result<Credentials, String>,
    /// What can't be understood of the object, in a person's words; then the rest is as it was understood last.
    pub problem: Option<String>,
}

/// An object, whole or as much of it as can be read.
type Read<T> = Result<T, Unread<T>>;

/// Everything known of links.
#[derive(Debug)]
pub struct Book {
    own: ClusterName,
    terms: Terms,
    /// Links that were given as flags.
    flags: BTreeSet<LinkName>,
    tombolo: BTreeMap<ObjectName, Read<LinkObject>>,
    linkerd: BTreeMap<ObjectName, Read<LinkerdLink>>,
    /// By Secret, what each key holds; none where a Secret isn't there; else why it can't be read.
    secrets: BTreeMap<ObjectName, Result<Option<BTreeMap<String, Credentials>>, String>>,
    /// As each object was understood last.
    understood: BTreeMap<Definer, (Link, Terms)>,
    /// The server of each link, as its Secret said it last.
    servers: BTreeMap<Definer, String>,
}

impl Book {
    /// A book of the cluster `own`'s links. `terms` hold where a link doesn't say otherwise; the names in `flags` are taken.
    pub fn new(own: ClusterName, terms: Terms, flags: BTreeSet<LinkName>) -> Self {
        Self {
            own,
            terms,
            flags,
            tombolo: BTreeMap::new(),
            linkerd: BTreeMap::new(),
            secrets: BTreeMap::new(),
            understood: BTreeMap::new(),
            servers: BTreeMap::new(),
        }
    }

    /// Tombolo's Link of this name, as it can be read; none if it is gone.
    pub fn put_tombolo(&mut self, name: ObjectName, object: Option<Read<LinkObject>>) {
        put(&mut self.tombolo, name, object);
    }

    /// Linkerd's Link of this name, as it can be read; none if it is gone.
    pub fn put_linkerd(&mut self, name: ObjectName, object: Option<Read<LinkerdLink>>) {
        put(&mut self.linkerd, name, object);
    }

    /// Only these of Tombolo's Links are there.
    pub fn keep_tombolo(&mut self, names: &BTreeSet<ObjectName>) {
        self.tombolo.retain(|name, _| names.contains(name));
    }

    /// Only these of Linkerd's Links are there.
    pub fn keep_linkerd(&mut self, names: &BTreeSet<ObjectName>) {
        self.linkerd.retain(|name, _| names.contains(name));
    }

    /// What a Secret holds; none if it isn't there. One that isn't wanted any more is forgotten by [`secrets`](Self::secrets).
    pub fn put_secret(&mut self, name: ObjectName, held: Option<BTreeMap<String, Credentials>>) {
        self.secrets.insert(name, Ok(held));
    }

    /// Why a Secret can't be read. What was read of it before stays.
    pub fn put_unread(&mut self, name: ObjectName, reason: String) {
        if self.secrets.get(&name).is_none_or(Result::is_err) {
            self.secrets.insert(name, Err(reason));
        }
    }

    /// Whether it is known of every Secret that a link names what it holds, or that it can't be read.
    pub fn is_whole(&mut self) -> bool {
        self.secrets().iter().all(|name| self.secrets.contains_key(name))
    }

    /// The Secrets that links name.
    pub fn secrets(&mut self) -> BTreeSet<ObjectName> {
        let of_tombolo = self.tombolo.iter().filter_map(|(name, object)| {
            let key = object::secret(part(object), name).ok()?;
            Some(key.secret)
        });
        let of_linkerd = self.linkerd.iter().filter_map(|(name, object)| {
            let key = linkerd_secret(part(object), name).ok()?;
            Some(key.secret)
        });
        let wanted: BTreeSet<ObjectName> = of_tombolo.chain(of_linkerd).collect();
        self.secrets.retain(|name, _| wanted.contains(name));
        wanted
    }

    /// The links that should run, and what is wrong with objects that aren't among them.
    pub fn links(&mut self) -> (BTreeMap<LinkName, Wanted>, BTreeMap<Definer, String>) {
        let mut links = BTreeMap::new();
        let mut left: BTreeMap<Definer, String> = BTreeMap::new();
        let mut found: Vec<(LinkName, Wanted)> = Vec::new();
        let tombolo: Vec<_> = self.tombolo.iter().map(|(name, object)| (name.clone(), object.clone())).collect();
        for (name, object) in tombolo {
            found.push((LinkName(name.name.clone()), self.tombolo_link(name, object)));
        }
        let linkerd: Vec<_> = self.linkerd.iter().map(|(name, object)| (name.clone(), object.clone())).collect();
        for (name, object) in linkerd {
            found.extend(self.linkerd_link(name, object));
        }
        for (name, mut wanted) in found {
            if wanted.link.cluster == self.own {
                left.insert(wanted.definer, "a cluster is not linked with itself".to_owned());
                continue;
            }
            if self.flags.contains(&name) || links.contains_key(&name) {
                left.insert(wanted.definer, format!("another link is called {name}, and holds"));
                continue;
            }
            if let Some(server) = wanted.credentials.as_ref().ok().and_then(Credentials::server) {
                self.servers.insert(wanted.definer.clone(), server);
            }
            if let Ok(credentials) = &wanted.credentials
                && let Err(reason) = credentials.read()
            {
                wanted.credentials = Err(reason);
            }
            links.insert(name, wanted);
        }
        unite(&mut links, &self.servers);
        let is_there = |definer: &Definer| match definer {
            Definer::Tombolo(name) => self.tombolo.contains_key(name),
            Definer::Linkerd(name) => self.linkerd.contains_key(name),
        };
        self.understood.retain(|definer, _| is_there(definer));
        self.servers.retain(|definer, _| is_there(definer));
        (links, left)
    }

    fn tombolo_link(&mut self, name: ObjectName, object: Read<LinkObject>) -> Wanted {
        let part = part(&object).clone();
        let told = part.status.as_ref().map(read::told).unwrap_or_default();
        let understood = object.map_err(|unread| unread.reason).and_then(|object| {
            let (_, link) = object::link(&object, &name)?;
            Ok((link, object::terms(&object, self.terms)?))
        });
        let known = Known {
            version: version(&part.metadata),
            secret: object::secret(&part, &name),
            guess: guess(&name, object::cluster(&part, &name)),
            terms: object::terms(&part, self.terms).unwrap_or(self.terms),
        };
        Wanted { told, ..self.wanted(Definer::Tombolo(name), understood, known) }
    }

    fn linkerd_link(&mut self, name: ObjectName, object: Read<LinkerdLink>) -> Option<(LinkName, Wanted)> {
        let part = part(&object).clone();
        let understood = match object.map_err(|unread| unread.reason).and_then(|object| linkerd(&object)) {
            // The own cluster's.
            Ok(None) => return None,
            Ok(Some((_, link))) => Ok((link, self.terms)),
            Err(reason) => Err(reason),
        };
        let (cluster, suffix) = linkerd_cluster(&part, &name.name);
        let known = Known {
            version: version(&part.metadata),
            secret: linkerd_secret(&part, &name),
            guess: Link { suffix, is_linkerds: true, ..guess(&name, cluster) },
            terms: self.terms,
        };
        let wanted = self.wanted(Definer::Linkerd(name.clone()), understood, known);
        Some((LinkName(name.name), wanted))
    }

    /// A link as its object says it; else as that was understood last; else as much as is known, by which nothing comes in.
    fn wanted(&mut self, definer: Definer, understood: Result<(Link, Terms), String>, known: Known) -> Wanted {
        let Known { version, secret, guess, terms } = known;
        let ((link, terms), problem) = match understood {
            Ok(read) => {
                self.understood.insert(definer.clone(), read.clone());
                (read, None)
            }
            Err(reason) => {
                let last = self.understood.get(&definer).cloned();
                (last.unwrap_or((guess, terms)), Some(reason))
            }
        };
        let credentials = secret.and_then(|key| self.credentials(&key));
        Wanted { definer, version, told: Told::default(), link, terms, credentials, problem }
    }

    fn credentials(&self, key: &SecretKey) -> Result<Credentials, String> {
        let SecretKey { secret, key } = key;
        match self.secrets.get(secret) {
            None => Err(format!("Secret {secret} was not read yet")),
            Some(Err(reason)) => Err(format!("Secret {secret} can't be read: {reason}")),
            Some(Ok(None)) => Err(format!("Secret {secret} is not there")),
            Some(Ok(Some(held))) => held.get(key).cloned().ok_or_else(|| format!("Secret {secret} has no key {key}")),
        }
    }
}

/// What is known of an object by itself, whether the rest is understood or not.
struct Known {
    version: (String, i64),
    secret: Result<SecretKey, String>,
    /// The link that it is if nothing of what it lets in was ever understood.
    guess: Link,
    /// Its terms, by themselves.
    terms: Terms,
}

fn guess(name: &ObjectName, cluster: Option<ClusterName>) -> Link {
    let understood = if cluster.is_some() { Understood::Cluster } else { Understood::Nothing };
    let cluster = cluster.unwrap_or_else(|| ClusterName(name.name.clone()));
    Link { understood, suffix: name.name.clone(), ..plain(cluster, i64::MAX) }
}

/// What can be read of an object.
fn part<T>(object: &Read<T>) -> &T {
    match object {
        Ok(whole) => whole,
        Err(unread) => unread.part.as_ref(),
    }
}

/// Linkerd calls a cluster after its link, so one that is linked twice has two names. Links to one server lead to one cluster,
/// called after the oldest link; while a Secret is missing, `servers` has where it led to.
fn unite(links: &mut BTreeMap<LinkName, Wanted>, servers: &BTreeMap<Definer, String>) {
    let mut oldest: BTreeMap<&String, (i64, ClusterName)> = BTreeMap::new();
    let server = |wanted: &Wanted| servers.get(&wanted.definer);
    for wanted in links.values() {
        let Some(server) = server(wanted) else { continue };
        // A name that somebody gave comes before one that was taken from a link.
        let is_given = !wanted.link.is_linkerds || wanted.link.cluster.0 != wanted.link.suffix;
        let age = if is_given { i64::MIN } else { wanted.link.created };
        let known = oldest.entry(server).or_insert_with(|| (age, wanted.link.cluster.clone()));
        if (age, &wanted.link.cluster) < (known.0, &known.1) {
            *known = (age, wanted.link.cluster.clone());
        }
    }
    for wanted in links.values_mut().filter(|wanted| wanted.link.is_linkerds) {
        if let Some((_, cluster)) = server(wanted).and_then(|server| oldest.get(server))
            && wanted.link.cluster.0 == wanted.link.suffix
        {
            wanted.link.cluster = cluster.clone();
        }
    }
}

fn version(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> (String, i64) {
    (meta.uid.clone().unwrap_or_default(), meta.generation.unwrap_or(0))
}

fn put<T>(map: &mut BTreeMap<ObjectName, T>, name: ObjectName, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(name, value)),
        None => drop(map.remove(&name)),
    }
}

/// What a Secret's data hold under the keys that could be asked for.
pub fn held(data: BTreeMap<String, k8s_openapi::ByteString>) -> BTreeMap<String, Credentials> {
    data.into_iter().map(|(key, value)| (key, credentials::Credentials::new(value.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_link_runs_with_what_its_secret_holds_and_without_a_secret_it_waits() {
        let mut book = book();
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({})))));
        assert_eq!(book.secrets(), BTreeSet::from([name("east-credentials")]));
        assert_eq!(reason(&mut book, "east"), "Secret tombolo-system/east-credentials was not read yet");
        book.put_secret(name("east-credentials"), None);
        assert_eq!(reason(&mut book, "east"), "Secret tombolo-system/east-credentials is not there");
        book.put_secret(name("east-credentials"), Some(BTreeMap::new()));
        assert_eq!(reason(&mut book, "east"), "Secret tombolo-system/east-credentials has no key kubeconfig");
        book.put_secret(name("east-credentials"), Some(secret("t1")));
        let first = book.links().0[&link("east")].credentials.clone().unwrap();
        book.put_secret(name("east-credentials"), Some(secret("t2")));
        assert_ne!(book.links().0[&link("east")].credentials.clone().unwrap(), first);
    }

    #[test]
    fn an_object_that_is_not_understood_any_more_takes_nothing_away() {
        let mut book = book();
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({"podRanges": ["10.108.0.0/14"]})))));
        let before = book.links().0[&link("east")].clone();
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({"podRanges": ["10.108.0.0/99"]})))));
        let after = book.links().0[&link("east")].clone();
        assert_eq!(after.link, before.link);
        assert!(after.problem.unwrap().contains("spec.podRanges[0]"));
        book.put_tombolo(name("east"), None);
        assert!(book.links().0.is_empty());
    }

    #[test]
    fn one_that_never_was_understood_is_the_link_of_its_cluster_and_goes_on_with_its_credentials() {
        let range = json!({"podRanges": ["10.108.0.0/99"]});
        let with = |mut spec: Value, field: &str, value: Value| {
            spec[field] = value;
            spec
        };
        for (spec, status, cluster, understood) in [
            (range.clone(), json!({}), "east", Understood::Cluster),
            (with(range.clone(), "cluster", json!("e1")), json!({}), "e1", Understood::Cluster),
            (json!({"mode": "Sideways", "cluster": "e1"}), json!({}), "e1", Understood::Cluster),
            (json!({"cluster": 7}), json!({"cluster": "e1"}), "e1", Understood::Cluster),
            (with(range, "cluster", json!("e2")), json!({"cluster": "e1"}), "e1", Understood::Cluster),
            (json!({"cluster": "E!"}), json!({}), "east", Understood::Nothing),
        ] {
            let mut book = book();
            let spec = with(spec, "credentials", json!({"secretName": "east-credentials"}));
            let object = json!({"metadata": {"name": "east"}, "spec": spec, "status": status});
            book.put_tombolo(name("east"), Some(crate::mirror::links::part::read(object)));
            assert_eq!(book.secrets(), BTreeSet::from([name("east-credentials")]), "{spec}");
            book.put_secret(name("east-credentials"), Some(secret("t")));
            let never = book.links().0[&link("east")].clone();
            assert_eq!((never.link.cluster.0.as_str(), never.link.understood), (cluster, understood), "{spec}");
            assert!(never.problem.is_some() && never.credentials.is_ok(), "{spec}");
        }
    }

    #[test]
    fn one_that_never_was_understood_has_the_terms_that_it_says() {
        for (lease, removed) in [
            (json!({"removeAfterSeconds": 60}), 60),
            (json!({"removeAfterSeconds": 60, "staleAfterSeconds": 61}), 3600),
            (json!({}), 3600),
        ] {
            let mut book = book();
            let object = tombolo("east", json!({"podRanges": ["10.108.0.0/99"], "lease": lease}));
            book.put_tombolo(name("east"), Some(Ok(object)));
            book.put_secret(name("east-credentials"), Some(secret("t")));
            let never = book.links().0[&link("east")].clone();
            assert_eq!(never.terms.removed.as_secs(), removed, "{lease}");
            assert_eq!(never.link.understood, Understood::Cluster);
        }
    }

    #[test]
    fn neither_does_linkerds_link_lose_what_it_brought() {
        for (annotations, cluster, understood) in [
            (json!({"tombolo.io/pod-ranges": "10.0.0.0"}), "t1", Understood::Cluster),
            (json!({"tombolo.io/pod-ranges": "10.0.0.0", "tombolo.io/cluster": "e1"}), "e1", Understood::Cluster),
            (json!({"tombolo.io/cluster": "E!"}), "east", Understood::Nothing),
        ] {
            let mut book = book();
            let mut object = linkerds("t1");
            object.metadata.annotations = serde_json::from_value(annotations.clone()).unwrap();
            book.put_linkerd(name("east"), Some(Ok(object)));
            assert_eq!(book.secrets(), BTreeSet::from([name("cluster-credentials-t1")]));
            book.put_secret(name("cluster-credentials-t1"), Some(secret("t")));
            let never = book.links().0[&link("east")].clone();
            assert_eq!((never.link.cluster.0.as_str(), never.link.understood), (cluster, understood), "{annotations}");
            assert!(never.link.is_linkerds && never.link.suffix == "t1" && never.credentials.is_ok());
        }
    }

    #[test]
    fn a_name_is_given_once_and_tombolos_link_comes_before_linkerds() {
        let mut book = book();
        book.put_linkerd(name("east"), Some(Ok(linkerds("east"))));
        assert_eq!(book.links().0[&link("east")].definer, Definer::Linkerd(name("east")));
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({})))));
        let (links, left) = book.links();
        assert_eq!(links[&link("east")].definer, Definer::Tombolo(name("east")));
        assert_eq!(left[&Definer::Linkerd(name("east"))], "another link is called east, and holds");
        book.flags.insert(link("east"));
        let (links, left) = book.links();
        assert_eq!((links.len(), left.len()), (0, 2));
    }

    #[test]
    fn linkerds_link_of_the_own_cluster_and_a_link_with_itself_are_none() {
        let mut book = book();
        book.put_linkerd(name("local"), Some(Ok(linkerds(""))));
        book.put_tombolo(name("west"), Some(Ok(tombolo("west", json!({})))));
        let (links, left) = book.links();
        assert!(links.is_empty());
        assert_eq!(left[&Definer::Tombolo(name("west"))], "a cluster is not linked with itself");
    }

    #[test]
    fn linkerds_links_to_one_server_lead_to_one_cluster() {
        let mut book = book();
        for link in ["east-gw", "east", "north"] {
            let mut object = linkerds(link);
            let age = if link == "east" { "2026-01-01T00:00:00Z" } else { "2026-02-01T00:00:00Z" };
            object.metadata.creation_timestamp = serde_json::from_value(json!(age)).unwrap();
            book.put_linkerd(name(link), Some(Ok(object)));
            assert!(!book.is_whole());
            let server = if link == "north" { "https://north:6443" } else { "https://east:6443" };
            book.put_secret(name(&format!("cluster-credentials-{link}")), Some(secret_of(server, "t")));
            assert!(book.is_whole());
        }
        let clusters = |book: &mut Book| {
            book.links().0.into_values().map(|it| (it.link.suffix, it.link.cluster.0)).collect::<Vec<_>>()
        };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(clusters(&mut book), [pair("east", "east"), pair("east-gw", "east"), pair("north", "north")]);
        // While one's Secret is missing, or can't be used, it leads where it led.
        for held in [
            None,
            Some(BTreeMap::new()),
            Some(BTreeMap::from([("kubeconfig".to_owned(), Credentials::new(vec![0xff]))])),
        ] {
            book.put_secret(name("cluster-credentials-east"), held);
            assert_eq!(clusters(&mut book), [pair("east", "east"), pair("east-gw", "east"), pair("north", "north")]);
        }
        book.put_secret(name("cluster-credentials-east"), Some(secret_of("https://other:6443", "t")));
        assert_eq!(clusters(&mut book), [pair("east", "east"), pair("east-gw", "east-gw"), pair("north", "north")]);
        book.put_secret(name("cluster-credentials-east"), Some(secret_of("https://east:6443", "t")));
        // A name that was given holds for all of them.
        let mut given = linkerds("east-gw");
        given.metadata.annotations = Some([("tombolo.io/cluster".to_owned(), "e1".to_owned())].into());
        book.put_linkerd(name("east-gw"), Some(Ok(given)));
        assert_eq!(clusters(&mut book), [pair("east", "e1"), pair("east-gw", "e1"), pair("north", "north")]);
    }

    #[test]
    fn a_secret_that_cannot_be_read_any_more_is_as_it_was_read() {
        let mut book = book();
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({})))));
        book.put_unread(name("east-credentials"), "403".to_owned());
        assert_eq!(reason(&mut book, "east"), "Secret tombolo-system/east-credentials can't be read: 403");
        book.put_secret(name("east-credentials"), Some(secret("t")));
        book.put_unread(name("east-credentials"), "403".to_owned());
        assert!(book.links().0[&link("east")].credentials.is_ok());
    }

    #[test]
    fn what_a_list_lacks_is_gone_and_its_secret_is_forgotten() {
        let mut book = book();
        book.put_tombolo(name("east"), Some(Ok(tombolo("east", json!({})))));
        book.put_linkerd(name("north"), Some(Ok(linkerds("north"))));
        assert_eq!(book.secrets().len(), 2);
        book.keep_tombolo(&BTreeSet::new());
        book.keep_linkerd(&BTreeSet::from([name("north")]));
        assert_eq!(book.links().0.keys().cloned().collect::<Vec<_>>(), [link("north")]);
        assert_eq!(book.secrets(), BTreeSet::from([name("cluster-credentials-north")]));
    }

    fn book() -> Book {
        Book::new(ClusterName("west".to_owned()), Terms::default(), BTreeSet::new())
    }

    fn reason(book: &mut Book, name: &str) -> String {
        book.links().0[&link(name)].credentials.clone().unwrap_err()
    }

    fn link(name: &str) -> LinkName {
        LinkName(name.to_owned())
    }

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "tombolo-system".to_owned(), name: name.to_owned() }
    }

    fn tombolo(name: &str, mut spec: Value) -> LinkObject {
        spec["credentials"] = json!({"secretName": format!("{name}-credentials")});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn linkerds(cluster: &str) -> LinkerdLink {
        serde_json::from_value(json!({
            "metadata": {"name": cluster},
            "spec": {"targetClusterName": cluster, "clusterCredentialsSecret": format!("cluster-credentials-{cluster}")},
        }))
        .unwrap()
    }

    fn secret(token: &str) -> BTreeMap<String, Credentials> {
        secret_of("https://x", token)
    }

    fn secret_of(server: &str, token: &str) -> BTreeMap<String, Credentials> {
        let text = format!(
            "{{current-context: c, clusters: [{{name: c, cluster: {{server: '{server}'}}}}], \
             users: [{{name: u, user: {{token: {token}}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        BTreeMap::from([("kubeconfig".to_owned(), Credentials::new(text.into_bytes()))])
    }
}
