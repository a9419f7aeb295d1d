//! The one loop between the middle and the edges: takes in what sources say, resolves and plans, has the kernel
//! carry it out, and answers questions.

mod answers;
mod judging;
mod pods;
mod refusing;
mod taking_over;
mod writer;

use crate::{
    control::Asked,
    datapath::{Kernel, pins::Pins, probe},
    health::{Changed, View, driver::Fact},
    model::{Model, ObjectName, Place},
    report::{self, Question},
    resolve::{Conditions, Kept},
    sources::{Event, Problem},
    tables::{Part, Verdicts},
};
use anyhow::Context;
use judging::Judging;
use pods::{Exempt, PodCgroups};
use refusing::Refusing;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};
use taking_over::TakingOver;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::MissedTickBehavior,
};
use tracing::{debug, error, info, warn};
use writer::Writer;

/// How often it is looked whether all is still in place, and what failed is tried again.
const TICK: Duration = Duration::from_secs(2);
/// How often the tables are compared with what they should hold, a part at a time: the largest part takes some 10 ms.
const AUDIT: Duration = Duration::from_secs(10);
/// How often the hooks are proven by a process that is put into their cgroup. Where the agent is itself, it costs nothing
/// and is done with every tick.
const PROOF: Duration = Duration::from_secs(30);
/// How often the cgroups of pods that are just being started are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How often the programs' log is read, if they were built to have one.
const LISTEN: Duration = Duration::from_millis(200);
/// How often health is told what the tables use, at most.
const TELL: Duration = Duration::from_secs(1);
/// Frontends of the probe's own.
const PROBES: usize = probe::SERVICES as usize;

/// How long the loop waits for what it can't bring about itself.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// How long connected UDP sockets are watched after a loss.
    pub udp_refusal: Duration,
    /// How long an earlier agent's programs with maps of their own serve on while the source is incomplete.
    pub take_over: Duration,
}

/// Everything the loop owns.
pub struct Reconciler {
    place: Place,
    pins: Pins,
    cgroup: PathBuf,
    writer: Writer<Kernel>,
    model: Model,
    /// How often the model changed.
    changes: u64,
    /// What health found out that tables are resolved with.
    conditions: Conditions,
    judging: Judging,
    refusing: Refusing,
    taking_over: TakingOver,
    kept: Kept,
    pod_cgroups: PodCgroups,
    exempt: Exempt,
    /// Whether the source has delivered all of this node's pods, so that one it hasn't is unknown.
    pods_known: bool,
    /// How the source's watches stand.
    watches: watch::Receiver<Vec<report::Watch>>,
    /// Whether every source has delivered its first full list.
    synced: bool,
    /// Whether that is all there is, so that what is missing is gone.
    complete: bool,
    source_problems: Vec<Problem>,
    /// What is wrong with services, whoever found it.
    service_problems: BTreeMap<ObjectName, Vec<String>>,
    /// Of these, what only all objects together show.
    found_problems: BTreeMap<ObjectName, Vec<String>>,
    faults: Faults,
    /// What is odd about programs of others on our hooks.
    strangers: Option<String>,
    /// How often the tables were found to hold something else than they should.
    drift: u64,
    /// When the hooks were last proven.
    proven: Option<Instant>,
    /// The part of the tables that is audited next.
    audits: usize,
}

/// What keeps the agent from being ready, each as a sentence; none if that is as it should be.
#[derive(Debug)]
struct Faults {
    /// Something is not in place in the kernel.
    hooks: Option<String>,
    /// The tables don't hold what is desired.
    tables: Option<String>,
    /// Pods that ought to be left alone are not.
    pods: Option<String>,
    /// The hooks are not proven to act.
    proof: Option<String>,
}

impl Reconciler {
    /// Starts from what the kernel holds.
    pub fn new(
        place: Place,
        pins: Pins,
        cgroup: PathBuf,
        kernel: Kernel,
        facts: mpsc::Sender<Fact>,
        views: watch::Receiver<View>,
        waits: &Waits,
    ) -> anyhow::Result<Self> {
        let (capacity, pod_cgroups) = (kernel.capacity, PodCgroups::new(kernel.mount_level));
        Ok(Self {
            writer: Writer::new(kernel, capacity, place.cluster.clone())?,
            place,
            pins,
            cgroup,
            model: Model::default(),
            changes: 0,
            conditions: Conditions::default(),
            judging: Judging::new(facts, views),
            refusing: Refusing::new(waits.udp_refusal),
            taking_over: TakingOver::new(waits.take_over),
            kept: Kept::default(),
            pod_cgroups,
            exempt: Exempt::default(),
            pods_known: false,
            watches: watch::channel(Vec::new()).1,
            synced: false,
            complete: false,
            source_problems: Vec::new(),
            service_problems: BTreeMap::new(),
            found_problems: BTreeMap::new(),
            faults: Faults {
                hooks: None,
                tables: Some("nothing was written yet".to_owned()),
                pods: None,
                proof: Some("no probe socket was sent yet".to_owned()),
            },
            strangers: None,
            drift: 0,
            proven: None,
            audits: 0,
        })
    }

    /// Shows with its status how the source's watches stand.
    #[must_use]
    pub fn with_watches(mut self, watches: watch::Receiver<Vec<report::Watch>>) -> Self {
        self.watches = watches;
        self
    }

    /// Runs until the source ends.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut questions: mpsc::Receiver<Asked>,
        mut changes: watch::Receiver<Changed>,
    ) -> anyhow::Result<()> {
        let every = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (mut tick, mut look, mut listen, mut tell) = (every(TICK), every(LOOK), every(LISTEN), every(TELL));
        let mut audit = every(AUDIT / u32::try_from(Part::ALL.len()).expect("there are few"));
        // The probe's own services come first: full tables must not keep us from being proven.
        block_in_place(|| self.pass());
        loop {
            tokio::select! {
                // In this order: what health found out can't wait.
                biased;
                changed = changes.changed() => {
                    changed.context("health has ended")?;
                    let changed = changes.borrow_and_update().clone();
                    block_in_place(|| self.heed(changed));
                }
                event = events.recv() => {
                    let Some(event) = event else { return Ok(()) };
                    let mut changed = self.absorb(event);
                    // What else has come meanwhile goes into the same pass.
                    while let Ok(event) = events.try_recv() {
                        changed |= self.absorb(event);
                    }
                    if changed {
                        block_in_place(|| { self.look_for_pods(true); self.pass(); });
                    }
                }
                Some((question, reply)) = questions.recv() => block_in_place(|| self.reply(question, reply)),
                _ = listen.tick(), if self.writer.datapath.says() => self.writer.datapath.flush_log(),
                _ = look.tick(), if self.pods_known || self.pod_cgroups.is_waiting(Instant::now()) => block_in_place(|| {
                    if self.look_for_pods(false) {
                        self.pass();
                    }
                }),
                _ = tell.tick() => block_in_place(|| self.tell_health()),
                _ = audit.tick() => block_in_place(|| self.audit()),
                _ = tick.tick() => block_in_place(|| self.tick()),
            }
        }
    }

    /// Takes in what a source says; whether the tables may have to change.
    fn absorb(&mut self, event: Event) -> bool {
        match event {
            Event::Changes(changes) => {
                let any = changes.into_iter().fold(false, |any, change| {
                    self.kept.touch(&self.model, &change);
                    self.model.apply(change) | any
                });
                self.changes += u64::from(any);
                any
            }
            Event::Synced { complete } => {
                info!(
                    services = self.model.services.len(),
                    slices = self.model.slices.len(),
                    complete,
                    "source synced"
                );
                self.synced = true;
                self.complete = complete;
                self.kept.forget();
                self.taking_over.synced(Instant::now());
                true
            }
            Event::PodsKnown => {
                self.pods_known = true;
                true
            }
            Event::Zone(zone) => {
                info!(zone = zone.as_deref().unwrap_or_default(), "the node's zone");
                let is_new = self.place.zone != zone;
                self.place.zone = zone;
                self.kept.forget();
                is_new
            }
            Event::Problems(problems) => {
                self.source_problems = problems;
                false
            }
        }
    }

    fn reply(&mut self, question: Question, reply: tokio::sync::oneshot::Sender<String>) {
        match self.answer(question) {
            Ok(answer) => {
                if reply.send(answer).is_err() {
                    debug!("nobody waits for the answer any more");
                }
            }
            Err(error) => warn!(error = format!("{error:#}"), ?question, "question not answered"),
        }
    }

    /// Brings the kernel in step with the model.
    fn pass(&mut self) {
        let (desired, problems) = self.kept.resolve(&self.model, &self.place, &self.conditions);
        (desired.pods, desired.pod_level) = (self.exempt.pods.clone(), self.exempt.level);
        if !self.complete {
            taking_over::refuse_nothing(desired);
        }
        desired.services.extend(probe::services(&self.place.cluster));
        let services = desired.services.len().saturating_sub(PROBES);
        self.service_problems = BTreeMap::new();
        let mut found: BTreeMap<ObjectName, Vec<String>> = BTreeMap::new();
        for (name, texts) in problems {
            // What is wrong with the object itself its source has told, with the place.
            let told = self.model.services.get(name).map_or(&[][..], |service| &service.problems);
            let news = texts.iter().filter(|text| !told.contains(text)).cloned();
            found.entry(name.object.clone()).or_default().extend(news);
            self.service_problems.entry(name.object.clone()).or_default().extend(texts.iter().cloned());
        }
        found.retain(|_, texts| !texts.is_empty());
        self.note_problems(found);
        self.write();
        if self.faults.tables.is_none()
            && self.writer.datapath.waits()
            && self.taking_over.is_time(self.complete, services, Instant::now())
        {
            self.take_over();
        }
        // Not with every change, as long as it fails.
        if self.faults.proof.is_some() && self.proven.is_none_or(|last| last.elapsed() >= TICK) {
            self.prove();
        }
    }

    /// Puts what health found out into force.
    fn judge(&mut self, verdicts: Verdicts) {
        let judged = self.writer.judge(verdicts);
        if judged.is_err() {
            self.note_written(judged);
        }
        self.mind_udp();
    }

    /// Brings the kernel in step with what is desired.
    fn write(&mut self) {
        let differing = self.kept.take_differing();
        let written = self.writer.bring_in_step(self.kept.desired(), differing, self.complete, Instant::now());
        self.note_written(written);
        self.mind_udp();
    }

    fn note_written(&mut self, written: anyhow::Result<()>) {
        self.faults.tables = written.err().map(|error| {
            error!(error = format!("{error:#}"), "tables not brought in step, will be tried again");
            format!("the tables are not in step with what is desired: {error:#}")
        });
    }

    fn note_problems(&mut self, problems: BTreeMap<ObjectName, Vec<String>>) {
        for (service, texts) in &problems {
            let known = self.found_problems.get(service);
            for problem in texts.iter().filter(|text| known.is_none_or(|known| !known.contains(text))) {
                warn!(%service, %problem, "service problem");
            }
        }
        self.found_problems = problems;
    }

    fn tick(&mut self) {
        match self.writer.datapath.heal() {
            Ok(attached_anew) => {
                self.note_hooks(None);
                if attached_anew {
                    self.forget_proof();
                }
            }
            Err(error) => self.note_hooks(Some(format!("{error:#}"))),
        }
        self.look_for_strangers();
        self.count_refused_udp();
        self.mind_udp();
        let (behind, now) = (self.faults.tables.is_some() || self.writer.datapath.waits(), Instant::now());
        if self.look_for_pods(true) || behind {
            self.pass();
        } else if self.complete && (self.writer.has_idle(now) || self.writer.is_unfinished(now)) {
            self.write();
        }
        let is_due = self.proven.is_none_or(|last| last.elapsed() >= PROOF);
        if self.faults.proof.is_some() || is_due || probe::is_cheap(&self.cgroup) {
            self.prove();
        }
    }

    /// Looks for programs of others that may get in the way of ours.
    fn look_for_strangers(&mut self) {
        match self.writer.datapath.strangers() {
            Ok(found) => {
                if let Some(reason) = found.as_ref().filter(|_| found != self.strangers) {
                    warn!(%reason, "sock_ops has company");
                }
                self.strangers = found;
            }
            // If the cgroup is gone, that is told as such.
            Err(error) => debug!(error = format!("{error:#}"), "programs of others not looked for"),
        }
    }

    fn note_hooks(&mut self, fault: Option<String>) {
        match (&self.faults.hooks, &fault) {
            (Some(_), None) => info!("hooks are in place again"),
            (before, Some(reason)) if before.as_ref() != Some(reason) => error!(%reason, "hooks are not in place"),
            _ => {}
        }
        self.faults.hooks = fault;
    }

    /// Compares the next part of the tables with what it should hold.
    fn audit(&mut self) {
        let part = Part::ALL[self.audits % Part::ALL.len()];
        self.audits += 1;
        match self.writer.audit(part) {
            Ok(true) => {}
            Ok(false) => {
                self.drift += 1;
                error!(drift = self.drift, "the tables hold something else than was written");
                self.faults.tables = Some("the tables hold something else than was written".to_owned());
            }
            Err(error) => error!(error = format!("{error:#}"), "tables not audited"),
        }
    }

    /// Looks for the cgroups of pods that are left alone; whether there is anything new.
    fn look_for_pods(&mut self, everywhere: bool) -> bool {
        match self.pod_cgroups.look(&self.model.pods, self.pods_known, &self.cgroup, everywhere, Instant::now()) {
            Ok(exempt) => {
                self.faults.pods = None;
                let is_new = exempt != self.exempt;
                self.exempt = exempt;
                is_new
            }
            Err(error) => {
                let fault = format!("pods that ought to be left alone are not: {error:#}");
                if self.faults.pods.as_ref() != Some(&fault) {
                    error!(reason = format!("{error:#}"), "cgroups of pods not found");
                }
                self.faults.pods = Some(fault);
                false
            }
        }
    }

    /// What was proven no longer holds.
    fn forget_proof(&mut self) {
        self.faults.proof = Some("the hooks were attached anew, and no probe socket was sent since".to_owned());
        self.proven = None;
    }

    /// Sends a probe socket through the hooks.
    fn prove(&mut self) {
        let fault = probe::run(&self.cgroup).err().map(|error| format!("{error:#}"));
        match (&self.faults.proof, &fault) {
            (Some(_), None) => info!("hooks proven by a probe socket"),
            (before, Some(reason)) if before.as_ref() != Some(reason) => error!(%reason, "hooks don't act"),
            _ => {}
        }
        self.faults.proof = fault;
        self.proven = Some(Instant::now());
    }
}
