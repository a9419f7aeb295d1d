//! The agent's socket: a line of JSON asks, a line of JSON answers. For root on the node only.

use crate::report::Question;
use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener as BlockingListener, UnixStream as BlockingStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// How long an agent may take to answer, and a client to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest question, in bytes.
const LONGEST: u64 = 4096;
/// Questions that are answered at the same time; further ones wait.
const AT_ONCE: usize = 16;
/// How long nobody new is taken on after one could not be.
const REST: Duration = Duration::from_secs(1);

/// A question and where its answer, a JSON document, goes.
pub type Asked = (Question, oneshot::Sender<String>);

/// The socket; removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: BlockingListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, in place of a socket that an agent before us left there.
    ///
    /// # Errors
    ///
    /// Another agent answers there, or something that isn't a socket lies there.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.with_context(|| format!("create {}", dir.display()))?;
        }
        make_room(path)?;
        let listener = BlockingListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        let socket = Self { listener, path: path.to_owned() };
        let only_root = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, only_root).with_context(|| format!("restrict {}", path.display()))?;
        socket.listener.set_nonblocking(true).context("make the agent's socket non-blocking")?;
        Ok(socket)
    }

    /// Hands on questions until nobody answers them any more.
    pub async fn serve(self, asked: mpsc::Sender<Asked>) -> anyhow::Result<()> {
        let listener = self.listener.try_clone().context("share the agent's socket with the runtime")?;
        let listener = UnixListener::from_std(listener).context("hand the agent's socket to the runtime")?;
        let mut answers = JoinSet::new();
        loop {
            tokio::select! {
                // Whoever says nothing keeps nobody else waiting, up to a number.
                accepted = listener.accept(), if answers.len() < AT_ONCE => match accepted {
                    Ok((stream, _)) => {
                        let asked = asked.clone();
                        answers.spawn(async move { timeout(PATIENCE, answer(stream, &asked)).await });
                    }
                    Err(error) => {
                        // Out of descriptors or memory for now: no reason to end the agent. It would be so at once again.
                        warn!(%error, "question not accepted");
                        sleep(REST).await;
                    }
                },
                Some(answered) = answers.join_next() => match answered.context("answer a question")? {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(error = format!("{error:#}"), "question not answered"),
                    Err(_) => warn!("question not answered in time"),
                },
                () = asked.closed() => return Ok(()),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "socket not removed");
        }
    }
}

/// Removes the socket of an agent that is gone.
fn make_room(path: &Path) -> anyhow::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.with_context(|| format!("look at {}", path.display()))?.file_type(),
    };
    ensure!(kind.is_socket(), "{} is there and no socket: name another place with --socket", path.display());
    match BlockingStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("remove the stale socket {}", path.display()))
        }
        Ok(_) => bail!("another agent answers at {}: stop it, or name another place with --socket", path.display()),
        Err(e) => Err(e).with_context(|| format!("find out who listens at {}", path.display())),
    }
}

async fn answer(stream: UnixStream, asked: &mpsc::Sender<Asked>) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LONGEST)).read_line(&mut line).await.context("read a question")?;
    let question = serde_json::from_str(&line).with_context(|| format!("understand the question {line:?}"))?;
    let (reply, answer) = oneshot::channel();
    asked.send((question, reply)).await.context("hand on the question")?;
    let mut answer = answer.await.context("wait for the answer")?;
    answer.push('\n');
    write.write_all(answer.as_bytes()).await.context("write the answer")
}

/// Asks the agent at `path`; none if there is no agent.
///
/// # Errors
///
/// There is one, and it doesn't answer, or only root may ask it.
pub fn ask<T: DeserializeOwned>(path: &Path, question: Question) -> anyhow::Result<Option<T>> {
    let mut stream = match BlockingStream::connect(path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(e).with_context(|| format!("ask the agent at {}, which takes root", path.display()));
        }
        Err(e) => return Err(e).with_context(|| format!("ask the agent at {}", path.display())),
    };
    stream.set_read_timeout(Some(PATIENCE)).context("limit the wait for the agent")?;
    stream.set_write_timeout(Some(PATIENCE)).context("limit the wait for the agent")?;
    let mut line = serde_json::to_string(&question).context("write the question")?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("ask the agent")?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            bail!("the agent at {} has not answered within {} s", path.display(), PATIENCE.as_secs())
        }
        read => read.with_context(|| format!("read what the agent at {} answers", path.display()))?,
    };
    ensure!(answer.ends_with('\n'), "the agent at {} ended in the middle of its answer", path.display());
    serde_json::from_str(&answer).context("understand the agent's answer: is it of another version?").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A socket whose questions are answered by `answer`, and what `work` brings meanwhile.
    fn with_agent<T: Send + 'static>(
        answer: fn(Question) -> Option<String>,
        work: impl FnOnce(PathBuf) -> T + Send + 'static,
    ) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let socket = Socket::bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let (sender, mut questions) = mpsc::channel::<Asked>(4);
            let at = path.clone();
            let worker = tokio::task::spawn_blocking(move || work(at));
            let answering = async {
                while let Some((question, reply)) = questions.recv().await {
                    if let Some(text) = answer(question) {
                        reply.send(text).unwrap();
                    }
                }
            };
            tokio::select! {
                result = worker => result.unwrap(),
                ended = socket.serve(sender) => panic!("{ended:?}"),
                () = answering => panic!("nobody asks any more"),
            }
        });
        assert!(!path.exists(), "the socket goes with the agent");
        result
    }

    #[test]
    fn an_answer_comes_back_to_who_asked() {
        let answer = |question| Some(serde_json::to_string(&question).unwrap());
        for asked in [Question::Status, Question::Services, Question::Backends] {
            let answered: Option<Question> = with_agent(answer, move |path| ask(&path, asked).unwrap());
            assert_eq!(answered, Some(asked));
        }
    }

    #[test]
    fn who_says_nothing_keeps_nobody_waiting() {
        let answer = |question| Some(serde_json::to_string(&question).unwrap());
        let took = with_agent(answer, |path| {
            let silent: Vec<_> = (0..8).map(|_| BlockingStream::connect(&path).unwrap()).collect();
            let start = std::time::Instant::now();
            ask::<Question>(&path, Question::Status).unwrap();
            drop(silent);
            start.elapsed()
        });
        assert!(took < PATIENCE / 2, "{took:?}");
    }

    #[test]
    fn nonsense_is_left_without_an_answer() {
        let read = with_agent(
            |_| None,
            |path| {
                let mut stream = BlockingStream::connect(&path).unwrap();
                stream.write_all(b"\"everything\"\n").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer
            },
        );
        assert_eq!(read, b"");
    }

    #[test]
    fn no_answer_is_an_error_and_no_agent_is_none() {
        let error = with_agent(|_| None, |path| ask::<Question>(&path, Question::Status).unwrap_err().to_string());
        assert!(error.contains("ended in the middle of its answer"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ask::<Question>(&folder.path().join("agent.sock"), Question::Status).unwrap(), None);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(BlockingListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.starts_with("another agent answers at "), "{error}");
        drop(socket);
        fs::write(&path, "mine").unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("is there and no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_question_without_an_end_is_not_read_for_ever() {
        let sent = with_agent(
            |_| None,
            |path| {
                let mut stream = BlockingStream::connect(&path).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let flood = vec![b'x'; 1 << 20];
                stream.write_all(&flood).is_ok()
            },
        );
        assert!(!sent, "the agent hangs up after {LONGEST} bytes");
    }
}
