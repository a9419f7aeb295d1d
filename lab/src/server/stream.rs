//! Answers that go on: `/echo` gives a line for each line of the request, `/watch` one a second. Both end when the
//! server leaves; every other path gives one answer, `/large` one of a mebibyte.

use futures_util::{Stream, stream::unfold};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request,
    body::{Bytes, Frame, Incoming},
};
use std::{iter, time::Duration};
use tokio::{sync::watch, time::interval};

/// Asks for an answer to each line sent.
pub(crate) const ECHO: &str = "/echo";
/// Asks for an answer every [`WATCH_EVERY`].
pub(crate) const WATCH: &str = "/watch";
/// Asks for an answer of [`LARGE_BYTES`].
pub(crate) const LARGE: &str = "/large";
/// How long it is: the usual answer, and blanks.
pub(crate) const LARGE_BYTES: usize = 1 << 20;
/// The pace of `/watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// An answer's body.
pub(super) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What `request` gets, made of `answer`.
pub(super) fn body(request: Request<Incoming>, answer: Bytes, leaving: watch::Receiver<bool>) -> Body {
    let line: Bytes = answer.iter().copied().chain(iter::once(b'\n')).collect();
    match request.uri().path() {
        ECHO => StreamBody::new(echo(request.into_body(), line, leaving)).boxed_unsync(),
        WATCH => StreamBody::new(lines(line, leaving)).boxed_unsync(),
        LARGE => {
            let mut large = answer.to_vec();
            large.resize(LARGE_BYTES, b' ');
            Full::new(Bytes::from(large)).map_err(|never| match never {}).boxed_unsync()
        }
        _ => Full::new(answer).map_err(|never| match never {}).boxed_unsync(),
    }
}

/// As many lines as the request has, each as soon as it has come.
fn echo(
    request: Incoming,
    line: Bytes,
    leaving: watch::Receiver<bool>,
) -> impl Stream<Item = Result<Frame<Bytes>, hyper::Error>> {
    unfold((request, line, leaving), async |(mut request, line, mut leaving)| {
        let frame = tokio::select! {
            frame = request.frame() => frame?,
            _ = leaving.wait_for(|leaving| *leaving) => return None,
        };
        let answer = frame.map(|frame| {
            let count = frame.data_ref().map_or(0, |data| data.iter().filter(|&&byte| byte == b'\n').count());
            Frame::data(Bytes::from(line.repeat(count)))
        });
        Some((answer, (request, line, leaving)))
    })
}

fn lines(line: Bytes, leaving: watch::Receiver<bool>) -> impl Stream<Item = Result<Frame<Bytes>, hyper::Error>> {
    unfold((interval(WATCH_EVERY), line, leaving), async |(mut pace, line, mut leaving)| {
        tokio::select! {
            _ = pace.tick() => {}
            _ = leaving.wait_for(|leaving| *leaving) => return None,
        }
        Some((Ok(Frame::data(line.clone())), (pace, line, leaving)))
    })
}
