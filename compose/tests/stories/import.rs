//! What others wrote, read as manifests.

use std::path::Path;

use mcp_hub_compose::import::{self, Imported, Relative};
use mcp_hub_crds::Resource;

pub(crate) fn read(name: &str, text: &str) -> Imported {
    import::read(Path::new(name), text, Relative::To(Path::new("/project"))).unwrap_or_else(|error| panic!("{error}"))
}

/// Remarks and manifests, as `mcpctl import` shows and writes them.
fn shown(imported: Imported) -> String {
    let remarks = imported.remarks.iter().map(|remark| format!("{remark}\n"));
    let manifests = imported.servers.into_iter().map(|server| format!("---\n{}", Resource::Server(server).to_yaml()));
    remarks.chain(manifests).collect()
}

#[test]
fn a_compose_file_with_labels_of_the_predecessor() {
    let text = r#"
version: "3.8"
x-defaults: &defaults
  restart: unless-stopped
  cap_drop: [ALL]
services:
  github:
    <<: *defaults
    image: ghcr.io/github/github-mcp-server:v1@sha256:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a
    labels:
      mcp-hub.service: GitHub
      mcp-hub.type: stdio
      mcp-hub.description: Issues and pull requests
    command: stdio --toolsets "repos, issues"
    environment:
      GITHUB_PERSONAL_ACCESS_TOKEN: ${SECRET:github_pat}
      GITHUB_HOST: ${GITHUB_HOST:-https://github.com}
      API_KEY: ${API_KEY:?}
      SESSION_TOKEN: hunter2-in-clear
      PASSED_ON:
      LEVEL: info
      PRICE: 5$$
      URL: https://${HOST}/x
    user: "1000:1000"
    depends_on: [weather]
    deploy:
      resources:
        limits: {cpus: "0.50", memory: 256M}
        reservations: {memory: 64M}
  weather:
    image: mcp/weather:2
    labels: ["mcp-hub.service=weather", "mcp-hub.type=sse", "com.example=x"]
    entrypoint: ["node", "server.js"]
    ports: ["127.0.0.1:3000:8080"]
    volumes:
      - ./data:/data:ro
      - cache:/cache
      - /var/run/docker.sock:/var/run/docker.sock
      - {type: bind, source: ~/notes, target: /notes, read_only: true}
    mem_limit: 1g
    cpus: 2
    working_dir: /data
    privileged: true
    env_file: .env
    networks: [mcp]
    healthcheck: {test: [CMD, "true"]}
    imagee: x
  db:
    image: postgres:16
volumes: {cache: {}}
networks: {mcp: {}}
include: [other.yaml]
"#;
    let imported = read("docker-compose.yml", text);
    let shown = shown(imported);
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!("compose_with_labels", shown);
}

#[test]
fn a_compose_file_without_labels_is_taken_as_it_is() {
    let text = "
services:
  time:
    image: mcp/time
    network_mode: none
    stdin_open: true
    read_only: true
    tmpfs: [/tmp, /var/cache]
    security_opt: ['no-new-privileges:true']
  needs-a-build:
    build: .
  root:
    image: mcp/root
    user: root
    depends_on: {db: {condition: service_started}}
    ports: [80, 81]
    command: 'unclosed \"'
";
    insta::assert_snapshot!("compose_without_labels", shown(read("compose.yaml", text)));
}

#[test]
fn secrets_are_copied_from_nowhere() {
    let compose = r#"
services:
  list: {image: x, entrypoint: [serve, --password, hunter2], command: ["--token=hunter2", stdio]}
  text: {image: x, command: "serve --api-key hunter2 --header 'Cookie: hunter2' --level info"}
  url: {image: x, command: ["--db", "postgres://me:hunter2@db/x", "stdio"]}
  default: {image: x, command: ["--key", "${KEY:-hunter2}"]}
  names: {image: x, environment: {DB_PASS: hunter2, PASSPHRASE: hunter2, GITHUB_PAT: hunter2, CREDENTIALS: hunter2, WEB: "https://hunter2@x"}}
"#;
    let clients = r#"{"mcpServers": {
        "two": {"command": "npx", "args": ["-y", "a@1.0.0", "--api-key", "hunter2", "stdio"]},
        "one": {"command": "npx", "args": ["-y", "mcp-remote@1.0.0", "https://x.example.com/?key=hunter2", "--header=Authorization: hunter2"]},
        "run": {"command": "docker", "args": ["run", "-i", "x", "--token", "hunter2"]},
        "far": {"url": "https://me:hunter2@x.example.com/mcp?api_key=hunter2&page=2", "headers": {"Cookie": "hunter2"}}
    }}"#;
    let shown = [("compose.yaml", compose), ("mcp.json", clients)].map(|(name, text)| shown(read(name, text))).concat();
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!("secrets", shown);
}

#[test]
fn configurations_of_clients() {
    for (name, file, text) in [
        (
            "claude",
            "claude_desktop_config.json",
            r#"{ // Claude
                "globalShortcut": "x",
                "mcpServers": {
                    "files": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-filesystem@2026.8.31", "/data"]},
                    "github": {"command": "docker", "args": ["run", "-i", "--rm", "-e", "GITHUB_TOKEN", "ghcr.io/github/github-mcp-server"], "env": {"GITHUB_TOKEN": "ghp_0123456789abcdef0123"}},
                    "broken": {"comand": "x"}
                }}"#,
        ),
        (
            "vscode",
            "mcp.json",
            r#"{"inputs": [{"id": "key", "type": "promptString"}], "servers": {"remote": {"type": "http", "url": "https://mcp.example.com/mcp", "headers": {"X-Api-Key": "${input:key}", "Authorization": "Bearer abcdef0123456789"}}}}"#,
        ),
        (
            "gemini_and_windsurf",
            "settings.json",
            r#"{"theme": "x", "mcpServers": {"a": {"httpUrl": "https://a.example.com/mcp", "trust": true, "includeTools": ["x"]}, "b": {"serverUrl": "https://b.example.com/mcp"}}}"#,
        ),
        (
            "zed",
            "settings.json",
            r#"{"context_servers": {"a": {"source": "custom", "command": {"path": "uvx", "args": ["mcp-server-time==2026.10.19"], "env": {}}}, "b": {"url": "https://b.example.com/mcp", "enabled": false}}}"#,
        ),
        (
            "codex",
            "config.toml",
            "model = \"x\"\n[mcp_servers.docs]\nurl = \"https://docs.example.com/mcp\"\nbearer_token_env_var = \"DOCS_TOKEN\"\nhttp_headers = { X-Region = \"eu\" }\nenv_http_headers = { X-Org = \"ORG\" }\nstartup_timeout_sec = 20\ntool_timeout_sec = 1.5\n[mcp_servers.local]\ncommand = \"npx\"\nargs = [\"-y\", \"a@1.0.0\"]\nenabled_tools = [\"b\"]\nenv = { LEVEL = \"info\" }\nunheard_of = 1\n",
        ),
        (
            "goose",
            "config.yaml",
            "GOOSE_MODEL: x\nextensions:\n  developer: {type: builtin, enabled: true}\n  time: {type: stdio, cmd: uvx, args: [mcp-server-time], envs: {TZ: UTC}, env_keys: [API_KEY], enabled: true, timeout: 300}\n  far: {type: streamable_http, uri: 'https://far.example.com/mcp', enabled: false}\n",
        ),
        (
            "continue",
            "config.yaml",
            "name: x\nmcpServers:\n  - {name: My Server, type: streamable-http, url: 'https://c.example.com/mcp', requestOptions: {headers: {X-A: b}}}\n  - {name: my server, command: npx, args: [a]}\n",
        ),
    ] {
        let shown = shown(read(file, text));
        assert!(!shown.contains("ghp_") && !shown.contains("abcdef0123456789"), "{shown}");
        insta::assert_snapshot!(format!("client_{name}"), shown);
    }
}
