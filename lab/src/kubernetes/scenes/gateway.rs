//! A service whose pods can't be reached from here, through its cluster's gateway: a Service of type NodePort that its mirror
//! keeps.

use crate::{
    demo::{
        OTHERS,
        shares::{by_endpoint, check, shares},
    },
    kubernetes::{
        install::Reach,
        kubectl::text,
        stage::Stage,
        workloads::{ANALYTICS, CLIENT, FEDERATED, GATEWAY, NAMESPACE, SERVER_PORT},
    },
    report::Report,
};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

const FROM: &str = "north";
const TO: &str = GATEWAY;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground;
    let played =
        ground.link(FROM, TO, Reach::Gateway).and_then(|()| ground.cut_from(TO, FROM)).and_then(|()| ask(stage));
    // Whatever came of it: the other scenes are played on a flat network.
    ground.heal()?;
    ground.link(FROM, TO, Reach::Pods)?;
    played?;
    stage.settle(FEDERATED, &by_endpoint(), &[FROM])?;
    stage.said.note("directly: unreachable; by ClusterIP: both pods, through node ports of their cluster");
    Ok(())
}

fn ask(stage: &mut Stage<'_>) -> Result<()> {
    // Each of the two nodes stands for half of the three pods, rounded up.
    let by_gateway = shares([("west", 2.0), (TO, 4.0), (FROM, 1.0)]);
    stage.settle(FEDERATED, &by_gateway, &[FROM])?;
    let service = format!("{ANALYTICS}-{TO}");
    stage.settle(&service, &shares([(TO, 1.0)]), &[FROM])?;
    let pods = stage.ground.cluster(TO).pods(NAMESPACE, &format!("app={ANALYTICS}"))?;
    ensure!(pods.len() == OTHERS, "{} pods of {ANALYTICS}", pods.len());
    let mut refusals = Vec::new();
    for pod in &pods {
        refusals.push(refusal(stage, text(pod, "/status/podIP")?)?);
    }
    stage.said.fact("direct", refusals);

    stage.ask(FROM, &service, false)?;
    stage.ask(FROM, &service, true)?;
    stage.watch(Duration::from_secs(3))?;
    // The pods of all other services of that cluster are behind the gateway now, too.
    stage.ask(FROM, FEDERATED, false)?;
    stage.watch(Duration::from_secs(3))?;
    let seen = stage.stop_each()?;
    let (_, own) = stage.ground.client(FROM)?;
    for (_, report) in &seen[..2] {
        check(&format!("{service} from {FROM}"), &report.by_cluster, &shares([(TO, 1.0)]))?;
        ensure!(report.by_pod.len() == OTHERS, "the gateway forwarded to {:?} only", report.by_pod.keys());
        ensure!(!report.seen_as.contains(&own), "requests came from the client itself, {own}, not through a gateway");
    }
    let (_, federated) = &seen[2];
    check(&format!("{FEDERATED} from {FROM}"), &federated.by_cluster, &by_gateway)
}

/// Why a connect from the client straight to `pod` fails; an error if it doesn't.
fn refusal(stage: &Stage<'_>, pod: &str) -> Result<String> {
    let (client, target) = (format!("deployment/{CLIENT}"), format!("{pod}:{SERVER_PORT}"));
    let words = ["--namespace", NAMESPACE, "exec", &client, "--", "/bin/lab", "load", "--requests", "1", &target];
    let said = stage.ground.cluster(FROM).run(&words)?;
    let last = said.lines().last().context("no report")?;
    let report: Report = serde_json::from_str(last).context("understand a report")?;
    ensure!(report.requests == 1 && report.failed == 1, "{FROM} reaches the pod {target} directly");
    Ok(report.failures[0].error.clone())
}
