//! HTTP/1.1. A session that is used once is an application that opens a connection for each request.

use super::{Dial, Reply, Session, Task, answer};
use crate::server::stream::{LARGE, LARGE_BYTES};
use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::HOST,
};
use hyper_util::rt::TokioIo;

/// A connection that is kept, and opened anew once it is broken.
#[derive(Default)]
pub(super) struct KeepAlive {
    open: Option<Open>,
    /// Whether it asks for large answers.
    large: bool,
}

struct Open {
    sender: SendRequest<Empty<Bytes>>,
    other_peer: bool,
    /// Who has answered.
    pod: Option<String>,
    _connection: Task,
}

impl KeepAlive {
    /// One that asks for large answers.
    pub(super) fn large() -> Self {
        Self { large: true, ..Self::default() }
    }
}

impl Session for KeepAlive {
    async fn call(&mut self, dial: &mut Dial) -> Result<Reply> {
        let host = dial.target.to_string();
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::new(dial).await?),
        };
        let path = if self.large { LARGE } else { "/" };
        let request = Request::get(path).header(HOST, host).body(Empty::new())?;
        let response = open.sender.send_request(request).await.context("ask")?;
        let status = response.status();
        ensure!(status.is_success(), "answered {status}");
        let body = response.into_body().collect().await.context("read the answer")?.to_bytes();
        ensure!(!self.large || body.len() == LARGE_BYTES, "an answer of {} bytes", body.len());
        let answer = answer(&body)?;
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
    async fn new(dial: &mut Dial) -> Result<Self> {
        let (stream, other_peer) = dial.tcp().await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
        // Its error comes out of the request that was under way.
        let connection = Task::start(async { drop(connection.await) });
        Ok(Self { sender, other_peer, pod: None, _connection: connection })
    }
}
