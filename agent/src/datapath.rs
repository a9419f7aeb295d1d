//! The kernel side: loads the programs, attaches and pins them, and carries out [`Step`]s on the maps. The only code that
//! names aya.

mod attach;
mod bpf;
pub mod cgroup;
pub mod clock;
mod depth;
mod egress;
mod events;
mod foreign;
mod grace;
mod hash;
mod maps;
mod object;
pub mod pins;
pub mod preflight;
pub mod probe;
mod signs;
mod table;

use crate::tables::{Capacity, Installed, Maps, Part, Step};
use anyhow::Context;
use attach::Links;
use aya::{Ebpf, EbpfLoader, maps::MapData};
use aya_log::EbpfLogger;
use egress::Egress;
use pins::{Found, Lock, Pins};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use tombolo_ebpf::abi::{BackendState, map};
use tracing::{info, warn};

pub use attach::{Attached, EGRESS, HOOKS, How, attached_by_pins};
pub use events::Events;
pub use maps::{Counts, KernelMaps};
pub use signs::KernelSigns;

/// What carries out the steps of a plan: the kernel, or in tests [`Installed`] itself.
pub trait Datapath {
    /// Carries out one step. A failed step has changed nothing that a program can reach.
    fn apply(&mut self, step: &Step) -> anyhow::Result<()>;

    /// Reads the tables back, to plan from.
    fn read(&self) -> anyhow::Result<Maps>;

    /// Whether a part of the tables holds what is known.
    fn agree(&self, known: &Installed, part: Part) -> anyhow::Result<bool> {
        Ok(self.read()?.agree(&known.to_maps(), part))
    }

    /// Whether the backend of this index and generation has open connections.
    fn is_busy(&self, index: u32, generation: u32) -> anyhow::Result<bool>;
}

impl Datapath for Installed {
    fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
        Installed::apply(self, step);
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Maps> {
        Ok(self.to_maps())
    }

    fn is_busy(&self, index: u32, _: u32) -> anyhow::Result<bool> {
        Ok(!self.is_idle(index))
    }
}

/// Applies `steps` in order and stops at the first failure.
///
/// A half-applied plan is safe: the next pass reads the kernel back and plans from there.
pub fn apply(datapath: &mut impl Datapath, steps: &[Step]) -> anyhow::Result<()> {
    for step in steps {
        datapath.apply(step).with_context(|| format!("write {step}"))?;
    }
    Ok(())
}

/// The loaded data path. Dropping it leaves everything in the kernel in place.
pub struct Kernel {
    /// The maps.
    pub maps: KernelMaps,
    /// How much room the maps have: what was asked for, or what they have had since an earlier agent made them.
    pub capacity: Capacity,
    /// What each hook is attached to, and whether it was taken over from an earlier agent.
    pub attached: Vec<Attached>,
    /// Instructions that the verifier processed, by hook.
    pub verified: Vec<(String, u32)>,
    /// How many cgroups lie above the hierarchy's root as it is seen from here; none if that can't be told.
    pub mount_level: Option<u32>,
    /// Reads what programs that were built for debugging say.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    ebpf: Ebpf,
    pins: Pins,
    cgroup: PathBuf,
    links: Links,
    egress: Egress,
    /// The maps once more, to be pinned, and again if a pin goes.
    all_maps: Vec<(&'static str, OwnedFd)>,
    /// Keeps other writers off the maps.
    lock: Lock,
    /// Keeps agents of other layouts off, until nothing of theirs is pinned any more.
    others: Vec<Lock>,
    /// The programs of an earlier agent still serve from maps of their own.
    waits: bool,
}

impl Kernel {
    /// Loads the programs against the maps pinned in `pins`, or new ones of `capacity`, and attaches them to `cgroup`.
    ///
    /// Where an earlier agent's links are pinned, its programs are exchanged for these without a moment in between. If its
    /// maps can't be had any more, because a pin is missing or they are of another layout, the exchange waits for
    /// [`take_over`](Self::take_over).
    ///
    /// # Errors
    ///
    /// A first start that fails leaves nothing behind.
    pub fn load(pins: &Pins, cgroup: &Path, capacity: &Capacity) -> anyhow::Result<Self> {
        pins.create()?;
        let locks = (pins.lock()?, pins.lock_others()?);
        let found = pins.sort_out()?;
        let mut loaded = Self::load_into(pins, cgroup, capacity, found, locks);
        if let Ok(kernel) = &mut loaded
            && !kernel.waits
            && let Err(error) = kernel.attach()
        {
            loaded = Err(error);
        }
        if loaded.is_err() && found == Found::Nothing {
            // Nothing was attached, so nothing needs these maps.
            match pins.unload() {
                Ok(_) => {}
                Err(error) => warn!(error = format!("{error:#}"), "left-overs of a failed start not removed"),
            }
        }
        loaded
    }

    fn load_into(
        pins: &Pins,
        cgroup: &Path,
        asked: &Capacity,
        found: Found,
        (lock, others): (Lock, Vec<Lock>),
    ) -> anyhow::Result<Self> {
        let capacity = if found == Found::Maps { maps::capacity_of(pins)? } else { *asked };
        if capacity != *asked {
            warn!(pinned = ?capacity, ?asked, "the pinned maps keep their size; `tombolo unload` before a start gives them another");
        }
        if found == Found::Links {
            warn!(pins = %pins.dir().display(), "pinned maps are missing, or of another layout; the programs attached serve on until new maps are filled");
        }
        let waits = found == Found::Links;
        // Maps that aren't filled yet are not pinned, so that they aren't taken for those that programs serve from.
        let mut ebpf = load_object((!waits).then_some(pins), &capacity)?;
        let verified = attach::load(&mut ebpf)?;
        let mount_level = match depth::of_mount(&mut ebpf) {
            Ok(level) => Some(level),
            Err(error) => {
                warn!(error = format!("{error:#}"), "how deep the mounted cgroup hierarchy lies can't be told");
                None
            }
        };
        let log = ebpf
            .map("AYA_LOGS")
            .is_some()
            .then(|| EbpfLogger::init(&mut ebpf))
            .transpose()
            .context("read the programs' log")?;
        let all_maps = maps::PINNED.into_iter().map(|name| Ok((name, maps::descriptor(&ebpf, name)?)));
        let all_maps = all_maps.collect::<anyhow::Result<_>>()?;
        let maps = KernelMaps::take(&mut ebpf)?;
        Ok(Self {
            maps,
            capacity,
            attached: Vec::new(),
            verified,
            mount_level,
            log,
            ebpf,
            pins: pins.clone(),
            cgroup: cgroup.to_owned(),
            links: Links::default(),
            egress: Egress::default(),
            all_maps,
            lock,
            others,
            waits,
        })
    }

    /// Whether the programs wait for their maps to be filled, while an earlier agent's serve from maps of their own.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Puts the programs in place of the earlier agent's: the maps are filled now.
    pub fn take_over(&mut self) -> anyhow::Result<()> {
        self.pin_missing()?;
        self.attach()?;
        self.waits = false;
        Ok(())
    }

    /// Puts back what went missing: pins that were removed, and links that were attached to a cgroup which was removed
    /// and made again. Whether a hook was attached anew, which has to be proven then.
    ///
    /// # Errors
    ///
    /// Something is not as it should be, and can't be mended yet: there is no cgroup of that name, or no bpffs.
    pub fn heal(&mut self) -> anyhow::Result<bool> {
        if self.waits {
            return Ok(false);
        }
        let attached = self.attach();
        let pinned = self.pin_missing()?;
        if pinned > 0 {
            info!(pins = pinned, "pinned again what somebody had removed");
        }
        Ok(attached? > 0)
    }

    fn attach(&mut self) -> anyhow::Result<usize> {
        let attached = self.links.bring_about(&self.ebpf, &self.cgroup, &self.pins)?;
        if attached > 0
            && let Err(error) = self.egress.take_over(&self.ebpf, &self.cgroup, &self.pins)
        {
            warn!(error = format!("{error:#}"), "hook for connected UDP sockets not taken over");
            self.egress.detach(&self.pins)?;
        }
        self.note_attached();
        if !self.others.is_empty() {
            let links = self.links.iter().chain(self.egress.link());
            let ids = links.map(|(_, link)| bpf::link_field(link.as_fd(), "link_id"));
            self.pins.remove_others(&ids.collect::<anyhow::Result<_>>()?)?;
            self.others.clear();
        }
        Ok(attached)
    }

    fn note_attached(&mut self) {
        self.attached = self.links.attached().into_iter().chain(self.egress.attached()).collect();
    }

    /// What is odd about other programs on `sock_ops`, in a person's words; none if ours is alone, or isn't there yet.
    ///
    /// # Errors
    ///
    /// The kernel doesn't say what is attached.
    pub fn strangers(&self) -> anyhow::Result<Option<String>> {
        const HOOK: &str = "sock_ops";
        let Some((_, link)) = self.links.iter().find(|(hook, _)| *hook == HOOK) else { return Ok(None) };
        let own = bpf::link_field(link.as_fd(), "prog_id")?;
        Ok(foreign::sentence_on_sock_ops(&foreign::strangers(&self.cgroup, HOOK, own)?))
    }

    /// Whether packets of connected UDP sockets are looked at.
    pub fn refuses_udp(&self) -> bool {
        self.egress.attached().is_some()
    }

    /// Has packets of connected UDP sockets looked at, and refused if they go to a backend that is gone or dead; or not any
    /// more.
    ///
    /// # Errors
    ///
    /// It can't be done now. All else goes on.
    pub fn refuse_udp(&mut self, refuse: bool) -> anyhow::Result<()> {
        let done = match refuse {
            true => self.egress.attach(&self.ebpf, &self.cgroup, &self.pins),
            false => self.egress.detach(&self.pins),
        };
        self.note_attached();
        done
    }

    /// Pins what isn't pinned; returns how much that was.
    fn pin_missing(&mut self) -> anyhow::Result<usize> {
        let maps = self.all_maps.iter().map(|(name, map)| (self.pins.map(name), map));
        let links = self.links.iter().chain(self.egress.link());
        let links = links.map(|(hook, link)| (self.pins.link(hook), link));
        let missing: Vec<_> = maps.chain(links).filter(|(pin, _)| !pin.exists()).collect();
        if !missing.is_empty() {
            self.pins.create()?;
            self.lock.renew()?;
        }
        for (pin, object) in &missing {
            bpf::pin(object.as_fd(), pin).with_context(|| format!("pin {}", pin.display()))?;
        }
        Ok(missing.len())
    }

    /// What the programs tell from now on. There can be one reader. Has to be called within a runtime.
    pub fn events(&self) -> anyhow::Result<Events> {
        let (_, ring) =
            self.all_maps.iter().find(|(name, _)| *name == map::EVENTS).context("there is no map of events")?;
        Events::new(MapData::from_fd(ring.try_clone().context("keep the map of events open")?)?)
    }

    /// Where it is read when clusters and backends were last heard.
    pub fn signs(&self) -> anyhow::Result<KernelSigns> {
        let open = |wanted: &str| {
            let (_, fd) = self
                .all_maps
                .iter()
                .find(|(name, _)| *name == wanted)
                .with_context(|| format!("there is no map {wanted}"))?;
            fd.try_clone().with_context(|| format!("keep map {wanted} open"))
        };
        KernelSigns::new(open(map::CLUSTER_STATE)?, open(map::BACKEND_STATE)?)
    }

    /// Whether the programs were built for debugging.
    pub fn says(&self) -> bool {
        self.log.is_some()
    }

    /// Hands on what the programs have said since, to the `log` facade. Only programs built with `--log` say anything.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}

impl Datapath for Kernel {
    fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
        self.maps.apply(step)
    }

    fn read(&self) -> anyhow::Result<Maps> {
        self.maps.read()
    }

    fn agree(&self, known: &Installed, part: Part) -> anyhow::Result<bool> {
        self.maps.agree(known, part)
    }

    fn is_busy(&self, index: u32, generation: u32) -> anyhow::Result<bool> {
        let state = self.maps.state(index, generation)?;
        Ok(state.is_some_and(|state| open_connections(&state) > 0))
    }
}

/// How many of a backend's connections are open.
pub fn open_connections(state: &BackendState) -> u64 {
    u64::try_from(state.open.cast_signed()).unwrap_or(0)
}

/// Loads the object's maps, those pinned in `pins` or new ones, which are pinned there if `pins` are given.
fn load_object(pins: Option<&Pins>, capacity: &Capacity) -> anyhow::Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (pins, name) in pins.into_iter().flat_map(|pins| maps::PINNED.map(|name| (pins, name))) {
        loader.map_pin_path(name, pins.map(name));
    }
    for (name, entries) in maps::sizes(capacity) {
        loader.map_max_entries(name, entries);
    }
    loader.map_max_entries(map::CONFIG, 1);
    loader.load(object::object()?).context(
        "make the maps, or take over the pinned ones (if those are of another make, `tombolo unload` removes them)",
    )
}
