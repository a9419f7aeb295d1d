//! Errors of the API, as people are told of them.

use super::news::Failure;
use kube::{core::Status, runtime::watcher};
use std::error::Error;

impl Failure {
    /// Why a watch of `resource` (plural, as RBAC names it) can't go on.
    pub(super) fn of_watch(error: &watcher::Error, resource: &str) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self::of(error, "list", resource),
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                Self::of(error, "watch", resource)
            }
            watcher::Error::WatchError(status) => Self::of_status(status, "watch", resource),
            watcher::Error::NoResourceVersion => Self::Refused(format!("{resource} can't be watched: {error}")),
        }
    }

    /// Why a request with this verb was of no use.
    pub(super) fn of(error: &kube::Error, verb: &str, resource: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status, verb, resource),
            kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => {
                Self::Unreachable(format!("the API server doesn't answer: {}", chain(error)))
            }
            kube::Error::Auth(_) => Self::Refused(format!("the credentials can't be used: {}", chain(error))),
            _ => Self::Refused(format!("{verb} {resource}: {}", chain(error))),
        }
    }

    fn of_status(status: &Status, verb: &str, resource: &str) -> Self {
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        match status.code {
            410 => Self::Expired,
            404 => Self::Absent,
            401 => Self::Refused(format!("the API server doesn't accept the agent's credentials (401 {message})")),
            403 => Self::Refused(format!("RBAC grants no {verb} on {resource} (403 {message})")),
            code @ (408 | 429 | 500..) => Self::Unreachable(format!("the API server can't serve: {code} {message}")),
            code => Self::Refused(format!("{verb} {resource}: {code} {message}")),
        }
    }

    /// Whether people are to be told: a list that is read again is nothing unusual, nor is a kind that isn't used.
    pub(super) fn is_problem(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Refused(_))
    }

    /// The reason in words.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::Refused(reason) => reason.clone(),
            Self::Expired => "what was asked for is too old".to_owned(),
            Self::Absent => "the API server has no such thing".to_owned(),
        }
    }
}

/// An error with its causes, each once: many repeat their cause.
pub(crate) fn chain(error: &dyn Error) -> String {
    // What kube's own word adds is that it is kube's.
    let mut text = error.to_string().trim_start_matches("ServiceError: ").to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named_by_its_verb() {
        let forbidden = status(403, "services is forbidden: User \"x\" cannot list resource \"services\"");
        let listed = watcher::Error::InitialListFailed(kube::Error::Api(forbidden.clone()));
        let Failure::Refused(reason) = Failure::of_watch(&listed, "services") else { panic!("not refused") };
        assert!(reason.starts_with("RBAC grants no list on services (403 services is forbidden"), "{reason}");
        let watched = watcher::Error::WatchStartFailed(kube::Error::Api(forbidden));
        assert!(Failure::of_watch(&watched, "services").reason().starts_with("RBAC grants no watch on services"));
    }

    #[test]
    fn what_an_answer_means_is_told_by_its_code() {
        let failure = |code| Failure::of(&kube::Error::Api(status(code, "text")), "list", "pods");
        assert_eq!(failure(410), Failure::Expired);
        assert_eq!(failure(404), Failure::Absent);
        for code in [400, 401, 403, 405, 422] {
            assert!(matches!(failure(code), Failure::Refused(_)), "{code}");
        }
        for code in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(failure(code), Failure::Unreachable(_)), "{code}");
        }
        let gone = watcher::Error::WatchError(status(410, "too old resource version"));
        assert_eq!(Failure::of_watch(&gone, "pods"), Failure::Expired);
    }

    #[test]
    fn a_connection_that_broke_is_no_refusal() {
        let broke = std::io::Error::other("connection reset by peer");
        let failure = Failure::of(&kube::Error::ReadEvents(broke), "watch", "pods");
        assert_eq!(
            failure,
            Failure::Unreachable(
                "the API server doesn't answer: Error reading events stream: connection reset by peer".to_owned()
            )
        );
    }

    fn status(code: u16, message: &str) -> Box<Status> {
        Box::new(Status {
            code,
            message: message.to_owned(),
            status: None,
            metadata: None,
            reason: String::new(),
            details: None,
        })
    }
}
