//! `tombolo check`: what is wrong with links.

use super::{Output, print_json, say, table};
use crate::{
    mirror::check::{Finding, Scope, Verdict, check},
    sources::kubernetes::connect,
};
use anyhow::Context;
use clap::Args;
use std::{path::PathBuf, process::ExitCode};

/// Say what is wrong with links.
#[derive(Args)]
pub(super) struct CheckArgs {
    /// One link; all of them otherwise.
    link: Option<String>,
    /// The kubeconfig of this cluster; without it, that of the pod that this runs in.
    #[arg(long, env = "TOMBOLO_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of Link objects and of the Secrets that they name.
    #[arg(long, env = "TOMBOLO_NAMESPACE", value_name = "NAMESPACE", default_value = "tombolo-system")]
    namespace: String,
    /// The namespace of Linkerd's Links, where Linkerd runs.
    #[arg(long, env = "TOMBOLO_LINKERD_NAMESPACE", value_name = "NAMESPACE", default_value = "linkerd-multicluster")]
    linkerd_namespace: String,
    /// Don't dial pods: from a machine that is no node, they need not be reachable.
    #[arg(long, env = "TOMBOLO_NO_PROBES")]
    no_probes: bool,
    /// As a table for people, or as JSON for programs.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let scope = Scope {
        namespace: args.namespace.clone(),
        linkerd: args.linkerd_namespace.clone(),
        only: args.link.clone(),
        probes: !args.no_probes,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let findings = runtime.block_on(async {
        let own = connect(args.kubeconfig.as_deref()).await?;
        anyhow::Ok(check(&own, &scope).await)
    })?;
    if args.output == Output::Json {
        print_json(&findings)?;
    } else {
        print(&findings)?;
    }
    let is_well = findings.iter().all(|finding| finding.verdict != Verdict::Problem);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(findings: &[Finding]) -> anyhow::Result<()> {
    let mut table = table(&["LINK", "CHECK", "", "FOUND"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Unknown => "unknown",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        };
        table.add_row([finding.link.as_deref().unwrap_or("-"), finding.check, verdict, &finding.text]);
    }
    say(table)
}
