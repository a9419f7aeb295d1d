//! Clients of API servers: the own cluster's and the peers'.

use anyhow::Context;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Bytes;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{
    error::Error,
    path::Path,
    pin::Pin,
    task::{self, ready},
    time::Duration,
};
use tower::util::MapResponseLayer;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection may be silent: on a watch that is well a bookmark comes every minute.
const SILENCE: Duration = Duration::from_secs(90);
/// Bytes of a line of an answer at most. A list comes in pages of 200 objects, few of which are larger than some kilobytes.
const LONGEST: usize = 64 << 20;

/// A client of the API server that a kubeconfig's current context names; without one, of the cluster that this pod is in.
///
/// # Errors
///
/// The file can't be read or used, or this is no pod. Whether the server answers shows later.
pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    match kubeconfig {
        Some(file) => {
            let context = || format!("use kubeconfig {}", file.display());
            let read = Kubeconfig::read_from(file).with_context(context)?;
            connect_as(read).await.with_context(context)
        }
        None => client(
            Config::incluster()
                .context("find the API server: this is no pod with a service account (--kubeconfig names another)")?,
        ),
    }
}

/// A client of the API server that the kubeconfig's current context names.
///
/// # Errors
///
/// It can't be used. Whether the server answers shows later.
pub async fn connect_as(kubeconfig: Kubeconfig) -> anyhow::Result<Client> {
    client(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn client(mut config: Config) -> anyhow::Result<Client> {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // When to try again is decided by who asks, for all watches together.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).context("make a client of the API server")?;
    Ok(builder.with_layer(&MapResponseLayer::new(|response: Response<_>| response.map(Bounded::new))).build())
}

/// An answer of which no line is longer than [`LONGEST`]: a list is one line, and each event of a watch.
///
/// A server that sends on and on would otherwise fill the memory of who asks, and take what others know along.
struct Bounded<B> {
    answer: B,
    /// What a line may be long.
    longest: usize,
    /// Bytes since the last line ended.
    line: usize,
}

impl<B> Bounded<B> {
    fn new(answer: B) -> Self {
        Self::up_to(LONGEST, answer)
    }

    fn up_to(longest: usize, answer: B) -> Self {
        Self { answer, longest, line: 0 }
    }

    /// Whether the line that goes on after `data` is still short enough.
    fn count(&mut self, data: &[u8]) -> bool {
        let mut ends = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
        let longest = match (ends.next(), data.iter().rposition(|byte| *byte == b'\n')) {
            (Some(first), Some(last)) => {
                let longest = self.line + first;
                self.line = data.len() - last - 1;
                // What lies between is shorter than what came at once.
                longest.max(self.line)
            }
            _ => {
                self.line += data.len();
                self.line
            }
        };
        longest <= self.longest
    }
}

impl<B> Body for Bounded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.answer).poll_frame(context));
        task::Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let is_short = frame.data_ref().is_none_or(|data| self.count(data));
                Some(if is_short { Ok(frame) } else { Err("the answer is larger than any should be".into()) })
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_be_long_and_its_lines_may_not() {
        let chunk = |end: &[u8]| [&[b'x'; 4][..], end].concat();
        let mut events = Bounded::up_to(16, ());
        assert!((0..100).all(|_| events.count(&chunk(b"\n"))), "event by event");
        let mut list = Bounded::up_to(16, ());
        assert_eq!((0..6).map(|_| list.count(&chunk(b""))).collect::<Vec<_>>(), [true, true, true, true, false, false]);
        let mut late = Bounded::up_to(16, ());
        assert!(
            (0..4).all(|_| late.count(&chunk(b""))) && !late.count(b"xx\n"),
            "a line that is too long when it ends"
        );
    }
}
