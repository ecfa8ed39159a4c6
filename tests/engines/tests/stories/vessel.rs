//! Vessel, whose service is started when a server is to run there. Vessel itself does not run here: a stand-in of its name
//! opens the socket of a Docker.

use std::os::unix::fs::PermissionsExt;

use mcp_hub_engine_tests::{Scene, until};
use mcp_hub_test_cluster::EngineKind;

use crate::example;

#[tokio::test]
async fn its_service_is_started_when_a_server_wants_it_and_again_when_it_has_ended() {
    let mut scene = Scene::up(EngineKind::Docker).await;
    let at = |name: &str| scene.folder.path().join(name);
    let (programs, runtime_dir, starts) = (at("bin"), at("run"), at("starts"));
    let socket = runtime_dir.join("vessel/docker.sock");
    std::fs::create_dir_all(&programs).unwrap();
    let program = programs.join("vessel");
    let write = |script: &str| {
        // Put there whole: one that is open for writing cannot be started.
        let draft = programs.join("draft");
        std::fs::write(&draft, script).unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&draft, &program).unwrap();
    };
    write("#!/bin/sh\necho starting >&2; echo 'no room for a machine' >&2; exit 3\n");
    let started = || std::fs::read_to_string(&starts).unwrap_or_default().lines().count();

    let mut hub = scene.hub(&scene.engine.address());
    hub.set_env("DOCKER_HOST", "unix:///nowhere.sock");
    hub.set_env("MCPHUB_RUNTIME", "vessel");
    hub.set_env("XDG_RUNTIME_DIR", runtime_dir.to_str().unwrap());
    hub.set_env("PATH", &format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
    hub.start();
    hub.write("servers.yaml", &example());
    hub.wait_server("units", "why there is no engine", |server| {
        server.to_string().contains("vessel compat (PATH): it ended (exit status: 3): no room for a machine")
    });
    write(&format!(
        "#!/bin/sh\n[ \"$*\" = compat ] || exit 64\necho started >> {starts}\nmkdir -p $XDG_RUNTIME_DIR/vessel\n\
         ln -sf {engine} $XDG_RUNTIME_DIR/vessel/docker.sock\n",
        starts = starts.display(),
        engine = scene.engine.socket().display(),
    ));
    let server = hub.wait_reason("units", "Ready");
    assert_eq!(server["status"]["runtime"], "vessel");
    assert_eq!(started(), 1);

    // Both end; the container's engine is back by itself, the service is not.
    std::fs::remove_file(&socket).unwrap();
    scene.engine.kill().unwrap();
    scene.engine.start().unwrap();
    until("the service was started again", async || (started() >= 2).then_some(())).await;
    hub.wait_reason("units", "Ready");
    let answer = hub.ok(&["call", "units/convert", "--arg", "value=1", "--arg", "from=km", "--arg", "to=m"]);
    assert_eq!(answer.trim(), "1 km = 1000 m");
    hub.ok(&["down", "--all"]);
}
