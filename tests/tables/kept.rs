//! What was resolved before is kept: after every change it is what all objects together give.

use crate::sequences::{Operation, cluster, operation};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::collections::BTreeMap;
use tombolo::{
    health::gateways::set_apart,
    model::{Change, Model, Path, Place},
    resolve::{Conditions, Kept, resolve},
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Most lists have neither frontends that two claim nor gateways, and so are those that are mended service by service.
    #[test]
    fn what_is_kept_is_what_all_objects_together_give(
        operations in prop::collection::vec((operation(), prop::bool::weighted(0.8)), 1..60),
        (has_contests, has_gateways) in (prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
    ) {
        let place = Place { cluster: cluster(0), node: "node".into(), zone: Some("a".into()) };
        let (mut model, mut kept, mut conditions) = (Model::default(), Kept::default(), Conditions::default());
        for (operation, is_looked_at) in operations {
            match operation {
                Operation::Change(change) => {
                    let change = plain(*change, has_contests, has_gateways);
                    kept.touch(&model, &change);
                    model.apply(change);
                }
                Operation::Connect(bits) => {
                    let ramp = u8::try_from(bits % 3 * 40).expect("it is small");
                    conditions.ramps = (ramp > 0).then(|| (cluster(1), ramp)).into_iter().collect();
                    kept.forget();
                }
                Operation::Kill(_) => kept = Kept::default(),
            }
            // Changes come in batches too.
            if !is_looked_at {
                continue;
            }
            let whole = resolve(&model, &place, &conditions, &BTreeMap::new(), 0);
            let mut expected = whole.desired;
            set_apart(&mut expected, &place.cluster);
            let (desired, problems) = kept.resolve(&model, &place, &conditions);
            if *desired != expected || *problems != whole.problems {
                return Err(TestCaseError::fail(format!("{desired:#?} instead of {expected:#?}")));
            }
        }
    }
}

fn plain(mut change: Change, has_contests: bool, has_gateways: bool) -> Change {
    match &mut change {
        Change::Service(_, Some(service)) if !has_contests => {
            // The first is its own; others may be another's.
            service.addresses.truncate(1);
        }
        Change::Slice(_, Some(slice)) if !has_gateways => slice.path = Path::Pod,
        _ => {}
    }
    change
}
