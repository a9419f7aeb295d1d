//! An API server in memory, and watches that follow it as slowly and as badly as chance has it.
//!
//! Whatever happened on the way, once all watches have caught up the model is what the server holds.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_ends_in_what_the_server_holds(steps in proptest::collection::vec(step(), 0..160)) {
        let mut world = World::new();
        for step in steps {
            world.take(step)?;
        }
        world.settle();
        prop_assert_eq!(world.known.synced(), Some(true));
        prop_assert_eq!(world.known.problems(), vec![]);
        prop_assert_eq!(&world.model, &world.server.expected());
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    PutService(u8, Kind),
    PutSlice {
        name: u8,
        owner: u8,
        is_remote: bool,
        fallback: bool,
    },
    PutPod(u8),
    Delete(Kept),
    /// Some watch tells the next thing.
    Tell(usize),
    /// Some watch fails, and goes on from where it was if it can.
    Fail(usize),
    /// Some watch's history is gone.
    Expire(usize),
    BeginRound,
    Apply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Shared by a mark, so it has local endpoints of its own.
    Marked,
    /// A mirror's, with this Service as its local member.
    Mirror(Option<u8>),
}

/// Names of what a server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    Service(u8),
    Slice(u8),
    Pod(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Plain), Just(Kind::Marked), proptest::option::of(0..4_u8).prop_map(Kind::Mirror)];
    let kept =
        prop_oneof![(0..4_u8).prop_map(Kept::Service), (0..5_u8).prop_map(Kept::Slice), (0..2_u8).prop_map(Kept::Pod)];
    prop_oneof![
        2 => (0..4_u8, kind).prop_map(|(name, kind)| Step::PutService(name, kind)),
        3 => (0..5_u8, 0..4_u8, any::<bool>(), any::<bool>())
            .prop_map(|(name, owner, is_remote, fallback)| Step::PutSlice { name, owner, is_remote, fallback }),
        1 => (0..2_u8).prop_map(Step::PutPod),
        2 => kept.prop_map(Step::Delete),
        20 => any::<usize>().prop_map(Step::Tell),
        2 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Expire),
        2 => Just(Step::BeginRound),
        2 => Just(Step::Apply),
    ]
}

/// An object of any version ever; none once it was deleted. The index is the version.
type History = Vec<(Kept, Option<Object>)>;

#[derive(Default)]
struct Server {
    history: History,
}

impl Server {
    /// What there was when the history was so long.
    fn at(&self, len: usize) -> BTreeMap<Kept, &Object> {
        let mut objects = BTreeMap::new();
        for (kept, object) in &self.history[..len] {
            match object {
                Some(object) => drop(objects.insert(*kept, object)),
                None => drop(objects.remove(kept)),
            }
        }
        objects
    }

    fn write(&mut self, kept: Kept, object: Option<Object>) {
        self.history.push((kept, object));
    }

    fn version(&self) -> u32 {
        u32::try_from(self.history.len() + 1).unwrap()
    }

    /// What the model should hold, by the rules as people know them.
    fn expected(&self) -> Model {
        let objects = self.at(self.history.len());
        let changes: Vec<&Change> = objects.values().filter_map(|object| change_of(object)).collect();
        let slices: Vec<&Slice> = changes.iter().filter_map(|change| slice_of(change)).collect();
        let is_joined = |name| slices.iter().any(|slice| &slice.owner == name && slice.source_cluster.is_some());
        let (mut model, mut wanted) = (Model::default(), BTreeSet::new());
        for change in &changes {
            let Change::Service(name, Some(service)) = change else { continue };
            if service.federated || is_joined(name) {
                let itself = (!service.exclusive).then(|| name.object.name.clone());
                wanted.extend(service.local_member.clone().into_iter().chain(itself));
                model.apply(Change::Service(name.clone(), Some(Service { federated: true, ..service.clone() })));
            }
        }
        for change in changes {
            let is_kept = slice_of(change).is_some_and(|slice| {
                slice.source_cluster.is_some() || slice.fallback || wanted.contains(&slice.owner.object.name)
            });
            if is_kept || matches!(change, Change::Pod(..)) {
                model.apply(change.clone());
            }
        }
        model
    }
}

/// A watch as kube's watcher is one.
struct Follower {
    watch: Watch,
    /// For a round: whose slices.
    names: BTreeSet<String>,
    state: State,
}

enum State {
    Empty,
    /// What is left of the list, and the length of the history that it shows.
    Listing(Vec<Object>, usize),
    Watching(usize),
}

impl Follower {
    fn new(watch: Watch) -> Self {
        Self { watch, names: BTreeSet::new(), state: State::Empty }
    }

    /// Whether the watch's selector fits.
    fn fits(&self, object: &Object) -> bool {
        match (self.watch, change_of(object)) {
            (Watch::Services, Some(Change::Service(..))) | (Watch::Pods, Some(Change::Pod(..))) => true,
            (Watch::Mirrored, Some(change)) => slice_of(change).is_some_and(|slice| slice.source_cluster.is_some()),
            (Watch::Fallback, Some(change)) => slice_of(change).is_some_and(|slice| slice.fallback),
            (Watch::Local { .. }, Some(change)) => {
                slice_of(change).is_some_and(|slice| self.names.contains(&slice.owner.object.name))
            }
            _ => false,
        }
    }

    /// The next thing that it tells; none if it has caught up.
    fn next(&mut self, server: &Server) -> Option<News> {
        match &mut self.state {
            State::Empty => {
                let len = server.history.len();
                let listed = server.at(len).into_values().filter(|object| self.fits(object)).cloned().collect();
                self.state = State::Listing(listed, len);
                Some(News::Listing)
            }
            State::Listing(left, len) => {
                let news = left.pop().map(News::There);
                if news.is_none() {
                    self.state = State::Watching(*len);
                }
                Some(news.unwrap_or(News::Listed))
            }
            State::Watching(at) => {
                let mut at = *at;
                let mut news = None;
                while news.is_none() && at < server.history.len() {
                    let before = server.at(at);
                    let (kept, now) = &server.history[at];
                    let fitted = before.get(kept).filter(|object| self.fits(object));
                    news = match (fitted, now.as_ref().filter(|object| self.fits(object))) {
                        (_, Some(object)) => Some(News::There(object.clone())),
                        (Some(object), None) => Some(News::Gone(object.key.clone())),
                        (None, None) => None,
                    };
                    at += 1;
                }
                self.state = State::Watching(at);
                news
            }
        }
    }

    fn fail(&mut self) -> News {
        if let State::Listing(..) = self.state {
            self.state = State::Empty;
        }
        News::Failed(Failure::Unreachable("reset".to_owned()))
    }

    fn expire(&mut self) -> News {
        self.state = State::Empty;
        News::Failed(Failure::Expired)
    }
}

struct World {
    server: Server,
    known: Known,
    model: Model,
    followers: Vec<Follower>,
}

impl World {
    fn new() -> Self {
        let watches = [Watch::Services, Watch::Imports, Watch::Mirrored, Watch::Fallback, Watch::Pods];
        Self {
            server: Server::default(),
            known: Known::new(false),
            model: Model::default(),
            followers: watches.map(Follower::new).into(),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let version = self.server.version();
        match step {
            Step::PutService(name, kind) => {
                let (federated, exclusive) = (kind != Kind::Plain, matches!(kind, Kind::Mirror(_)));
                let local_member = match kind {
                    Kind::Mirror(member) => member.map(service_name),
                    _ => None,
                };
                let object = Service { federated, exclusive, local_member, ..plain_service() };
                let object = service(&service_name(name), version.into(), object);
                self.server.write(Kept::Service(name), Some(object));
            }
            Step::PutSlice { name, owner, is_remote, fallback } => {
                let object = slice(&format!("slice-{name}"), &service_name(owner), version, is_remote, fallback);
                self.server.write(Kept::Slice(name), Some(object));
            }
            Step::PutPod(name) => self.server.write(Kept::Pod(name), Some(pod(&format!("uid-{name}"), "pod"))),
            Step::Delete(kept) => self.server.write(kept, None),
            Step::Tell(which) => drop(self.tell(which)),
            Step::Fail(which) => {
                self.apply();
                let count = self.followers.len();
                let follower = &mut self.followers[which % count];
                self.known.take(follower.watch, follower.fail(), Instant::now());
                prop_assert_eq!(self.known.changes(), vec![], "a failure changes nothing");
            }
            Step::Expire(which) => {
                let count = self.followers.len();
                let follower = &mut self.followers[which % count];
                self.known.take(follower.watch, follower.expire(), Instant::now());
            }
            Step::BeginRound => drop(self.begin_round()),
            Step::Apply => self.apply(),
        }
        Ok(())
    }

    /// Has one watch tell something; whether it did.
    fn tell(&mut self, which: usize) -> bool {
        let count = self.followers.len();
        let follower = &mut self.followers[which % count];
        let Some(news) = follower.next(&self.server) else { return false };
        self.known.take(follower.watch, news, Instant::now());
        let known = &self.known;
        self.followers.retain(|follower| match follower.watch {
            Watch::Local { round, .. } => known.is_running(round),
            _ => true,
        });
        true
    }

    fn begin_round(&mut self) -> bool {
        let Some(names) = self.known.new_round() else { return false };
        let names: Vec<String> = names.iter().map(|name| name.name.clone()).collect();
        // In two parts, if there is enough.
        let parts: Vec<BTreeSet<String>> = names.chunks(2).take(2).map(|part| part.iter().cloned().collect()).collect();
        let count = u8::try_from(parts.len()).unwrap();
        let all = names.iter().map(|name| object_name(name)).collect();
        let round = self.known.begin_round(std::sync::Arc::new(all), count);
        let known = &self.known;
        self.followers.retain(|follower| match follower.watch {
            Watch::Local { round, .. } => known.is_running(round),
            _ => true,
        });
        for (part, names) in (0..).zip(parts) {
            self.followers.push(Follower { names, ..Follower::new(Watch::Local { round, part }) });
        }
        true
    }

    fn apply(&mut self) {
        for change in self.known.changes() {
            self.model.apply(change);
        }
    }

    /// Nothing goes wrong any more, and all watches catch up.
    fn settle(&mut self) {
        loop {
            let mut is_new = false;
            for which in (0..self.followers.len()).rev() {
                while which < self.followers.len() && self.tell(which) {
                    is_new = true;
                }
            }
            for follower in &self.followers {
                self.known.take(follower.watch, News::Resumed, Instant::now());
            }
            if !is_new && !self.begin_round() {
                break;
            }
        }
        self.apply();
    }
}

fn service_name(number: u8) -> String {
    format!("service-{number}")
}

fn change_of(object: &Object) -> Option<&Change> {
    match &object.reading {
        Reading::Taken(change) => Some(change),
        Reading::Left | Reading::Bad(_) => None,
    }
}

fn slice_of(change: &Change) -> Option<&Slice> {
    match change {
        Change::Slice(_, slice) => slice.as_ref(),
        Change::Service(..) | Change::Pod(..) => None,
    }
}
