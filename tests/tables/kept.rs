//! What was resolved before is kept: after every change it is what all objects together give.

use crate::{
    sequences::{Operation, cluster, operation},
    world::ROOMY,
};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::collections::BTreeMap;
use tombolo::{
    health::gateways::set_apart,
    model::{Change, Model, Path, Place},
    plan::{Plan, Scope, plan, plan_within},
    resolve::{Conditions, Kept, resolve},
    tables::{Desired, Differing, Installed, Step},
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

    /// Plans that look only at what may differ, write a little at a time and seldom wait for programs.
    #[test]
    fn a_plan_of_what_may_differ_finds_all_that_does(
        operations in prop::collection::vec((operation(), prop::bool::weighted(0.8), prop::bool::weighted(0.3)), 1..60),
        most in 1..20usize,
    ) {
        let place = Place { cluster: cluster(0), node: "node".into(), zone: Some("a".into()) };
        let (mut model, mut kept, mut installed) = (Model::default(), Kept::default(), Installed::default());
        let mut settled = Desired::default();
        for (operation, is_looked_at, settles) in operations {
            match operation {
                Operation::Change(change) => {
                    let change = plain(*change, false, false);
                    kept.touch(&model, &change);
                    model.apply(change);
                }
                Operation::Connect(bits) => installed.set_busy((0..16).filter(|bit| bits & 1 << bit != 0).collect()),
                Operation::Kill(_) => kept.forget(),
            }
            if !is_looked_at {
                continue;
            }
            kept.resolve(&model, &place, &Conditions::default());
            let differing = kept.take_differing();
            carry_out(&mut installed, kept.desired(), &differing, most, settles).map_err(TestCaseError::fail)?;
            let rest = plan(kept.desired(), &installed, &ROOMY, &place.cluster, true);
            let changes = |step: &&Step| matches!(step, Step::PutFrontend(..) | Step::DropFrontend(_) | Step::PutService(..));
            prop_assert_eq!(rest.steps.iter().find(changes), None);
            settled = kept.desired().clone();
        }
        installed.set_busy([].into());
        for _ in 0..3 {
            carry_out(&mut installed, &settled, &Differing::default(), most, true).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(plan(&settled, &installed, &ROOMY, &place.cluster, true), Plan::default());
    }
}

fn carry_out(
    installed: &mut Installed,
    desired: &Desired,
    differing: &Differing,
    most: usize,
    settles: bool,
) -> Result<(), String> {
    loop {
        let scope = Scope { differing: differing.frontends(), most, settles };
        let plan = plan_within(&scope, desired, installed, &ROOMY, &cluster(0), true);
        for step in &plan.steps {
            installed.check(step, &ROOMY).map_err(|reason| format!("{step:?}: {reason}"))?;
            installed.apply(step);
        }
        if !plan.left {
            return Ok(());
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
