//! What the kernel's verifier goes through to accept the programs: bounded, so that no kernel comes near its limit of
//! a million instructions.

use crate::ground::Ground;
use tombolo::datapath::{EGRESS, HOOKS};

/// Instructions processed for one hook.
const MOST: u32 = 10_000;

#[test]
fn no_hook_costs_the_verifier_more_than_ten_thousand_instructions() {
    let Some(ground) = Ground::new() else { return };
    if ground.kernel.verified.is_empty() {
        println!("skipped: instructions the verifier processed: this kernel doesn't tell (Linux 5.16 does)");
        return;
    }
    for (hook, processed) in &ground.kernel.verified {
        println!("{hook:13}{processed:6}");
    }
    assert_eq!(ground.kernel.verified.len(), HOOKS.len() + 1, "and {EGRESS}");
    for (hook, processed) in &ground.kernel.verified {
        assert!(*processed <= MOST, "{hook}: {processed}");
    }
}
