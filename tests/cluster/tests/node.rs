//! A whole cluster: pods, logs, services, names, and nothing left of them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "support of a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mcp_hub_test_cluster::{BUSYBOX, Cluster, Options, Shape};
use support::{Traces, eventually};

/// A page served by two pods behind a service.
const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: IMAGE
        command: [sh, -c, 'echo a page is served; echo the page > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: scratch, mountPath: /scratch}]
      volumes: [{name: scratch, emptyDir: {medium: Memory}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn pods_are_reached_by_the_name_and_the_address_of_their_service_and_nothing_is_left_of_them() {
    let cluster = Cluster::up(Options::new(Shape::Node)).unwrap();
    cluster.apply(&WEB.replace("IMAGE", BUSYBOX)).unwrap();
    cluster.kubectl(["wait", "--for=condition=Available", "deployment/web", "--timeout=120s"]).unwrap();
    assert_eq!(cluster.kubectl(["logs", "deployment/web"]).unwrap().lines().last(), Some("a page is served"));

    let address = cluster.kubectl(["get", "service", "web", "--output=jsonpath={.spec.clusterIP}"]).unwrap();
    let found = in_pod(&cluster, "nslookup web.default.svc.cluster.local");
    assert!(found.lines().any(|line| line.trim() == format!("Address: {address}")), "{found}");
    let answer = in_pod(&cluster, &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {address} 80"));
    assert!(answer.ends_with("the page"), "{answer}");

    // From this process, which is in another network.
    let door = cluster.door(SocketAddr::new(address.parse().unwrap(), 80)).unwrap();
    assert!(get(door.address()).ends_with("the page\n"));
    // And nothing leads to a port where nobody listens.
    let closed = cluster.door(SocketAddr::new(address.parse().unwrap(), 81)).unwrap();
    assert_eq!(get(closed.address()), "");

    let traces = Traces::of(&cluster);
    assert_eq!(traces.processes.len(), 8, "{traces:?}");
    let with_pods = traces.left();
    assert!(with_pods.iter().any(|trace| trace.contains("httpd")), "{with_pods:#?}");
    assert!(with_pods.iter().any(|trace| trace.starts_with("/run/containerd/s/")), "{with_pods:#?}");
    assert!(with_pods.iter().any(|trace| trace.starts_with("mount tmpfs")), "{with_pods:#?}");
    cluster.down().unwrap();
    traces.assert_gone();
}

/// A service's rules and a pod's name reach the node a moment after the object, so the first try may be too early.
fn in_pod(cluster: &Cluster, script: &str) -> String {
    eventually(script, || {
        let exec = ["exec", "deployment/web", "--", "timeout", "5", "sh", "-c", script];
        cluster.kubectl(exec).map_err(|error| error.to_string()).and_then(|text| match text.is_empty() {
            true => Err("no answer".to_owned()),
            false => Ok(text),
        })
    })
}

/// The whole answer; empty if the connection ends without one.
fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut answer = String::new();
    // A connection that leads nowhere may also be reset.
    let exchange = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
    exchange.map(|_| answer).unwrap_or_default()
}
