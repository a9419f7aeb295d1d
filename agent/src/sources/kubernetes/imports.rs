//! The watch of ServiceImports, in whichever version the API server has them; looked for again every so often if it has
//! none.

use super::{
    PAGE,
    follow::{Ended, Shared, follow},
    news::{Failure, News, Watch},
    pace,
    read::Imports,
};
use crate::sources::objects::Options;
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher,
};
use std::time::Duration;
use tokio::time::sleep;
use tracing::info;

const GROUP: &str = "multicluster.x-k8s.io";
/// The versions that are read, the best first.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// How often it is looked whether there is such a kind by now.
const LOOK: Duration = Duration::from_secs(60);

/// Watches ServiceImports whenever there are any.
pub(super) async fn run(client: Client, options: Options, shared: Shared) -> anyhow::Result<()> {
    let mut refusals = 0;
    loop {
        let failure = match version(&client).await {
            Ok(Some(version)) => {
                info!(version, "ServiceImports are watched");
                let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, version, "ServiceImport"));
                let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
                let config = watcher::Config::default().page_size(PAGE);
                match follow(Watch::Imports, api, config, Imports(options.clone()), &shared).await? {
                    Ended::Unheard => return Ok(()),
                    Ended::Absent => Failure::Absent,
                }
            }
            Ok(None) => Failure::Absent,
            Err(error) => Failure::of(&error, "get", "/apis"),
        };
        if shared.told.send((Watch::Imports, News::Failed(failure.clone()))).await.is_err() {
            return Ok(());
        }
        match failure {
            Failure::Unreachable(reason) => shared.reach.regain(&reason).await,
            Failure::Refused(_) => {
                sleep(pace::refused(refusals, pace::chance())).await;
                refusals += 1;
            }
            Failure::Absent | Failure::Expired => sleep(LOOK.mul_f64(0.75 + pace::chance() / 2.0)).await,
        }
    }
}

/// The best version that the API server has.
async fn version(client: &Client) -> kube::Result<Option<&'static str>> {
    let groups = client.list_api_groups().await?;
    let served = groups.groups.iter().find(|group| group.name == GROUP).map(|group| group.versions.as_slice());
    let has = |version: &&&str| served.unwrap_or_default().iter().any(|served| served.version == **version);
    Ok(VERSIONS.iter().find(has).copied())
}
