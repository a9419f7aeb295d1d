//! The demo: scenes on three clusters, each of which shows one thing that Tombolo does, and fails if it doesn't.
//!
//! The clusters are made once. Before each scene everything is put back to how it was: no annotations, nobody
//! withdrawn, every pod ready. A scene drives the clusters and checks what it sees; [`Stage`] keeps the counts, [`Screen`]
//! shows them. A scene is a file below `demo/`, and a line in [`SCENES`].

mod agent_killed;
mod cluster_back;
mod cluster_leaves;
mod cluster_loss;
mod federated;
mod flat;
mod gateway;
pub(crate) mod habits;
mod local_first;
mod outage;
mod rolling_update;
pub(crate) mod screen;
pub(crate) mod shares;
mod stage;
pub(crate) mod summary;
mod weights;

use crate::{
    addresses::Network,
    cgroup, cleanup,
    clusters::{Clusters, Mirroring, NAMES, Programs},
    manifests::Condition,
    netns::need_root,
};
use anyhow::{Context, Result, bail, ensure};
use screen::Screen;
use stage::Stage;
use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};
use summary::Summary;

/// Something to show.
struct Scene {
    name: &'static str,
    /// What it shows, in a sentence.
    shows: &'static str,
    /// Plays it. An error fails the scene; so does a request that failed, an address that was not hidden, or no request.
    play: fn(&mut Stage<'_>) -> Result<()>,
}

/// All scenes, in the order in which they are played.
const SCENES: &[Scene] = &[
    federated::SCENE,
    flat::SCENE,
    gateway::SCENE,
    weights::SCENE,
    local_first::SCENE,
    rolling_update::SCENE,
    cluster_leaves::SCENE,
    agent_killed::SCENE,
    cluster_loss::SCENE,
    cluster_back::SCENE,
];

/// Pods of `frontend` in west, east and north: different numbers, so that "evenly by endpoint" isn't "evenly by cluster".
pub(crate) const FRONTENDS: [usize; 3] = [2, 3, 1];
/// Pods of `api` in west and in east, and of `analytics` in east.
pub(crate) const OTHERS: usize = 2;
/// How long agents get until they are ready: they load programs, which a busy machine verifies slowly.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What the demo is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Play this scene only; may be given several times
    #[arg(long = "scene", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(SCENES.iter().map(|scene| scene.name)))]
    pub scenes: Vec<String>,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leave the clusters up at the end, and say how to enter them; `lab clean` removes them
    #[arg(long)]
    pub keep: bool,
    /// The program `tombolo`
    #[arg(long, value_name = "FILE", default_value_os_t = beside_this_program())]
    pub agent: PathBuf,
}

/// Plays the scenes; whether all passed. The file is written in any case, so that no older one is taken for its own.
pub fn run(options: &Options) -> Result<bool> {
    let played = play(options);
    if let Some(file) = &options.json {
        summary::write(played.as_ref(), file)?;
    }
    Ok(played?.passed())
}

fn play(options: &Options) -> Result<Summary> {
    need_root()?;
    check_machine(options)?;
    let began = Instant::now();
    let mut screen = Screen::new();
    screen.say("building three clusters: west, east, north")?;
    let lab = env::current_exe().context("find this program")?;
    let mut clusters = Clusters::build(Programs { lab, agent: Some(options.agent.clone()), agent_flags: Vec::new() })?;
    populate(&mut clusters)?;
    for agent in clusters.agents() {
        agent.wait_until_ready(READY_WITHIN)?;
    }
    let mut summary = Summary::new(began.elapsed())?;
    screen.say(&format!(
        "6 nodes with agents, {} pods, ready after {:.1} s",
        pods(&clusters),
        began.elapsed().as_secs_f64()
    ))?;

    let wanted = |scene: &&Scene| options.scenes.is_empty() || options.scenes.iter().any(|name| name == scene.name);
    let mut scenes = SCENES.iter().filter(wanted).peekable();
    // What a scene leaves for the next one to go on with.
    let mut outage = None;
    while let Some(scene) = scenes.next() {
        let goes_on = outage.is_some();
        let restored = if goes_on { Ok(()) } else { restore(&mut clusters) };
        let next = scenes.peek().map(|next| next.name);
        let mut stage = Stage::new(scene, next, outage.take(), &mut clusters, &mut screen);
        let begun = restored.and_then(|()| if goes_on { Ok(()) } else { stage.begin() });
        let played = begun.and_then(|()| (scene.play)(&mut stage));
        let (result, left) = stage.end(played)?;
        outage = left;
        screen.scene_ended(&result)?;
        summary.scenes.push(result);
    }

    if options.keep {
        cleanup::keep()?;
        say_how_to_enter(&clusters);
    } else {
        // What the scenes have shown isn't lost with it.
        summary.left_behind = take_down(clusters).unwrap_or_else(|error| vec![format!("{error:#}")]);
    }
    summary.seconds = began.elapsed().as_secs_f64();
    summary.print();
    Ok(summary)
}

/// Starts the pods.
fn populate(clusters: &mut Clusters) -> Result<()> {
    let mut wanted: Vec<_> =
        NAMES.into_iter().zip(FRONTENDS).map(|(cluster, count)| (cluster, "frontend", Network::Flat, count)).collect();
    wanted.push(("west", "api", Network::Flat, OTHERS));
    wanted.push(("east", "api", Network::Flat, OTHERS));
    wanted.push(("east", "analytics", Network::Private, OTHERS));
    clusters.start_pods(&wanted)?;
    clusters.publish()
}

/// Puts everything back to how a scene expects it: a scene that failed may have left it otherwise.
fn restore(clusters: &mut Clusters) -> Result<()> {
    clusters.mirroring = Mirroring::default();
    for cluster in NAMES {
        clusters.light_up(cluster)?;
    }
    for (cluster, count) in NAMES.into_iter().zip(FRONTENDS) {
        clusters.cluster_mut(cluster).remove_ended_pods()?;
        for pod in clusters.cluster_mut(cluster).pods_mut() {
            pod.condition = Condition::Ready;
        }
        let there = clusters.cluster(cluster).pods_of("frontend").count();
        clusters.start_pods(&[(cluster, "frontend", Network::Flat, count.saturating_sub(there))])?;
    }
    clusters.publish()?;
    for agent in clusters.agents() {
        if !agent.is_running()? {
            agent.start()?;
        }
        agent.wait_until_ready(READY_WITHIN)?;
    }
    Ok(())
}

/// Has the agents unload, removes everything, and returns what is still there: nothing, if all is well.
fn take_down(mut clusters: Clusters) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for agent in clusters.agents() {
        agent.unload()?;
        if agent.pins().exists() {
            left.push(agent.pins().display().to_string());
        }
    }
    drop(clusters);
    cleanup::remove_own()?;
    left.extend(cleanup::left_by_own()?);
    Ok(left)
}

fn pods(clusters: &Clusters) -> usize {
    clusters.iter().map(|cluster| cluster.pods().len()).sum()
}

/// Fails with a sentence that says what to do if something is missing.
fn check_machine(options: &Options) -> Result<()> {
    cgroup::mount_point()?;
    let paths = env::var_os("PATH").unwrap_or_default();
    for (program, package) in [("nft", "nftables"), ("sh", "dash")] {
        let found = env::split_paths(&paths).any(|folder| folder.join(program).is_file());
        ensure!(found, "{program} is missing: cargo xtask setup installs it (Debian package {package})");
    }
    if !options.agent.is_file() {
        bail!("there is no agent at {}: cargo xtask demo builds everything", options.agent.display());
    }
    Ok(())
}

fn beside_this_program() -> PathBuf {
    env::current_exe().map_or_else(|_| PathBuf::from("tombolo"), |lab| lab.with_file_name("tombolo"))
}

fn say_how_to_enter(clusters: &Clusters) {
    println!("\nThe clusters stay up. To be in a client pod, where ClusterIPs work:");
    for cluster in clusters.iter() {
        println!("  {}", cluster.client().enter());
        let address = clusters.service_addresses(cluster.name(), "frontend-federated");
        println!("    curl http://{}/    (frontend-federated in {})", address.v4, cluster.name());
    }
    println!("Manifests, logs and sockets of the agents: /run/{}", cleanup::prefix());
    println!("To remove everything: {} clean", env::current_exe().unwrap_or_else(|_| "lab".into()).display());
}
