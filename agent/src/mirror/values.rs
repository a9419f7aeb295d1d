//! Which values an API server takes: a peer is not trusted to have one that looks at them.
//!
//! One value that is refused has the whole object refused, and with it what other clusters have a part in. So what is copied from a
//! peer is looked at first, by the rules of Kubernetes' own validation, and left out where it would be refused.

use crate::sources::objects::names::{is_label, is_subdomain};
use std::collections::BTreeMap;

/// Bytes of annotations that are copied to one object: half of what one may have.
pub const MAX_COPIED: usize = 128 << 10;
/// The longest timeout of ClientIP affinity, in seconds.
pub const MAX_AFFINITY: i32 = 86_400;

/// Whether a label can be called so, or an `appProtocol`: an RFC 1123 subdomain, a slash, and a name; or the name alone.
pub fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// Whether an annotation can be called so.
pub fn is_annotation(text: &str) -> bool {
    is_qualified(&text.to_ascii_lowercase())
}

/// Whether a label can have this value, or a zone that hints name.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

/// Whether a port can be called so, if it is called anything.
pub fn is_port_name(text: &str) -> bool {
    text.is_empty() || is_label(text)
}

/// Whether an endpoint can have this host name.
pub fn is_host_name(text: &str) -> bool {
    is_label(text)
}

/// Whether a Service can be called so: as a label, and not beginning with a digit.
pub fn is_service_name(text: &str) -> bool {
    is_label(text) && !text.starts_with(|first: char| first.is_ascii_digit())
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Counts what is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left(pub u32);

impl Left {
    /// A value, if it can be one.
    pub fn keep<T>(&mut self, value: Option<T>, can_be: impl Fn(&T) -> bool) -> Option<T> {
        let is_left = value.as_ref().is_some_and(|value| !can_be(value));
        self.0 = self.0.saturating_add(is_left.into());
        value.filter(|_| !is_left)
    }

    /// Those that can be labels.
    pub fn labels(&mut self, given: BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.pairs(given, |name, value| is_qualified(name) && is_label_value(value))
    }

    /// Those that can be annotations.
    pub fn annotations(&mut self, given: BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.pairs(given, |name, _| is_annotation(name))
    }

    /// As many labels or annotations, in the order of their names, as can be copied.
    pub fn within_size(&mut self, given: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut room = MAX_COPIED;
        let mut kept = BTreeMap::new();
        for (name, value) in given {
            match room.checked_sub(name.len() + value.len()) {
                Some(left) => {
                    room = left;
                    kept.insert(name, value);
                }
                None => self.0 = self.0.saturating_add(1),
            }
        }
        kept
    }

    fn pairs(
        &mut self,
        mut given: BTreeMap<String, String>,
        can_be: impl Fn(&str, &str) -> bool,
    ) -> BTreeMap<String, String> {
        let before = given.len();
        given.retain(|name, value| can_be(name, value));
        self.0 = self.0.saturating_add(u32::try_from(before - given.len()).unwrap_or(u32::MAX));
        given
    }
}
