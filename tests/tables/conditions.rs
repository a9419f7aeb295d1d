//! What health found out, as tiers and weights.

use crate::policy::{add_service, add_slice, summary_in};
use std::collections::{BTreeMap, BTreeSet};
use tombolo::{
    model::{ClusterName, Model, Order, Path},
    resolve::Conditions,
};

#[test]
fn over_a_path_that_is_down_endpoints_come_last() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "east", &["10.1.0.1"], |_| ());
    add_slice(&mut model, "b", "api", "east", &["192.0.2.1"], |slice| slice.path = Path::Gateway);
    add_slice(&mut model, "c", "api", "north", &["10.2.0.1"], |_| ());
    let east = ClusterName("east".into());
    let out = |path| Conditions { paths_out: BTreeSet::from([(east.clone(), path)]), ..Conditions::default() };
    assert_eq!(
        summary_in(&model, &out(Path::Pod)),
        ["east*1[192.0.2.1/gateway] north*1[10.2.0.1]", "east*1[10.1.0.1]"],
        "the gateway steps in"
    );
    assert_eq!(
        summary_in(&model, &out(Path::Gateway)),
        ["east*1[10.1.0.1] north*1[10.2.0.1]", "east*1[192.0.2.1/gateway]"]
    );
}

#[test]
fn a_cluster_that_comes_back_leaves_the_rest_of_its_share_to_the_others() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "east", &["10.1.0.1", "10.1.0.2"], |_| ());
    add_slice(&mut model, "b", "api", "north", &["10.2.0.1"], |_| ());
    let conditions = Conditions { ramps: BTreeMap::from([(ClusterName("east".into()), 25)]), ..Conditions::default() };
    assert_eq!(summary_in(&model, &conditions), ["east*50[10.1.0.1 10.1.0.2] north*100[10.2.0.1]"]);

    // First in an order: what it doesn't get yet goes to the next one.
    let service = model.services.values_mut().next().unwrap();
    service.traffic.order = Order::Clusters(vec![ClusterName("east".into())]);
    assert_eq!(
        summary_in(&model, &conditions),
        ["east*50[10.1.0.1 10.1.0.2] north*150[10.2.0.1]", "north*100[10.2.0.1]"]
    );
    // Alone and last: there is nobody else.
    model.slices.retain(|_, slice| slice.source_cluster == Some(ClusterName("east".into())));
    assert_eq!(summary_in(&model, &conditions), ["east*50[10.1.0.1 10.1.0.2]"]);
}
