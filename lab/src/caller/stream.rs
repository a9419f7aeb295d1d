//! One long call on an HTTP/2 connection, as gRPC makes them: messages are lines.

use super::{Dial, Reply, Session, Task, answer};
use crate::server::stream::{ECHO, WATCH};
use anyhow::{Context, Result, ensure};
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request,
    body::{Bytes, Frame, Incoming},
    client::conn::http2::handshake,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::sync::mpsc;

/// A call that is made anew once it is broken.
pub(super) struct Stream {
    sends: bool,
    open: Option<Open>,
}

struct Open {
    messages: mpsc::Sender<Bytes>,
    answers: Incoming,
    /// What has come of the next line.
    line: Vec<u8>,
    other_peer: bool,
    /// Who has answered.
    pod: Option<String>,
    _connection: Task,
}

impl Stream {
    /// Each request is a message, the answer another.
    pub(super) fn sending() -> Self {
        Self { sends: true, open: None }
    }

    /// The server alone sends; a request is to wait for its next message.
    pub(super) fn waiting() -> Self {
        Self { sends: false, open: None }
    }
}

impl Session for Stream {
    async fn call(&mut self, dial: &mut Dial) -> Result<Reply> {
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::new(dial, if self.sends { ECHO } else { WATCH }).await?),
        };
        if self.sends {
            open.messages.send(Bytes::from_static(b"?\n")).await.context("send a message")?;
        }
        let line = open.next_line().await?;
        let answer = answer(&line)?;
        open.pod = Some(answer.pod.clone());
        Ok(Reply { answer, other_peer: open.other_peer })
    }

    fn pod(&self) -> Option<&str> {
        self.open.as_ref()?.pod.as_deref()
    }

    fn reset(&mut self) {
        self.open = None;
    }
}

impl Open {
    async fn new(dial: &mut Dial, path: &str) -> Result<Self> {
        let (stream, other_peer) = dial.tcp().await?;
        let (mut sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.context("begin HTTP/2")?;
        // Its error comes out of the call.
        let connection = Task::start(async { drop(connection.await) });
        let (messages, from_caller) = mpsc::channel::<Bytes>(1);
        let frames = unfold(from_caller, async |mut from_caller| {
            let message = from_caller.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(message)), from_caller))
        });
        let body: UnsyncBoxBody<Bytes, Infallible> = StreamBody::new(frames).boxed_unsync();
        let request = Request::post(format!("http://{}{path}", dial.target)).body(body)?;
        let response = sender.send_request(request).await.context("begin the call")?;
        let status = response.status();
        ensure!(status.is_success(), "answered {status}");
        let answers = response.into_body();
        Ok(Self { messages, answers, line: Vec::new(), other_peer, pod: None, _connection: connection })
    }

    /// The next line, without its end.
    async fn next_line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let rest = self.line.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.line, rest);
                line.truncate(end);
                return Ok(line);
            }
            let frame = self.answers.frame().await.context("the call was ended by the server")?;
            if let Ok(data) = frame.context("wait for a message")?.into_data() {
                self.line.extend_from_slice(&data);
            }
        }
    }
}
