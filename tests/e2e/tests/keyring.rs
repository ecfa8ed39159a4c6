//! Secrets whose key lies in the keyring of the operating system: a real Secret Service on a message bus of its own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use mcp_hub_e2e::{Hub, fixture};

/// A message bus with a keyring that nobody else uses. Dropped, both end.
struct Keyring {
    bus: Child,
    service: Child,
    address: String,
    /// Where the keyring keeps its entries.
    _home: tempfile::TempDir,
}

impl Keyring {
    /// An empty, unlocked keyring.
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut bus = Command::new("dbus-daemon");
        bus.args(["--session", "--nofork", "--print-address"]).env("XDG_RUNTIME_DIR", home.path());
        let mut bus = bus.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("dbus-daemon");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();

        let mut service = Command::new("gnome-keyring-daemon");
        service.args(["--foreground", "--unlock", "--components=secrets"]);
        service.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path()).env("DBUS_SESSION_BUS_ADDRESS", &address);
        service.env_remove("XDG_DATA_HOME").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut service = service.spawn().expect("gnome-keyring-daemon");
        service.stdin.take().unwrap().write_all(b"password of the login").unwrap();
        // Its first line says that it is up.
        BufReader::new(service.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        Self { bus, service, address, _home: home }
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        for child in [&mut self.service, &mut self.bus] {
            // Ended already is what is wanted.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_secret_whose_key_is_in_the_keyring_reaches_its_server_and_nobody_without_the_keyring() {
    let keyring = Keyring::start();
    let mut hub = Hub::new();
    hub.set_env("DBUS_SESSION_BUS_ADDRESS", &keyring.address);
    hub.ok_with_input(&["secret", "set", "login", "token"], "swordfish");
    assert!(hub.ok(&["secret", "list"]).contains("token"));
    let env = "  env: [{name: TOKEN, secretRef: {name: login, key: token}}]\n";
    hub.write("servers.yaml", &(fixture("a", &[]) + env));
    hub.start();
    hub.wait_reason("a", "Ready");

    drop(keyring);
    let error = hub.fails(1, &["secret", "list"]);
    assert!(error.contains("keyring") && error.contains("MCPHUB_SECRETS_PASSPHRASE"), "{error}");

    let other = Keyring::start();
    hub.set_env("DBUS_SESSION_BUS_ADDRESS", &other.address);
    let error = hub.fails(1, &["secret", "list"]);
    assert!(error.contains("holds no key"), "{error}");
    let file = std::fs::read(hub.home().join("state/secrets.age")).unwrap();
    assert!(!file.windows(9).any(|window| window == b"swordfish"));
}
