//! Real clusters: agent and mirror run there as `deploy/` installs them, and scenes are played with real pods beside real
//! kube-proxies.
//!
//! The clusters are there already (`cargo xtask kube up`), with the images. All is done as a person would do it, by kubectl.
//! Before each scene everything is put back to how it was. A scene is a file below `kubernetes/scenes/`.

mod client;
mod exec;
mod ground;
mod install;
mod kubectl;
mod outage;
mod scenes;
mod sockets;
mod stage;
mod workloads;

use crate::{
    clusters::NAMES,
    demo::{
        screen::Screen,
        summary::{self, Summary},
    },
};
use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;
use ground::Ground;
use ipnet::IpNet;
use scenes::{Play, SCENES};
use stage::Stage;
use std::{path::PathBuf, str::FromStr, time::Instant};

/// What the scenes are played on.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The clusters west, east and north, each with a kubeconfig and the range of its pods
    #[arg(long = "cluster", value_name = "NAME=KUBECONFIG=RANGE", required = true)]
    pub clusters: Vec<ClusterOption>,
    /// The program kubectl
    #[arg(long, value_name = "FILE", default_value = "kubectl")]
    pub kubectl: PathBuf,
    /// The program `tombolo`, which prints the manifests of links
    #[arg(long, value_name = "FILE", default_value = "tombolo")]
    pub tombolo: PathBuf,
    /// The folder of the manifests of agent and mirror
    #[arg(long, value_name = "DIR")]
    pub deploy: PathBuf,
    /// A folder below which overlays of these manifests are written; on the same file system
    #[arg(long, value_name = "DIR")]
    pub overlays: PathBuf,
    /// The program that cuts clusters off, `PROGRAM kube cut CLUSTER [--from CLUSTER]`, and has them reach each other again,
    /// `PROGRAM kube heal`
    #[arg(long, value_name = "FILE")]
    pub xtask: PathBuf,
    /// What tells one build of the images from another: pods of an older one are replaced
    #[arg(long, value_name = "TEXT")]
    pub build: String,
    /// Play the scenes of the demo only
    #[arg(long)]
    pub demo: bool,
    /// Play this scene only; may be given several times
    #[arg(long = "scene", value_name = "NAME", value_parser = PossibleValuesParser::new(SCENES.iter().map(|scene| scene.name)))]
    pub scenes: Vec<String>,
    /// Play the scenes whose names contain this only; may be given several times, and may fit none
    #[arg(long = "filter", value_name = "TEXT")]
    pub filters: Vec<String>,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leave what was installed as it is at the end
    #[arg(long)]
    pub keep: bool,
}

/// One of the clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOption {
    /// Its name.
    pub name: &'static str,
    /// How its administrator reaches it.
    pub kubeconfig: PathBuf,
    /// Where its pods are.
    pub pods: IpNet,
}

impl FromStr for ClusterOption {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, '=');
        let mut part = || parts.next().with_context(|| format!("{text} is not NAME=KUBECONFIG=RANGE"));
        let name = part()?;
        let known = NAMES.into_iter().find(|known| *known == name);
        let known = known.with_context(|| format!("{name} is none of {}", NAMES.join(", ")))?;
        let (kubeconfig, pods) = (PathBuf::from(part()?), part()?);
        Ok(Self { name: known, kubeconfig, pods: pods.parse().with_context(|| format!("{pods} is no range"))? })
    }
}

/// Plays the scenes; whether all passed. The file is written in any case, so that no older one is taken for its own.
///
/// # Errors
///
/// The clusters can't be used, or agent and mirror don't get ready.
pub fn run(options: &Options) -> Result<bool> {
    let played = play(options);
    if let Some(file) = &options.json {
        summary::write(played.as_ref(), file)?;
    }
    Ok(played?.passed())
}

fn play(options: &Options) -> Result<Summary> {
    for name in NAMES {
        let given = options.clusters.iter().filter(|cluster| cluster.name == name).count();
        ensure!(given == 1, "the cluster {name} is given {given} times");
    }
    let began = Instant::now();
    let mut screen = Screen::new();
    screen.say("installing agent and mirror in west, east and north")?;
    let ground = Ground::build(options)?;
    let mut summary = Summary::new(began.elapsed())?;
    screen.say(&format!("agents and mirrors are ready after {:.1} s", began.elapsed().as_secs_f64()))?;
    let wanted = |scene: &&Play| {
        let is_meant = options.scenes.is_empty() || options.scenes.iter().any(|name| name == scene.name);
        let fits = options.filters.is_empty() || options.filters.iter().any(|text| scene.name.contains(text.as_str()));
        is_meant && fits && (scene.is_demo || !options.demo)
    };
    let mut is_whole = true;
    for scene in SCENES.iter().filter(wanted) {
        let mut stage = Stage::new(scene.name, &ground);
        // One that failed may have left anything.
        let whole = if is_whole { Ok(()) } else { ground.set_up() };
        let begun = whole.and_then(|()| ground.restore()).and_then(|()| stage.begin());
        let played = begun.and_then(|()| (scene.play)(&mut stage));
        let result = stage.end(played)?;
        is_whole = result.passed();
        screen.scene_ended(&result)?;
        summary.scenes.push(result);
    }
    if !options.keep {
        let whole = if is_whole { Ok(()) } else { ground.set_up() };
        let left = whole.and_then(|()| ground.take_down());
        summary.left_behind = left.unwrap_or_else(|error| vec![format!("{error:#}")]);
    }
    summary.seconds = began.elapsed().as_secs_f64();
    summary.print();
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_with_its_kubeconfig_and_range() {
        let cluster: ClusterOption = "east=/e.kubeconfig=10.129.0.0/16".parse().unwrap();
        assert_eq!((cluster.name, cluster.kubeconfig), ("east", PathBuf::from("/e.kubeconfig")));
        for bad in ["south=/k=10.0.0.0/8", "east=/k", "east=/k=10.0.0.0"] {
            assert!(bad.parse::<ClusterOption>().is_err(), "{bad}");
        }
    }
}
