//! What a credential that is tried has told so far: of each object the last only, since that may take for ever.

use super::OBJECTS;
use crate::{
    mirror::watch::{News, Watched},
    model::ObjectName,
};
use std::collections::BTreeMap;

/// News, in the order in which they hold.
#[derive(Default)]
pub(super) struct Kept {
    news: BTreeMap<u64, (Watched, News)>,
    /// Where the last ones of each subject are.
    last: BTreeMap<(Watched, Subject), u64>,
    next: u64,
}

/// What news are about: newer ones of the same say all that older ones said.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Object(ObjectName),
    /// What there is at all.
    List,
    Version,
}

impl Kept {
    /// Takes news in; nothing of what a kind's objects aren't concerned by.
    pub(super) fn push(&mut self, watched: Watched, news: News) {
        let subject = match &news {
            News::Change(name, ..) => Subject::Object(name.clone()),
            News::Listed(_) | News::Absent => Subject::List,
            News::Version(_) => Subject::Version,
            News::Node(..) | News::Failed(_) | News::Watching | News::Minor(_) | News::Answers(_) => return,
        };
        self.next += 1;
        if let Some(older) = self.last.insert((watched, subject), self.next) {
            self.news.remove(&older);
        }
        self.news.insert(self.next, (watched, news));
    }

    /// Whether these are more than any peer should have.
    pub(super) fn is_too_much(&self) -> bool {
        self.news.len() > OBJECTS
    }

    /// All of them, in order.
    pub(super) fn into_news(self) -> Vec<(Option<Watched>, News)> {
        self.news.into_values().map(|(watched, news)| (Some(watched), news)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::{source::Origin, watch::removal};
    use std::{collections::BTreeSet, time::Duration};

    #[test]
    fn of_what_is_told_again_and_again_the_last_is_kept_and_lists_stay_in_their_place() {
        let mut kept = Kept::default();
        for round in 0..100 {
            kept.push(Watched::Services, change("a", round));
            kept.push(Watched::Services, change("b", round));
            kept.push(Watched::Services, News::Listed(BTreeSet::from([name("a"), name("b")])));
            kept.push(Watched::Services, News::Answers(Duration::ZERO));
        }
        // Made after the last list, which doesn't name it.
        kept.push(Watched::Services, change("c", 100));
        kept.push(Watched::Services, change("a", 101));
        let told: Vec<String> = kept.into_news().iter().map(|(_, news)| shown(news)).collect();
        assert_eq!(told, ["b 99", "listed 2", "c 100", "a 101"]);
    }

    fn shown(news: &News) -> String {
        match news {
            News::Change(name, version, _) => format!("{} {}", name.name, version.unwrap()),
            News::Listed(names) => format!("listed {}", names.len()),
            _ => "other".to_owned(),
        }
    }

    fn change(text: &str, version: u64) -> News {
        let origin = Origin::Link(crate::mirror::source::LinkName("east".to_owned()));
        let change = removal(Watched::Services, &origin, name(text)).unwrap();
        News::Change(name(text), Some(version), Box::new(change))
    }

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
    }
}
