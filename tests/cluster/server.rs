//! An API server with its etcd: processes of its own in a folder of its own.

use anyhow::{Context, ensure};
use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{Cluster, KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tombolo::mirror::links::credentials;

/// How long an API server may take to be ready: it takes some seconds of processor time on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where ports are taken, ten a server: below those that the kernel gives away, above those of `cargo xtask kube`.
const PORTS: std::ops::Range<u16> = 27_000..29_000;
const BLOCK: u16 = 10;

pub(crate) struct Server {
    folder: TempDir,
    programs: PathBuf,
    ports: Ports,
    etcd: Child,
    api: [Option<Child>; 2],
}

impl Server {
    /// Starts one; none, which is said, if its programs aren't there.
    pub(crate) async fn start() -> anyhow::Result<Option<Self>> {
        let programs = match env::var_os("TOMBOLO_KUBE_LOCAL") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(&env::var_os("HOME").context("$HOME")?).join(".cache/tombolo/kube-local"),
        };
        if !programs.join("kube-apiserver").exists() {
            println!("skipped: no kube-apiserver in {}: `cargo xtask kube up` builds it", programs.display());
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let ports = Ports::take()?;
        let port = ports.first;
        let key = folder.path().join("sa.key");
        let make = |arguments: &[&str]| -> anyhow::Result<()> {
            let made =
                Command::new("openssl").args(arguments).current_dir(folder.path()).output().context("openssl")?;
            ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
            Ok(())
        };
        make(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"])?;
        make(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
        ensure!(key.exists(), "openssl wrote no key");
        fs::write(folder.path().join("tokens"), "admin,admin,1,system:masters\nagent,agent,2\nnobody,nobody,3\n")?;
        let (clients, peers) = (format!("http://127.0.0.1:{}", port + 1), format!("http://127.0.0.1:{}", port + 2));
        let etcd = spawn(
            folder.path(),
            Command::new(programs.join("etcd")).args([
                "--name=test",
                "--data-dir=etcd",
                "--unsafe-no-fsync",
                "--log-level=warn",
                &format!("--listen-client-urls={clients}"),
                &format!("--advertise-client-urls={clients}"),
                &format!("--listen-peer-urls={peers}"),
                &format!("--initial-advertise-peer-urls={peers}"),
                &format!("--initial-cluster=test={peers}"),
            ]),
            "etcd",
        )?;
        let mut server = Self { folder, programs, ports, etcd, api: [None, None] };
        server.start_api(0).await?;
        Ok(Some(server))
    }

    /// Starts one of two API servers of the same etcd and waits until it is ready.
    pub(crate) async fn start_api(&mut self, which: usize) -> anyhow::Result<()> {
        let name = format!("kube-apiserver-{which}");
        let mut command = Command::new(self.programs.join("kube-apiserver"));
        command.args([
            &format!("--etcd-servers=http://127.0.0.1:{}", self.ports.first + 1),
            "--bind-address=127.0.0.1",
            &format!("--secure-port={}", self.api_port(which)),
            &format!("--cert-dir={name}"),
            "--advertise-address=203.0.113.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.99.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--token-auth-file=tokens",
            "--authorization-mode=RBAC",
            // No controllers run that would make service accounts.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        self.api[which] = Some(spawn(self.folder.path(), &mut command, &name)?);
        let client = self.client(which, "admin").await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match client.request_text(http::Request::get("/readyz").body(Vec::new())?).await {
                Ok(_) => return Ok(()),
                _ if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                other => {
                    let log = fs::read_to_string(self.folder.path().join(format!("{name}.log")))?;
                    let end = log.len().saturating_sub(2000);
                    anyhow::bail!("{name} is not ready: {other:?}: {}", &log[end..]);
                }
            }
        }
    }

    /// Kills an API server, which says goodbye to nobody.
    pub(crate) fn kill_api(&mut self, which: usize) -> anyhow::Result<()> {
        let mut api = self.api[which].take().context("it runs")?;
        api.kill()?;
        api.wait()?;
        Ok(())
    }

    /// A kubeconfig of a user: `admin`, `agent`, who may do what a test grants, or `nobody`.
    pub(crate) fn kubeconfig(&self, which: usize, user: &str) -> anyhow::Result<PathBuf> {
        let file = self.folder.path().join(format!("{user}-{which}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: test, user: {{token: {user}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.api_port(which)
        );
        fs::write(&file, text)?;
        Ok(file)
    }

    /// A kubeconfig that holds everything itself, of whoever has this token.
    pub(crate) fn kubeconfig_with(&self, which: usize, token: &str) -> anyhow::Result<String> {
        let authority = self.folder.path().join(format!("kube-apiserver-{which}/apiserver.crt"));
        let cluster = Cluster {
            server: Some(format!("https://127.0.0.1:{}", self.api_port(which))),
            certificate_authority: Some(authority.display().to_string()),
            ..Cluster::default()
        };
        credentials::kubeconfig("test", &cluster, None, token)
    }

    /// Applies objects as the administrator.
    pub(crate) fn apply(&self, text: &str) -> anyhow::Result<()> {
        let mut child = Command::new(self.programs.join("kubectl"))
            .args(["apply", "--server-side", "--field-manager=test", "-f", "-", "--kubeconfig"])
            .arg(self.kubeconfig(0, "admin")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        child.stdin.take().context("its input")?.write_all(text.as_bytes())?;
        let ended = child.wait_with_output()?;
        ensure!(ended.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    /// Applies a file of this repository.
    pub(crate) fn apply_file(&self, file: &str) -> anyhow::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        self.apply(&fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?).context(file.to_owned())
    }

    /// A token of a service account, which it makes if it isn't there.
    pub(crate) async fn token(&self, account: &str, seconds: i64) -> anyhow::Result<String> {
        let (namespace, name) = account.split_once('/').context("namespace/name")?;
        let admin = self.client(0, "admin").await?;
        self.apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: {namespace}}}}}"
        ))?;
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"expirationSeconds": seconds, "audiences": []}}))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(admin, namespace);
        let made = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        Ok(made.status.context("a token")?.token)
    }

    /// A client with a token.
    pub(crate) async fn client_with(&self, token: &str) -> anyhow::Result<Client> {
        let text = self.kubeconfig_with(0, token)?;
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    pub(crate) async fn client(&self, which: usize, user: &str) -> anyhow::Result<Client> {
        let read = Kubeconfig::read_from(self.kubeconfig(which, user)?)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Has etcd forget all history, so that no watch can go on from where it was.
    pub(crate) fn forget_history(&self) -> anyhow::Result<()> {
        let status = self.ask_etcd("/v3/maintenance/status", "{}")?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let revision = status["header"]["revision"].as_str().context("a revision")?;
        self.ask_etcd("/v3/kv/compaction", &format!("{{\"revision\": \"{revision}\", \"physical\": true}}"))?;
        Ok(())
    }

    fn ask_etcd(&self, path: &str, body: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.first + 1))?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("a head")?;
        ensure!(head.contains(" 200 "), "etcd: {answer}");
        Ok(body.to_owned())
    }

    fn api_port(&self, which: usize) -> u16 {
        self.ports.first + if which == 0 { 0 } else { 5 }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.api.iter_mut().flatten().chain([&mut self.etcd]) {
            let ended = child.kill().and_then(|()| child.wait());
            if let Err(error) = ended {
                println!("process {} not ended: {error}", child.id());
            }
        }
    }
}

/// Ports of one server.
struct Ports {
    first: u16,
    /// Bound to the last one, which nobody else uses: whoever looks for ports meanwhile passes these by.
    _taken: TcpListener,
}

impl Ports {
    /// Takes ten that are free. Other test programs may look for some at the same time.
    fn take() -> anyhow::Result<Self> {
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        for first in PORTS.step_by(BLOCK.into()) {
            let Ok(taken) = bind(first + BLOCK - 1) else { continue };
            if (first..first + BLOCK - 1).all(|port| bind(port).is_ok()) {
                return Ok(Self { first, _taken: taken });
            }
        }
        anyhow::bail!("no ten ports of {PORTS:?} are free")
    }
}

fn spawn(folder: &Path, command: &mut Command, name: &str) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join(format!("{name}.log")))?;
    command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {name}"))
}
