//! Real clusters with agent and mirror in them: started if they don't run, given images of what is built here, and handed to
//! the lab, which plays scenes there.

use crate::{
    image,
    kube::{
        self,
        image::Image,
        layout::{CLUSTERS, Counts},
    },
    process::{is_root, text},
    report::Report,
    toolchain::root,
};
use anyhow::Context;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The image of what runs in the scenes' pods.
const LAB: &str = "localhost/lab:1";

/// What the lab is to do.
#[derive(Default)]
pub(crate) struct Play<'a> {
    /// Only the scenes of the demo.
    pub(crate) demo: bool,
    /// Only these.
    pub(crate) scenes: &'a [String],
    /// Only those whose names contain one of these.
    pub(crate) filters: &'a [String],
    /// Where the results go.
    pub(crate) json: Option<&'a Path>,
    /// Leave everything as it is at the end.
    pub(crate) keep: bool,
}

/// A command that plays scenes on the clusters, which run then.
pub(crate) fn lab(play: &Play<'_>) -> anyhow::Result<Command> {
    let programs = image::programs(&["tombolo", "lab"], false)?;
    let images = [image::of_tombolo(&programs)?, of_lab(&programs)?];
    kube::prepare()?;
    if !is_root()? {
        // What was built is there then.
        kube::as_root()?;
    }
    kube::up(Counts::default())?;
    let folder = root().join("target/images");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut build = Sha256::new();
    let mut archives = Vec::new();
    for (image, name) in images.iter().zip(["tombolo", "lab"]) {
        let archive = folder.join(name).with_extension("tar");
        kube::image::write(image, &archive)?;
        build.update(fs::read(&archive).with_context(|| format!("read {}", archive.display()))?);
        archives.push(archive);
    }
    kube::load(&archives)?;
    // The lab itself is started on this machine, from what its image holds.
    let mut lab = Command::new(programs.join("lab"));
    lab.arg("kubernetes").arg("--kubectl").arg(kube::programs()?.join("kubectl"));
    lab.arg("--tombolo").arg(programs.join("tombolo"));
    for cluster in CLUSTERS {
        let config = cluster.kubeconfig("admin");
        lab.arg("--cluster").arg(format!("{}={}={}", cluster.name, config.display(), cluster.pods()));
    }
    lab.arg("--deploy").arg(root().join("deploy")).arg("--overlays").arg(root().join("target/overlays"));
    lab.arg("--xtask").arg(own_copy(&folder)?);
    lab.arg("--build").arg(&kube::image::hex(&build.finalize())[..16]);
    lab.args(play.demo.then_some("--demo")).args(play.keep.then_some("--keep"));
    lab.args(play.filters.iter().flat_map(|filter| ["--filter", filter]));
    lab.args(play.scenes.iter().flat_map(|scene| ["--scene", scene]));
    lab.args(play.json.iter().flat_map(|file| ["--json".as_ref(), file.as_os_str()]));
    Ok(lab)
}

/// Plays all scenes, or those whose names contain one of `filters`, and counts each as a test.
pub(crate) fn check(report: &mut Report, filters: &[String]) -> anyhow::Result<()> {
    let json = root().join("target/kubernetes.json");
    let mut lab = lab(&Play { filters, json: Some(&json), ..Play::default() })?;
    let status = lab.status().with_context(|| format!("run {}", text(&lab)))?;
    let results = fs::read(&json).with_context(|| format!("read {}", json.display()))?;
    let results: Value = serde_json::from_slice(&results).with_context(|| format!("understand {}", json.display()))?;
    let scenes = results["scenes"].as_array().context("there are no scenes in the results")?;
    let before = report.failed;
    for scene in scenes {
        let name = scene["name"].as_str().unwrap_or_default();
        if scene["passed"] == true {
            report.passed += 1;
        } else {
            report.fail(format!("real clusters: {name}"));
        }
    }
    if !status.success() && report.failed == before {
        report.fail(format!("real clusters: {status}: {}", results["error"].as_str().unwrap_or("see above")));
    }
    Ok(())
}

/// A copy of this program: to build the workspace's programs replaces the file that it was started from.
fn own_copy(folder: &Path) -> anyhow::Result<PathBuf> {
    let (copy, new) = (folder.join("xtask"), folder.join("xtask.new"));
    fs::copy("/proc/self/exe", &new).with_context(|| format!("copy this program to {}", new.display()))?;
    // One that runs is replaced, not written to.
    fs::rename(&new, &copy).with_context(|| format!("rename {} to {}", new.display(), copy.display()))?;
    Ok(copy)
}

fn of_lab(programs: &Path) -> anyhow::Result<Image> {
    let mut image = kube::image::tools(&kube::image::busybox()?)?;
    image.name = LAB.to_owned();
    image.program("/bin/lab", &programs.join("lab"))?;
    Ok(image)
}
