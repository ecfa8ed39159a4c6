//! The bridge of a pod: brought by an init container, the first process of the server's own container.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use harness::{Bridge, PATIENCE, TOKEN, fixture, is_ready, kill, launch, lives, marked};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use mcp_hub_dataplane_api::launch::{ChildTransport, Drain, LAUNCH_ENV, LaunchSpec, Lifecycle, SECRETS_ENV};
use mcp_hub_dataplane_api::status::Phase;
use rustix::process::Signal;
use serde_json::{Value, json};

const BRIDGE: &str = env!("CARGO_BIN_EXE_mcp-bridge");

/// A launch specification as a cluster's operator writes it.
fn pod(args: &[&str]) -> LaunchSpec {
    let mut spec = launch(args);
    spec.child.working_dir = String::new();
    spec.child.inherit_env = true;
    spec.child.env.clear();
    spec
}

/// A container that differs from this machine in nothing.
fn plain() -> Command {
    // The shell replaces itself.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--");
    command
}

fn bridge(args: &[&str]) -> Output {
    Command::new(BRIDGE).args(args).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_installed_bridge_is_whole_and_executable_and_all_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mcp-bridge");
    for round in ["new", "over the one of an earlier start"] {
        let install = Command::new("/bin/sh")
            .args(["-c", r#"umask 077; exec "$0" install "$1""#, BRIDGE])
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(install.status.success(), "{round}: {}", said(&install));
        assert_eq!(std::fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755, "{round}");
        assert!(std::fs::read(&program).unwrap() == std::fs::read(BRIDGE).unwrap(), "{round}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{round}");
    }
}

#[test]
fn new_volumes_are_opened_for_every_user_and_what_is_no_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let volumes = ["a", "b"].map(|name| folder.path().join(name));
    for volume in &volumes {
        std::fs::create_dir(volume).unwrap();
    }
    let install = || {
        let mut install = Command::new(BRIDGE);
        install.arg("install").arg(folder.path()).args(&volumes).env_clear();
        install
    };
    let done = install().output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    for volume in &volumes {
        assert_eq!(std::fs::metadata(volume).unwrap().permissions().mode() & 0o7777, 0o1777);
    }
    let missing = install().arg("/no/such/volume").output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).contains("/no/such/volume is no folder"), "{}", said(&missing));
}

#[test]
fn an_installation_that_fails_says_where_and_leaves_nothing() {
    let missing = bridge(&["install", "/no/such/folder"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).contains("/no/such/folder is no folder; mount the volume"), "{}", said(&missing));

    let full = bridge(&["install", "/proc/self"]);
    assert_eq!(full.status.code(), Some(1));
    assert!(said(&full).contains("could not write /proc/self/.mcp-bridge.new: "), "{}", said(&full));

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("mcp-bridge/in the way")).unwrap();
    let taken = bridge(&["install", folder.path().to_str().unwrap()]);
    assert_eq!(taken.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_pod_without_a_launch_specification_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let without = bridge(&["pod", run.to_str().unwrap()]);
    assert_eq!(without.status.code(), Some(1));
    assert!(said(&without).contains("MCP_BRIDGE_LAUNCH is not set"), "{}", said(&without));

    let broken = Command::new(BRIDGE).arg("pod").arg(&run).env(LAUNCH_ENV, r#"{"owner": 7}"#).output().unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(said(&broken).contains("MCP_BRIDGE_LAUNCH is no launch specification: "), "{}", said(&broken));

    for wrong in [&["pod"][..], &["install"], &["pod", "a", "b"], &[]] {
        assert_eq!(bridge(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn the_server_gets_the_environment_of_image_and_pod_and_not_what_the_bridge_is_told() {
    let mut spec = pod(&["stdio", "--era", "legacy"]);
    spec.child.env.insert("LEVEL".to_owned(), "$(HOME) costs $$".to_owned());
    let env = [("PATH", "/usr/bin:/bin"), ("TOKEN", "from a secret"), ("LEVEL", "of the image")];
    let bridge = Bridge::in_pod(spec, plain(), &env).await;
    bridge.until(is_ready).await;
    let session = bridge.session("test").await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "from a secret");
    assert_eq!(session.text("env", json!({"name": "LEVEL"})).await, "$(HOME) costs $$");
    for ours in [LAUNCH_ENV, "MCP_BRIDGE_EXEC"] {
        assert_eq!(session.call("env", json!({"name": ours})).await["result"]["isError"], true, "{ours}");
    }
    let (_, status) = bridge.get("/status", Some(TOKEN)).await;
    assert!(!status.contains("from a secret"), "{status}");
    // The server could use the bridge's control itself, so there is none.
    let mut files: Vec<_> = std::fs::read_dir(bridge.folder.path().join("run")).unwrap().flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    assert_eq!(files.iter().map(|file| file.file_name()).collect::<Vec<_>>(), ["bridge.json", "era", "lock"]);
}

#[tokio::test]
async fn secrets_that_are_files_reach_the_server_as_variables() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("TOKEN"), "from a file\n").unwrap();
    let mut spec = pod(&["stdio", "--era", "legacy"]);
    spec.child.secret_env = vec!["TOKEN".to_owned()];
    let place = folder.path().to_str().unwrap();
    let bridge = Bridge::in_pod(spec.clone(), plain(), &[(SECRETS_ENV, place)]).await;
    bridge.until(is_ready).await;
    let session = bridge.session("test").await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "from a file");
    assert_eq!(session.call("env", json!({"name": SECRETS_ENV})).await["result"]["isError"], true);

    spec.child.secret_env = vec!["OTHER".to_owned()];
    let launch = serde_json::to_string(&spec).unwrap();
    let run = folder.path().join("run");
    let ended =
        Command::new(BRIDGE).arg("pod").arg(run).env(LAUNCH_ENV, launch).env(SECRETS_ENV, place).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let problem = format!("the secret OTHER is not in {place}, which MCP_BRIDGE_SECRETS names: ");
    assert!(said(&ended).contains(&problem), "{}", said(&ended));
}

#[tokio::test]
async fn a_program_is_found_as_a_container_finds_it() {
    let fixture = fixture();
    let (folder, name) = (fixture.parent().unwrap(), fixture.file_name().unwrap().to_str().unwrap());
    let path = format!("/no/such/folder:{}:/usr/bin", folder.display());
    for (program, working_dir) in [
        (name.to_owned(), String::new()),
        (format!("./{name}"), folder.to_string_lossy().into_owned()),
        (format!("{}/{name}", folder.file_name().unwrap().to_str().unwrap()), format!("{}/..", folder.display())),
    ] {
        let mut spec = pod(&["stdio"]);
        spec.child.program = program;
        spec.child.working_dir = working_dir;
        let bridge = Bridge::in_pod(spec, plain(), &[("PATH", &path)]).await;
        bridge.until(is_ready).await;
    }

    let mut spec = pod(&["stdio"]);
    spec.child.program = "no-such-program".to_owned();
    let bridge = Bridge::in_pod(spec, plain(), &[("PATH", "/usr/bin:/bin")]).await;
    bridge.until_logged("could not start no-such-program: no program of that name in PATH (/usr/bin:/bin)").await;

    // What a shell calls "not found", although it is there.
    let script = tempfile::NamedTempFile::with_suffix(".js").unwrap().into_temp_path();
    std::fs::write(&script, "#!/no/such/node\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = pod(&[]);
    spec.child.program = script.to_string_lossy().into_owned();
    let bridge = Bridge::in_pod(spec, plain(), &[]).await;
    bridge.until_logged("it is there, but not the loader or interpreter that it needs").await;
}

#[tokio::test]
async fn what_the_server_says_is_the_containers_log() {
    let mut spec = pod(&["stdio", "--exit-code", "3"]);
    spec.era = mcp_hub_dataplane_api::launch::EraChoice::Legacy;
    let mut bridge = Bridge::in_pod(spec, plain(), &[]).await;
    let status = bridge.until(|status| status.restarts > 0 && !status.stderr_tail.is_empty()).await;
    assert_eq!(status.stderr_tail.last().map(String::as_str), Some("giving up"));
    bridge.until_logged("mcp-bridge: ").await;
    let log = bridge.log();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..3], ["reading the configuration", "the configuration is broken", "giving up"], "{log}");
    assert!(lines[3].starts_with("mcp-bridge: ") && lines[3].ends_with("(the server exited with code 3)"), "{log}");
    kill(bridge.pid(), Signal::TERM);
    assert!(bridge.wait().await.success());

    // A great deal, of which nothing is lost, and a last line without an end.
    let mut spec = pod(&[]);
    spec.child.program = "/bin/sh".to_owned();
    spec.child.args =
        ["-c", "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; printf last >&2; read x"]
            .map(str::to_owned)
            .to_vec();
    let mut bridge = Bridge::in_pod(spec, plain(), &[]).await;
    bridge.until_logged("line 2999\n").await;
    kill(bridge.pid(), Signal::TERM);
    assert!(bridge.wait().await.success());
    let log = bridge.log();
    let first_run: Vec<&str> = log.lines().take(3000).collect();
    assert_eq!(first_run, (0..3000).map(|i| format!("line {i}")).collect::<Vec<_>>());
    assert!(log.lines().any(|line| line == "last"), "{}", &log[log.len() - 200..]);
}

#[tokio::test]
async fn readiness_is_a_handshake_and_health_is_the_bridge_itself() {
    let mut spec = pod(&["stdio", "--slow-start", "1500"]);
    spec.lifecycle = Lifecycle::OnDemand { idle_timeout_ms: 300 };
    let bridge = Bridge::in_pod(spec, plain(), &[]).await;
    assert_eq!(bridge.get("/readyz", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bridge.get("/healthz", None).await.0, StatusCode::OK);
    bridge.until(|status| status.phase == Phase::Asleep).await;
    assert_eq!(bridge.get("/readyz", None).await.0, StatusCode::OK);
    for token in [None, Some("another")] {
        assert_eq!(bridge.get("/status", token).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(bridge.get("/status", Some(TOKEN)).await.0, StatusCode::OK);
    for control in ["/restart", "/stop"] {
        assert_eq!(bridge.control(Method::POST, control, Value::Null).await, StatusCode::NOT_FOUND, "{control}");
    }
}

#[tokio::test]
async fn a_containers_server_waits_for_its_secrets_from_whoever_has_the_token() {
    let mut spec = pod(&["stdio", "--era", "legacy"]);
    spec.child.secret_env = vec!["TOKEN".to_owned()];
    let bridge = Bridge::in_pod(spec, plain(), &[]).await;
    bridge.until(|status| matches!(&status.phase, Phase::WaitingForSecrets { missing } if missing == &["TOKEN"])).await;
    let push = |token: Option<&str>| {
        let mut request = Request::builder().method(Method::PUT).uri("/secrets").header("host", "bridge");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::from(json!({"TOKEN": "s3cr3t"}).to_string())).unwrap()
    };
    for token in [None, Some("another")] {
        assert_eq!(bridge.http(push(token)).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(bridge.get("/events", None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(bridge.http(push(Some(TOKEN))).await.status(), StatusCode::NO_CONTENT);
    bridge.until(is_ready).await;
    let session = bridge.session("one").await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "s3cr3t");
}

#[tokio::test]
async fn a_pod_that_is_stopped_finishes_its_calls() {
    let mut spec = pod(&["stdio", "--era", "legacy"]);
    spec.drain = Drain { accept_ms: 1500, finish_ms: 30_000 };
    let mut bridge = Bridge::in_pod(spec, plain(), &[("PATH", "/usr/bin:/bin")]).await;
    let child = bridge.child_pid().await;
    let session = bridge.session("test").await;
    let grandchild: u32 = session.text("spawn_grandchild", json!({})).await.parse().unwrap();
    let mut stream = session.stream().await;
    let (long, ()) = tokio::join!(session.text("sleep", json!({"ms": 4000})), async {
        bridge.until(|status| status.activity.calls_in_flight == 1).await;
        kill(bridge.pid(), Signal::TERM);
        // Nobody new is sent here, but who comes all the same is served.
        let started = Instant::now();
        while bridge.get("/readyz", None).await.0 == StatusCode::OK {
            assert!(started.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                             "params": {"name": "echo", "arguments": {"text": "late"}}});
        let answer = session.post(&message).await;
        assert_eq!(answer.headers()["connection"], "close");
        assert_eq!(harness::text_of(&harness::last(answer).await), "late");
        // Then nobody is, and streams end; the call goes on.
        while stream.next().await.is_some() {}
        let started = Instant::now();
        while tokio::net::TcpStream::connect(bridge.spec.listen).await.is_ok() {
            assert!(started.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(lives(child));
    });
    assert_eq!(long, "awake");
    assert!(bridge.wait().await.success());
    assert!(!lives(child) && !lives(grandchild));
    assert_eq!(marked(&bridge.spec.owner.id), Vec::<u32>::new());
}

#[tokio::test]
async fn an_http_server_finishes_its_calls_too_and_an_endless_one_does_not_hold_the_pod() {
    let port = mcp_hub_test_port::free_port().unwrap();
    let mut spec = pod(&["http", "--era", "legacy", "--port", &port.to_string()]);
    spec.transport = ChildTransport::StreamableHttp { port, path: "/mcp".to_owned() };
    spec.drain = Drain { accept_ms: 1, finish_ms: 1500 };
    for (call_ms, is_answered) in [(800, true), (600_000, false)] {
        let mut bridge = Bridge::in_pod(spec.clone(), plain(), &[]).await;
        bridge.until(is_ready).await;
        let session = bridge.session("test").await;
        let mut stream = session.stream().await;
        let (answer, ()) = tokio::join!(session.call("sleep", json!({"ms": call_ms})), async {
            bridge.until(|status| status.activity.calls_in_flight == 1).await;
            kill(bridge.pid(), Signal::TERM);
            while stream.next().await.is_some() {}
        });
        match is_answered {
            true => assert_eq!(harness::text_of(&answer), "awake"),
            false => assert_eq!(answer["error"]["code"], mcp_hub_mcp::error::SERVER_GONE, "{answer}"),
        }
        assert!(bridge.wait().await.success());
    }
}

#[tokio::test]
async fn a_container_that_starts_again_finds_its_folder_as_it_was() {
    let mut bridge = Bridge::in_pod(pod(&["stdio"]), plain(), &[]).await;
    bridge.until(is_ready).await;
    kill(bridge.pid(), Signal::KILL);
    bridge.wait().await;
    let folder = std::mem::replace(&mut bridge.folder, tempfile::tempdir().unwrap());
    let next = Bridge::in_pod_with(folder, bridge.spec.clone(), plain(), &[]).await;
    next.until(is_ready).await;
    let second = Command::new(BRIDGE).arg("pod").arg(next.folder.path().join("run")).output().unwrap();
    assert_eq!(second.status.code(), Some(3), "{}", said(&second));
}

/// Namespaces and an unprivileged user with a read-only root: a container as the restricted pod security standard wants
/// it, with the bridge as its first process. `None` where the machine does not let the tests make one.
fn container(run: &Path, script: &str) -> Option<Command> {
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "/bin/sh", "-ec"]);
        unshare
    };
    if !unshare().arg("mount -t tmpfs none /sys/fs/cgroup").output().is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut container = unshare();
    container.arg(format!(
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin; mount --bind {run} {run}; mount -o remount,bind,ro /; {script} \
         exec setpriv --reuid 4242 --regid 4242 --clear-groups --no-new-privs --bounding-set=-all \"$0\" \"$@\"",
        run = run.display(),
    ));
    Some(container)
}

/// A folder as a volume that every user may write to.
fn volume() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    open(folder.path());
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    open(&run);
    folder
}

#[tokio::test]
async fn a_first_process_without_rights_serves_from_a_read_only_root_and_takes_a_kill_for_a_lack_of_memory() {
    let folder = volume();
    let run = folder.path().join("run");
    let checks = "mount -t tmpfs none /sys/fs/cgroup; if touch /proof 2>/dev/null; then exit 9; fi;";
    let Some(container) = container(&run, checks) else {
        return eprintln!("skipped: no namespaces for the tests here");
    };
    let mut spec = pod(&["stdio", "--era", "legacy"]);
    spec.drain = Drain { accept_ms: 10, finish_ms: 1000 };
    let mut bridge = Bridge::in_pod_with(folder, spec, container, &[("PATH", "/usr/bin:/bin")]).await;
    bridge.until(is_ready).await;
    let own = bridge.record();
    assert_eq!(own.pid, 1);
    let session = bridge.session("test").await;
    assert_eq!(session.text("echo", json!({"text": "hello"})).await, "hello");
    let [server] = marked(&bridge.spec.owner.id)[..] else { panic!("one server") };
    let owner = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    assert!(owner.contains("Uid:\t4242\t4242\t4242\t4242"), "{owner}");

    let first_to_go = std::fs::read_to_string(format!("/proc/{server}/oom_score_adj")).unwrap();
    assert_eq!(first_to_go.trim(), "1000");

    // Nobody else could have killed it, and nobody counts here.
    kill(server, Signal::KILL);
    let status = bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    assert!(status.last_exit.unwrap().out_of_memory);
    bridge.until_logged("mcp-bridge: the server was killed, most likely because memory ran out").await;

    let children = format!("/proc/{pid}/task/{pid}/children", pid = bridge.pid());
    let first: u32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill(first, Signal::TERM);
    assert!(bridge.wait().await.success());
    assert_eq!(marked(&bridge.spec.owner.id), Vec::<u32>::new());
}

/// A control group with a limit of memory, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where the machine does not let the tests make one.
    fn limited(bytes: u64) -> Option<Self> {
        let name = format!("mcp-hub-test-{}", std::process::id());
        let limits = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        limits.iter().find_map(|(hierarchy, limit)| {
            let path = Path::new(hierarchy).join(&name);
            std::fs::create_dir(&path).ok()?;
            let group = Self(path);
            std::fs::write(group.0.join(limit), bytes.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}

#[tokio::test]
async fn a_server_that_the_kernel_ended_for_its_memory_is_told_from_one_that_was_killed() {
    let Some(group) = Group::limited(64 << 20) else {
        return eprintln!("skipped: no control groups for the tests here");
    };
    for (script, is_out_of_memory) in [("exec tail /dev/zero", true), ("kill -KILL $$", false)] {
        let mut container = Command::new("/bin/sh");
        container.args(["-ec", &format!(r#"echo $$ > {}/cgroup.procs; exec "$0" "$@""#, group.0.display())]);
        let mut spec = pod(&[]);
        spec.child.program = "/bin/sh".to_owned();
        spec.child.args = ["-c", script].map(str::to_owned).to_vec();
        let mut bridge = Bridge::in_pod(spec, container, &[("PATH", "/usr/bin:/bin")]).await;
        let exit = bridge.until(|status| status.last_exit.is_some()).await.last_exit.unwrap();
        assert_eq!((exit.signal, exit.out_of_memory), (Some(9), is_out_of_memory), "{script}\n{}", bridge.log());
        let word = if is_out_of_memory { "because memory ran out" } else { "ended by signal 9" };
        bridge.until_logged(word).await;
        kill(bridge.pid(), Signal::TERM);
        assert!(bridge.wait().await.success());
    }
}
