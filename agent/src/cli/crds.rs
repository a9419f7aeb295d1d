//! `tombolo crds`: installs the CRDs that the mirror works with.

use super::say;
use crate::{
    mirror::crds::{MANIFESTS, Verdict, install, ours},
    sources::kubernetes::connect,
};
use anyhow::Context;
use clap::Args;
use kube::ResourceExt;
use std::path::PathBuf;

/// Install the CRDs of the MCS API, of ClusterProperties and of Links, where they are missing or older; newer ones stay.
#[derive(Args)]
pub(super) struct CrdsArgs {
    /// A kubeconfig; without it, that of the pod that this runs in.
    #[arg(long, env = "TOMBOLO_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Print the manifests instead.
    #[arg(long, env = "TOMBOLO_PRINT")]
    print: bool,
}

pub(super) fn run(args: &CrdsArgs) -> anyhow::Result<()> {
    if args.print {
        let manifests = MANIFESTS.map(|(_, text)| text.trim_end());
        return say(manifests.join("\n---\n"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(async {
        let client = connect(args.kubeconfig.as_deref()).await?;
        for crd in ours()? {
            let done = match install(&client, &crd).await? {
                Verdict::Install => "installed".to_owned(),
                Verdict::Update(reason) => format!("updated: {reason}"),
                Verdict::Keep => "left as it is".to_owned(),
                Verdict::Newer(reason) => format!("left as it is: {reason}, which this tombolo doesn't know"),
            };
            say(format!("{} {done}", crd.name_any()))?;
        }
        Ok(())
    })
}
