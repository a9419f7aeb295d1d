//! The MCS API: a ServiceExport of the same name.

use crate::{
    mirror::{source::Reach, world::Cluster},
    model::ObjectName,
    sources::objects::barred,
};
use sha2::{Digest, Sha256};

/// Whether `name` is exported: a ServiceExport is there, and a Service that can be.
pub(super) fn is_exported(name: &ObjectName, cluster: &Cluster) -> bool {
    let service = cluster.services.get(name);
    let can_be = service.is_some_and(|service| service.reach != Reach::ExternalName && !service.is_derived);
    cluster.exports.contains_key(name) && can_be && !barred(name)
}

/// What the Service is called that a ServiceImport's address is taken from, as the reference controllers call it.
pub fn derived_name(import: &ObjectName) -> ObjectName {
    let digest = Sha256::digest(format!("{}/{}", import.namespace, import.name));
    let name = format!("derived-{}", base32(&digest).get(..10).expect("the text is ASCII and longer"));
    ObjectName { namespace: import.namespace.clone(), name }
}

/// Base 32 with the digits of RFC 4648's hex alphabet, lower case, whole groups only.
pub(in crate::mirror) fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let digits = bytes.as_chunks::<5>().0.iter().flat_map(|group| {
        let bits = group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        (0..8).rev().map(move |place| {
            let digit = usize::try_from(bits >> (5 * place) & 31).expect("five bits");
            char::from(DIGITS[digit])
        })
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_service_is_called_as_the_reference_controllers_call_it() {
        // sha256("foo/bar") begins with cc5d46bdb4 and so on; base32hex of that, as Go's encoding/base32 gives it.
        let name = ObjectName { namespace: "foo".to_owned(), name: "bar".to_owned() };
        let digest = Sha256::digest("foo/bar");
        assert_eq!(digest[..6], [0xcc, 0x5d, 0x46, 0xbd, 0xb4, 0x99]);
        assert_eq!(derived_name(&name).name, "derived-phekdfdkj4");
    }
}
