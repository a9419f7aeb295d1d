//! One watch: lists, follows, and goes on after whatever went wrong.

use super::{
    news::{Failure, News, Watch},
    pace,
    reach::Reach,
    read::Read,
};
use anyhow::Context as _;
use futures_util::StreamExt;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::warn;

/// A watch that failed before, and not again for so long, is on: it need not tell anything.
const RESUMED: Duration = Duration::from_secs(6);
/// The longest wait before a list is read again whose history is gone; all agents find that out at the same moment.
const RELIST: Duration = Duration::from_secs(1);

/// What watches share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) reach: Arc<Reach>,
    pub(super) told: mpsc::Sender<(Watch, News)>,
}

/// Why a watch has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// The API server doesn't have this kind of object, or has it no longer.
    Absent,
}

/// Follows what `api` has, as far as `config` selects it, and tells it.
pub(super) async fn follow<R: Read>(
    watch: Watch,
    api: Api<R::Kind>,
    config: watcher::Config,
    read: R,
    shared: &Shared,
) -> anyhow::Result<Ended>
where
    R::Kind: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let resource = resource(watch);
    let begin = || watcher(api.clone(), config.clone());
    let mut events = pin!(begin());
    // Whether a list is being read; failures since something was heard.
    let (mut listing, mut failures) = (true, 0_u32);
    loop {
        let event = if failures > 0 && !listing {
            match timeout(RESUMED, events.next()).await {
                Ok(event) => event,
                Err(_) => {
                    failures = 0;
                    if shared.told.send((watch, News::Resumed)).await.is_err() {
                        return Ok(Ended::Unheard);
                    }
                    continue;
                }
            }
        } else {
            events.next().await
        };
        let news = match event.context("a watch never ends")? {
            Ok(event) => {
                match event {
                    Event::Init => listing = true,
                    Event::InitDone => (listing, failures) = (false, 0),
                    Event::InitApply(_) => {}
                    Event::Apply(_) | Event::Delete(_) => failures = 0,
                }
                news(&read, event)
            }
            Err(error) => {
                let failure = match Failure::of_watch(&error, resource) {
                    // Every API server has the others, so it is just starting, or none of Kubernetes.
                    Failure::Absent if watch != Watch::Imports => {
                        Failure::Refused(format!("the API server has no {resource}"))
                    }
                    failure => failure,
                };
                if shared.told.send((watch, News::Failed(failure.clone()))).await.is_err() {
                    return Ok(Ended::Unheard);
                }
                match &failure {
                    Failure::Unreachable(reason) => shared.reach.regain(reason).await,
                    Failure::Expired => {
                        sleep(RELIST.mul_f64(pace::chance())).await;
                        // A server may refuse the request itself, after which the old stream would ask the same again.
                        events.set(begin());
                    }
                    Failure::Absent => return Ok(Ended::Absent),
                    Failure::Refused(reason) => {
                        if failures == 0 {
                            warn!(watch = watch.name(), reason, "watch refused");
                        }
                        sleep(pace::refused(failures, pace::chance())).await;
                    }
                }
                failures = failures.saturating_add(1);
                None
            }
        };
        if let Some(news) = news
            && shared.told.send((watch, news)).await.is_err()
        {
            return Ok(Ended::Unheard);
        }
    }
}

fn news<R: Read>(read: &R, event: Event<R::Kind>) -> Option<News> {
    Some(match event {
        Event::Init => News::Listing,
        Event::InitDone => News::Listed,
        Event::InitApply(object) | Event::Apply(object) => News::There(read.object(&object)?),
        Event::Delete(object) => News::Gone(read.key(&object)?),
    })
}

/// As RBAC names it.
fn resource(watch: Watch) -> &'static str {
    match watch {
        Watch::Services => "services",
        Watch::Imports => "serviceimports.multicluster.x-k8s.io",
        Watch::Mirrored | Watch::Fallback | Watch::Local { .. } => "endpointslices.discovery.k8s.io",
        Watch::Pods => "pods",
    }
}
