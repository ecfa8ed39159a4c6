//! A server reaches what its egress list names, and nothing beside.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bollard::query_parameters::{ListImagesOptions, ListNetworksOptions, ListVolumesOptions};
use mcp_hub_e2e::{Hub, text};
use mcp_hub_engine_tests::{Scene, until};
use mcp_hub_test_cluster::{EngineKind, NODE, Record};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::{fixture, inspected};

/// Stands for the internet: an address that is nobody's private one, of a host that a test's machine has itself.
const OUTSIDE: &str = "93.184.215.14";
const PORT: u16 = 8080;
const ALLOWED: &str = "api.example.com";

/// What the engine's machine has besides the engine: a web server at all its addresses, and a name server that takes down
/// what it is asked for. Both end with the test's thread.
struct Machine {
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Machine {
    async fn around(scene: &Scene) -> Self {
        // In the engine's network namespace, which is gone with the engine.
        for address in [format!("{OUTSIDE}/32"), "fd00:250::1/64".to_owned()] {
            let added = scene.engine.command("ip").args(["address", "add", &address, "dev", "node0"]).status();
            assert!(added.unwrap().success(), "{address}");
        }
        let web = TcpListener::bind(("0.0.0.0", PORT)).await.unwrap();
        tokio::spawn(serve(web));
        // A new address is not there at once: the kernel looks first whether somebody else has it.
        let web = until("the machine has its address", async || TcpListener::bind(("fd00:250::1", PORT)).await.ok());
        tokio::spawn(serve(web.await));
        let asked = Arc::<Mutex<BTreeSet<String>>>::default();
        let socket = UdpSocket::bind((NODE, 53)).await.unwrap();
        tokio::spawn(answer_names(socket, asked.clone()));
        Self { asked }
    }

    fn was_asked_for(&self, name: &str) -> bool {
        self.asked.lock().unwrap().contains(name)
    }
}

async fn serve(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = [0; 4096];
            // Who says nothing is gone.
            stream.read(&mut head).await.unwrap_or_default();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\noutside";
            stream.write_all(answer).await.unwrap_or_default();
        });
    }
}

/// Knows every name below `example.com`.
async fn answer_names(socket: UdpSocket, asked: Arc<Mutex<BTreeSet<String>>>) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        let question = &question[..length];
        let (mut at, mut labels) = (12, Vec::new());
        while let Some(&length) = question.get(at).filter(|length| **length > 0) {
            let end = at + 1 + usize::from(length);
            labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
            at = end;
        }
        let name = labels.join(".");
        let is_v4 = question.get(at + 1..at + 3) == Some(&[0, 1]);
        let known = name.ends_with("example.com");
        asked.lock().unwrap().insert(name);
        let answers = known && is_v4;
        let mut answer = question[..at + 5].to_vec();
        // An answer without recursion's refusal; of a name that is not known, that there is none.
        answer[2..12].copy_from_slice(&[0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, answers.into(), 0, 0, 0, 0]);
        if answers {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(OUTSIDE.parse::<std::net::Ipv4Addr>().unwrap().octets());
        }
        socket.send_to(&answer, from).await.unwrap();
    }
}

/// A server with this list; what is kept from it may be lost and not refused, so that a call ends by its time.
fn with_list(name: &str, list: Option<&[&str]>) -> String {
    let mut more = json!({"timeouts": {"call": "4s"}});
    if let Some(list) = list {
        more["permissions"] = json!({"network": {"egress": list}});
    }
    fixture(name, &more)
}

/// What a server's program gets for a URL, by the proxy that it was told of or directly.
async fn fetch(hub: &Hub, server: &str, url: &str, directly: bool) -> Result<String, String> {
    let (tool, url) = (format!("{server}/fetch"), format!("url={url}"));
    let directly = format!("directly={directly}");
    let mut command = tokio::process::Command::from(hub.command(&["call", &tool, "--arg", &url, "--arg", &directly]));
    // Not waited for by blocking: what answers the server runs on this thread.
    let output = command.output().await.unwrap();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{}{}", text(&output.stdout), text(&output.stderr))),
    }
}

async fn got(hub: &Hub, server: &str, url: &str) {
    let answer = fetch(hub, server, url, false).await;
    assert!(answer.as_ref().is_ok_and(|answer| answer.contains("outside")), "{server} {url}: {answer:?}");
}

/// The relay's own refusal.
async fn refused(hub: &Hub, server: &str, url: &str) {
    let answer = fetch(hub, server, url, false).await;
    assert!(answer.as_ref().is_ok_and(|answer| answer.contains(" 403 ")), "{server} {url}: {answer:?}");
}

/// Whether whoever is in the container's network reaches an address, with all rights that root has outside.
async fn reaches(shown: &Value, address: SocketAddr) -> bool {
    let mut curl = tokio::process::Command::new("nsenter");
    curl.arg(format!("--net=/proc/{}/ns/net", shown["State"]["Pid"]));
    curl.args(["curl", "--silent", "--noproxy", "*", "--max-time", "2", "--output", "/dev/null"]);
    // Any answer will do, also one that is no HTTP.
    let status = curl.args(["--http0.9", &format!("http://{address}/")]).status().await.unwrap();
    // Not in time, refused, no way there, or cut off.
    assert!(matches!(status.code(), Some(0 | 7 | 28 | 52 | 56)), "curl did not run: {status}");
    status.success()
}

/// What `ip` shows in the container's network.
async fn ip(shown: &Value, args: &[&str]) -> String {
    let mut ip = tokio::process::Command::new("nsenter");
    ip.arg(format!("--net=/proc/{}/ns/net", shown["State"]["Pid"])).arg("ip").args(args);
    let output = ip.output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn address_of(shown: &Value) -> String {
    let networks = shown["NetworkSettings"]["Networks"].as_object().unwrap();
    networks.values().next().unwrap()["IPAddress"].as_str().unwrap().to_owned()
}

/// The relays on the engine.
async fn relays(scene: &Scene) -> Vec<Value> {
    let mut relays = Vec::new();
    for line in scene.containers(Some("mcphub.io/role=relay".to_owned())).await {
        let name = line.split(' ').next().unwrap_or_default();
        if let Ok(found) = scene.api.inspect_container(name, None).await {
            relays.push(serde_json::to_value(found).unwrap());
        }
    }
    relays
}

async fn a_list_opens_what_it_names_and_nothing_beside(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    scene.load("fixture").await;
    let machine = Machine::around(&scene).await;
    let mut hub = scene.hub(&scene.engine.address());
    let (by_name, by_address) = (format!("{ALLOWED}:{PORT}"), format!("{NODE}:{PORT}"));
    let servers = [
        with_list("named", Some(&[&by_name])),
        with_list("addressed", Some(&[&by_address])),
        with_list("nothing", Some(&[])),
        with_list("free", None),
    ];
    hub.write("servers.yaml", &servers.concat());
    hub.start();
    for name in ["named", "addressed", "nothing", "free"] {
        hub.wait_reason(name, "Ready");
    }

    // By the relay: what the list names, for the server whose list it is.
    let allowed = format!("http://{ALLOWED}:{PORT}/");
    let at_address = format!("http://{NODE}:{PORT}/");
    got(&hub, "named", &allowed).await;
    got(&hub, "addressed", &at_address).await;
    refused(&hub, "named", &at_address).await;
    refused(&hub, "addressed", &allowed).await;
    refused(&hub, "named", &format!("http://other.example.com:{PORT}/")).await;
    refused(&hub, "named", &format!("http://{ALLOWED}:81/")).await;
    refused(&hub, "named", "http://169.254.169.254/").await;
    assert!(!machine.was_asked_for("other.example.com"), "what is not listed is not looked up");

    // By name, without the relay: no name server hears of it.
    for server in ["named", "addressed", "nothing"] {
        let name = format!("{server}-tells.example.com");
        let answer = fetch(&hub, server, &format!("http://{name}:{PORT}/"), true).await;
        assert!(answer.is_err() && !machine.was_asked_for(&name), "{answer:?}");
    }
    let answer = fetch(&hub, "free", &format!("http://free-tells.example.com:{PORT}/"), true).await;
    assert!(
        answer.is_ok() && machine.was_asked_for("free-tells.example.com"),
        "the means of this test work: {answer:?}"
    );

    // By address: not the outside, not the engine's machine by any address of its own, no server, no metadata.
    let mut others = Vec::new();
    let machines = scene.engine.command("ip").args(["-4", "-o", "address"]).output().unwrap();
    let own = text(&machines.stdout);
    let own = own.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    others.extend(own.filter(|address| *address != "127.0.0.1").map(|address| format!("{address}:{PORT}")));
    assert!(others.contains(&format!("{OUTSIDE}:{PORT}")), "{others:?}");
    let mut shown = Vec::new();
    for name in ["named", "addressed", "nothing", "free"] {
        let found = inspected(&scene, name).await.unwrap();
        others.push(format!("{}:7337", address_of(&found)));
        shown.push((name, found));
    }
    for (name, found) in &shown {
        let mut reached = Vec::new();
        for address in others.iter().filter(|address| **address != format!("{}:7337", address_of(found))) {
            if reaches(found, address.parse().unwrap()).await {
                reached.push(address.clone());
            }
        }
        match *name {
            "free" => {
                assert!(reached.contains(&format!("{OUTSIDE}:{PORT}")), "the means of this test work: {reached:?}")
            }
            _ => assert_eq!(reached, Vec::<String>::new(), "{name}"),
        }
        // Its own link would do: the machine's end of it has such an address.
        if *name != "free" {
            assert_eq!(ip(found, &["-6", "-o", "address", "show", "dev", "eth0"]).await, "", "{name}");
            assert!(!reaches(found, format!("[fd00:250::1]:{PORT}").parse().unwrap()).await);
        }
    }

    // The next daemon takes over what it finds, and opens a way in of its own.
    hub.kill_daemon();
    hub.start();
    until("the next daemon's way in leads to the server", async || {
        fetch(&hub, "named", &allowed, false).await.is_ok_and(|answer| answer.contains("outside")).then_some(())
    })
    .await;
    assert_eq!(inspected(&scene, "named").await.unwrap()["Id"], shown[0].1["Id"]);

    // One relay serves all of them; what the engine shows of it holds no key.
    let before = relays(&scene).await;
    assert_eq!(before.len(), 1, "{before:#?}");
    let key = scene_key(&before[0]).await;
    assert!(key.len() == 64 && !before[0].to_string().contains(&key), "{}", before[0]);
    assert_eq!(before[0]["HostConfig"]["ReadonlyRootfs"], true);

    // Another list for one server is nothing to the others, nor to the relay.
    let mut changed = servers.clone();
    changed[1] = with_list("addressed", Some(&[&by_name]));
    hub.write("servers.yaml", &changed.concat());
    let old = shown[1].1["Id"].clone();
    until("the server with another list is another container", async || {
        inspected(&scene, "addressed").await.filter(|now| now["Id"] != old && now["State"]["Running"] == true)
    })
    .await;
    until("its new list counts", async || {
        fetch(&hub, "addressed", &allowed, false).await.is_ok_and(|answer| answer.contains("outside")).then_some(())
    })
    .await;
    refused(&hub, "addressed", &at_address).await;
    assert_eq!(inspected(&scene, "named").await.unwrap()["Id"], shown[0].1["Id"]);
    assert_eq!(relays(&scene).await[0]["Id"], before[0]["Id"]);

    // A relay that dies is made anew, and servers go on as they are.
    scene.api.kill_container(before[0]["Id"].as_str().unwrap(), None).await.unwrap();
    until("another relay serves", async || {
        let now = relays(&scene).await;
        let is_new = now.len() == 1 && now[0]["Id"] != before[0]["Id"];
        (is_new && fetch(&hub, "named", &allowed, false).await.is_ok_and(|answer| answer.contains("outside")))
            .then_some(())
    })
    .await;
    until("the other servers are reached again", async || {
        fetch(&hub, "addressed", &allowed, false).await.is_ok_and(|answer| answer.contains("outside")).then_some(())
    })
    .await;
    hub.wait_reason("nothing", "Ready");
    assert_eq!(inspected(&scene, "named").await.unwrap()["Id"], shown[0].1["Id"]);

    // One that hears nothing is made anew as well, and no server is blamed for it.
    let deaf = relays(&scene).await.remove(0);
    Record::of(u32::try_from(deaf["State"]["Pid"].as_u64().unwrap()).unwrap()).unwrap().stop();
    until("a relay that hears is there", async || {
        let now = relays(&scene).await;
        (now.len() == 1 && now[0]["Id"] != deaf["Id"]).then_some(())
    })
    .await;
    for name in ["named", "addressed"] {
        until("the servers are reached again", async || {
            fetch(&hub, name, &allowed, false).await.is_ok_and(|answer| answer.contains("outside")).then_some(())
        })
        .await;
    }
    assert_eq!(inspected(&scene, "named").await.unwrap()["Id"], shown[0].1["Id"]);

    // Without a list a server is as free as others; the last list takes the relay along.
    let free = ["named", "addressed", "nothing", "free"].map(|name| with_list(name, None));
    hub.write("servers.yaml", &free.concat());
    until("no relay is left", async || relays(&scene).await.is_empty().then_some(())).await;
    for name in ["named", "addressed", "nothing"] {
        until("the server is reached, and reaches others", async || {
            fetch(&hub, name, &allowed, false).await.is_ok_and(|answer| answer.contains("outside")).then_some(())
        })
        .await;
    }
    hub.ok(&["down", "--all"]);
    let images = scene.api.list_images(None::<ListImagesOptions>).await.unwrap();
    assert!(!images.iter().any(|image| image.repo_tags.iter().any(|tag| tag.contains("relay"))), "{images:?}");
    let networks = scene.api.list_networks(None::<ListNetworksOptions>).await.unwrap();
    assert!(!networks.iter().any(|network| network.name.iter().any(|name| name.contains("mcphub"))), "{networks:?}");
    let volumes = scene.api.list_volumes(None::<ListVolumesOptions>).await.unwrap().volumes.unwrap_or_default();
    assert!(volumes.is_empty(), "{volumes:?}");
}

/// The key that a relay has.
async fn scene_key(relay: &Value) -> String {
    let path = format!("/proc/{}/root/run/mcp-hub-relay/key", relay["State"]["Pid"]);
    tokio::fs::read_to_string(path).await.unwrap()
}

#[tokio::test]
async fn on_docker_a_list_opens_what_it_names_and_nothing_beside() {
    a_list_opens_what_it_names_and_nothing_beside(EngineKind::Docker).await;
}

#[tokio::test]
async fn on_podman_a_list_opens_what_it_names_and_nothing_beside() {
    a_list_opens_what_it_names_and_nothing_beside(EngineKind::Podman).await;
}
