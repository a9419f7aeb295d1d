//! Label selectors for the slices of named Services.

use super::{news::PARTS, rounds::Names};
use std::collections::BTreeSet;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Room for names in one selector, in bytes as they stand in a URL. API servers and the proxies before them take 8 KiB or
/// more for the whole URL.
const ROOM: usize = 6 * 1024;
/// A comma in a URL.
const COMMA: usize = "%2C".len();

/// Selectors that together cover the slices of these Services, [`PARTS`] at most.
///
/// A selector knows no namespaces, so slices of other Services of the same names come along and have to be left out. Names
/// that find no room in so many selectors are not listed at all: then one selector covers every Service's slices.
pub(super) fn selectors(services: &Names) -> Vec<String> {
    let names: BTreeSet<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let mut parts: Vec<Vec<&str>> = Vec::new();
    let mut room = 0;
    for name in names {
        if room < name.len() + COMMA {
            parts.push(Vec::new());
            room = ROOM;
        }
        room -= name.len() + COMMA;
        parts.last_mut().expect("the first name finds no room").push(name);
    }
    if parts.len() > usize::from(PARTS) {
        return vec![SERVICE_NAME.to_owned()];
    }
    parts.iter().map(|names| format!("{SERVICE_NAME} in ({})", names.join(","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use std::sync::Arc;

    #[test]
    fn one_selector_names_every_service_once() {
        let services = [("shop", "web"), ("bank", "web"), ("shop", "api")];
        assert_eq!(selectors(&names(services)), ["kubernetes.io/service-name in (api,web)"]);
        assert_eq!(selectors(&names([("", ""); 0])), [""; 0]);
    }

    #[test]
    fn many_names_are_split_and_very_many_are_not_listed() {
        let services = |n: usize| names((0..n).map(|i| ("shop", format!("service-with-a-long-name-{i:05}"))));
        for (count, parts) in [(100, 1), (186, 1), (187, 2), (744, 4)] {
            let selectors = selectors(&services(count));
            assert_eq!(selectors.len(), parts, "{count}");
            assert!(selectors.iter().all(|selector| selector.replace(',', "%2C").len() < ROOM + 100));
            let listed =
                selectors.iter().flat_map(|it| it.split([',', '(', ')'])).filter(|it| it.starts_with("service-"));
            assert_eq!(listed.count(), count);
        }
        assert_eq!(selectors(&services(745)), ["kubernetes.io/service-name"]);
    }

    fn names<N: Into<String>>(services: impl IntoIterator<Item = (&'static str, N)>) -> Names {
        let name = |(namespace, name): (&str, N)| ObjectName { namespace: namespace.to_owned(), name: name.into() };
        Arc::new(services.into_iter().map(name).collect())
    }
}
