//! Client configurations and command lines as input.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use mcp_hub_crds::command_line::{CommandError, source_of_command};
use mcp_hub_crds::manifest::parse;

fn converted(text: &str) -> String {
    match parse(text, Path::new(".mcp.json")) {
        Err(errors) => errors.to_string(),
        Ok(documents) => documents
            .iter()
            .map(|document| {
                let warnings: String =
                    document.warnings.iter().map(|warning| format!("# warning: {warning}\n")).collect();
                format!("# line {}\n{warnings}{}", document.line, document.resource.to_yaml())
            })
            .collect::<Vec<_>>()
            .join("---\n"),
    }
}

/// The command line's source and arguments as one line.
fn line(command: &str) -> String {
    let argv: Vec<String> = command.split(' ').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    match source_of_command(&argv, &BTreeMap::new()) {
        Ok(found) => format!("{} {}", serde_json::to_string(&found.source).unwrap(), found.args.join(" ")),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn a_client_configuration_becomes_servers() {
    let text = r#"{
  // what Claude and Cursor write
  "mcpServers": {
    "Time_Server": {
      "command": "uvx", "args": ["mcp-server-time==2025.1.1", "--local-timezone=UTC"],
      "env": {"API_TOKEN": "abc", "GITHUB": "${GITHUB_TOKEN}", "PORT": 8080}, "autoApprove": ["x"]
    },
    "web": {"type": "http", "url": "https://example.com/mcp", "headers": {"Authorization": "${env:WEB_AUTH}"}},
    "github": {"command": "docker", "env": {"GH": "${GH}", "DOCKER_HOST": "x"}, "disabled": true,
      "args": ["run", "-i", "--rm", "-e", "GH", "-e", "B=c", "-v", "/src:/data:ro", "ghcr.io/github/github-mcp-server", "stdio"]},
  },
}"#;
    insta::assert_snapshot!(converted(text), @r#"
    # line 4
    # warning: `autoApprove` is the client's own and has no effect here
    # warning: `Time_Server` is named `time-server` here
    # warning: GITHUB comes from the secret `github-token` (was `${GITHUB_TOKEN}`)
    # warning: environment variable API_TOKEN looks like a secret and stands here in clear; use secretRef instead of value
    apiVersion: mcphub.io/v1alpha1
    kind: MCPServer
    metadata:
      name: time-server
      namespace: default
    spec:
      source:
        package:
          registry: pypi
          name: mcp-server-time
          version: "2025.1.1"
      args:
      - --local-timezone=UTC
      env:
      - name: API_TOKEN
        value: abc
      - name: GITHUB
        secretRef:
          name: github-token
          key: value
      - name: PORT
        value: "8080"
    ---
    # line 8
    # warning: Authorization comes from the secret `web-auth` (was `${env:WEB_AUTH}`)
    apiVersion: mcphub.io/v1alpha1
    kind: MCPServer
    metadata:
      name: web
      namespace: default
    spec:
      source:
        remote:
          url: https://example.com/mcp
          headers:
          - name: Authorization
            secretRef:
              name: web-auth
              key: value
    ---
    # line 9
    # warning: GH comes from the secret `gh` (was `${GH}`)
    # warning: environment variable DOCKER_HOST is left out: no `-e DOCKER_HOST` passes it to the container
    apiVersion: mcphub.io/v1alpha1
    kind: MCPServer
    metadata:
      name: github
      namespace: default
    spec:
      source:
        image:
          ref: ghcr.io/github/github-mcp-server
      args:
      - stdio
      env:
      - name: GH
        secretRef:
          name: gh
          key: value
      - name: B
        value: c
      volumes:
      - name: volume-1
        mountPath: /data
        readOnly: true
        hostPath: /src
      paused: true
    "#);
}

#[test]
fn the_servers_of_vs_code_are_read_and_its_inputs_become_secrets() {
    let text = r#"{"inputs": [{"id": "api-key", "type": "promptString"}],
 "servers": {"a": {"type": "stdio", "command": "npx", "args": ["-y", "a-server"], "env": {"KEY": "${input:api-key}"}}}}"#;
    insta::assert_snapshot!(converted(text), @r#"
    # line 2
    # warning: KEY comes from the secret `api-key` (was `${input:api-key}`)
    apiVersion: mcphub.io/v1alpha1
    kind: MCPServer
    metadata:
      name: a
      namespace: default
    spec:
      source:
        package:
          registry: npm
          name: a-server
      env:
      - name: KEY
        secretRef:
          name: api-key
          key: value
    "#);
}

#[test]
fn a_client_that_reaches_a_server_by_sse_goes_on_doing_so() {
    let text = r#"{"mcpServers": {"old": {"type": "sse", "url": "https://x/sse"}}}"#;
    insta::assert_snapshot!(converted(text), @r"
    # line 1
    apiVersion: mcphub.io/v1alpha1
    kind: MCPServer
    metadata:
      name: old
      namespace: default
    spec:
      source:
        remote:
          url: https://x/sse
      transport:
        type: sse
    ");
}

#[test]
fn what_cannot_be_honoured_is_refused_at_its_place() {
    let text = r#"{"mcpServers": {
  "a": {"command": "x", "url": "y"},
  "b": {"comand": "x"},
  "c": {"type": "ws", "url": "https://x/ws"},
  "d": {"url": "https://x", "headers": {"Authorization": "Bearer ${TOKEN}"}, "env": {}},
  "e": {"command": "docker", "args": ["run", "--privileged", "x"]},
  "f": {"command": "x", "args": ["${workspaceFolder}", 1]},
  "g": {"command": "npx", "args": ["github:a/b"]},
  "h": {"url": "ftp://x"},
  "!!": {"command": "x"},
  "same": {"command": "x"},
  "Same": {"command": "y"}
}}"#;
    insta::assert_snapshot!(converted(text), @r#"
    .mcp.json:2:3: mcpServers.a: exactly one of `command` and `url` must be set
    .mcp.json:3:9: mcpServers.b.comand: unknown field
      hint: did you mean `command`?
    .mcp.json:4:9: mcpServers.c.type: transport `ws` is not supported here
      hint: a command is reached by stdio, a URL by http or sse
    .mcp.json:5:41: mcpServers.d.headers.Authorization: the placeholder `${TOKEN}` is not expanded here
      hint: make the whole value a secret (`${NAME}` alone, in env or headers), or write it out
    .mcp.json:5:78: mcpServers.d.env: `env` belongs to a server with `command`
    .mcp.json:6:9: mcpServers.e.command: flag `--privileged` of `docker run` cannot be honoured
      hint: write an MCPServer manifest that says what the flag is for
    .mcp.json:7:34: mcpServers.f.args[0]: the placeholder `${workspaceFolder}` is not expanded here
      hint: make the whole value a secret (`${NAME}` alone, in env or headers), or write it out
    .mcp.json:7:56: mcpServers.f.args[1]: expected text
    .mcp.json:8:9: mcpServers.g.command: `github:a/b` is no package of a registry
      hint: install it yourself and give the path of its program as the command
    .mcp.json:9:3: mcpServers.h: spec.source.remote.url: `ftp://x` does not match `^https?://[!-~]+$`
    .mcp.json:10:3: mcpServers.!!: no server name can be made of `!!`
      hint: use letters, digits and hyphens
    .mcp.json:12:1: MCPServer default/same is already defined in .mcp.json:11
      hint: rename or remove one of the two
    "#);
}

#[test]
fn command_lines_become_the_source_that_they_mean() {
    let lines = [
        "npx -y @modelcontextprotocol/server-everything@2026.8.31",
        "npx --yes a-server@latest --flag -y",
        "npx -p @a/b@1.2.3 prog x",
        "npx --package=@a/b prog",
        "/usr/local/bin/npx a",
        "cmd /c npx -y a",
        "bunx a",
        "pnpm dlx a@1.0.0-rc.1",
        "npm exec -y a -- --flag",
        "uvx mcp-server-time",
        "uvx mcp-server-time==2025.1.1 --utc",
        "uvx mcp-server-time@2025.1.1",
        "uvx --from mcp-tools==1.0 serve x",
        "uv tool run mcp-server-git",
        "pipx run --spec a==1 b",
        "docker run -i --rm --entrypoint sh a/b:v1 -c x",
        "./bin/server -v",
        "python -m server",
    ];
    let found: Vec<String> = lines.iter().map(|command| format!("{command}\n  {}", line(command).trim_end())).collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    npx -y @modelcontextprotocol/server-everything@2026.8.31
      {"package":{"registry":"npm","name":"@modelcontextprotocol/server-everything","version":"2026.8.31"}}
    npx --yes a-server@latest --flag -y
      {"package":{"registry":"npm","name":"a-server"}} --flag -y
    npx -p @a/b@1.2.3 prog x
      {"package":{"registry":"npm","name":"@a/b","version":"1.2.3","executable":"prog"}} x
    npx --package=@a/b prog
      {"package":{"registry":"npm","name":"@a/b","executable":"prog"}}
    /usr/local/bin/npx a
      {"package":{"registry":"npm","name":"a"}}
    cmd /c npx -y a
      {"package":{"registry":"npm","name":"a"}}
    bunx a
      {"package":{"registry":"npm","name":"a"}}
    pnpm dlx a@1.0.0-rc.1
      {"package":{"registry":"npm","name":"a","version":"1.0.0-rc.1"}}
    npm exec -y a -- --flag
      {"package":{"registry":"npm","name":"a"}} --flag
    uvx mcp-server-time
      {"package":{"registry":"pypi","name":"mcp-server-time"}}
    uvx mcp-server-time==2025.1.1 --utc
      {"package":{"registry":"pypi","name":"mcp-server-time","version":"2025.1.1"}} --utc
    uvx mcp-server-time@2025.1.1
      {"package":{"registry":"pypi","name":"mcp-server-time","version":"2025.1.1"}}
    uvx --from mcp-tools==1.0 serve x
      {"package":{"registry":"pypi","name":"mcp-tools","version":"1.0","executable":"serve"}} x
    uv tool run mcp-server-git
      {"package":{"registry":"pypi","name":"mcp-server-git"}}
    pipx run --spec a==1 b
      {"package":{"registry":"pypi","name":"a","version":"1","executable":"b"}}
    docker run -i --rm --entrypoint sh a/b:v1 -c x
      {"image":{"ref":"a/b:v1","command":["sh"]}} -c x
    ./bin/server -v
      {"command":{"path":"./bin/server"}} -v
    python -m server
      {"command":{"path":"python"}} -m server
    "#);
}

#[test]
fn command_lines_without_a_counterpart_are_refused_by_name() {
    let lines = [
        "",
        "npx",
        "npx -y",
        "npx -c x",
        "npx -p",
        "npx a@^1.2",
        "npx a@next",
        "npx ./local",
        "npx github:a/b",
        "npx @a",
        "npx é",
        "uvx --with x y",
        "uvx a>=1",
        "uvx a[extra]",
        "uvx --from git+https://x/y z",
        "uvx é",
        "docker run -it x",
        "docker run --network host x",
        "docker run -v name:/data x",
        "docker run -v /data x",
        "docker run --mount type=volume,src=a,dst=/b x",
        "docker run -i",
        "podman run -e",
    ];
    let found: Vec<String> = lines.iter().map(|command| format!("{command}: {}", line(command))).collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    : error: no command given
    npx: error: `npx` is not told what to run
    npx -y: error: `npx` is not told what to run
    npx -c x: error: flag `-c` of `npx` cannot be honoured
    npx -p: error: flag `-p` of `npx` needs a value
    npx a@^1.2: error: `a@^1.2` names no exact version
    npx a@next: error: `a@next` names no exact version
    npx ./local: error: `./local` is no package of a registry
    npx github:a/b: error: `github:a/b` is no package of a registry
    npx @a: error: `@a` is no package of a registry
    npx é: error: `é` is no package of a registry
    uvx --with x y: error: flag `--with` of `uvx` cannot be honoured
    uvx a>=1: error: `a>=1` names no exact version
    uvx a[extra]: error: `a[extra]` is no package of a registry
    uvx --from git+https://x/y z: error: `git+https://x/y` is no package of a registry
    uvx é: error: `é` is no package of a registry
    docker run -it x: error: flag `-it` of `docker run` cannot be honoured
    docker run --network host x: error: flag `--network` of `docker run` cannot be honoured
    docker run -v name:/data x: error: `name:/data` is no volume of the form SOURCE:PATH[:ro]
    docker run -v /data x: error: `/data` is no volume of the form SOURCE:PATH[:ro]
    docker run --mount type=volume,src=a,dst=/b x: error: `type=volume,src=a,dst=/b` is no volume of the form SOURCE:PATH[:ro]
    docker run -i: error: `docker run` is not told what to run
    podman run -e: error: flag `-e` of `podman run` needs a value
    "#);
}

#[test]
fn a_container_gets_only_the_variables_that_it_is_passed() {
    let argv = ["podman", "run", "-eA", "-e", "B=1", "--env=C", "-w", "/w", "x"].map(str::to_owned);
    let env = BTreeMap::from([("A".to_owned(), "a".to_owned()), ("D".to_owned(), "d".to_owned())]);
    let found = source_of_command(&argv, &env).unwrap();
    insta::assert_snapshot!(serde_json::to_string(&found.env).unwrap(), @r#"[{"name":"A","value":"a"},{"name":"B","value":"1"},{"name":"C","secretRef":{"name":"c","key":"value"}}]"#);
    insta::assert_snapshot!(found.warnings.join("\n"), @r#"
    environment variable C has no value here: it is taken from the secret `c`
    environment variable D is left out: no `-e D` passes it to the container
    "#);
    assert_eq!(found.working_dir.as_deref(), Some("/w"));
    assert_eq!(found.runtime, Some(mcp_hub_crds::server::RuntimeChoice::Podman));
}

#[test]
fn a_refusal_says_what_to_do() {
    let error = source_of_command(&["npx".to_owned(), "a@^1".to_owned()], &BTreeMap::new()).unwrap_err();
    assert_eq!(error, CommandError::NotExact { spec: "a@^1".to_owned() });
    assert_eq!(error.hint().unwrap(), "write one version such as 1.2.3, or none to take and keep the newest");
}
