//! The kernel programs as they were built into this binary.

use anyhow::ensure;

/// `cargo xtask build-ebpf` made it; without that it is empty.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TOMBOLO_EBPF_OBJECT"));

/// The ELF object with programs and maps.
pub(super) fn object() -> anyhow::Result<&'static [u8]> {
    ensure!(
        !OBJECT.is_empty(),
        "this binary was built without its kernel programs: run `cargo xtask build-ebpf`, then build it again"
    );
    Ok(OBJECT)
}
