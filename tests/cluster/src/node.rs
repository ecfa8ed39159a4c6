//! The node's configuration: containerd, pod network, kubelet, DNS.

use serde_json::json;

use crate::cluster::Shape;
use crate::error::Error;
use crate::files;
use crate::folder::Folder;
use crate::image::{self, BUSYBOX, PAUSE};
use crate::namespace::NODE;
use crate::parts::SERVICES;
use crate::tools;

/// The node's own pods.
const NODE_PODS: &str = "10.244.0.0/24";

/// Writes all configuration files, and the images every node has.
pub(crate) fn configure(folder: &Folder) -> Result<(), Error> {
    let write = |name: &str, content: String| files::write(&folder.path().join(name), content);
    write("containerd.toml", containerd(folder)?)?;
    write("cni/10-pods.conflist", pod_network(folder).to_string())?;
    write("kubelet.json", kubelet(folder).to_string())?;
    // Pods with `dnsPolicy: Default` resolve nothing: there is no network outside.
    write("resolv.conf", "nameserver 127.0.0.1\n".to_owned())?;
    write("Corefile", dns(folder))?;
    for (name, file) in images() {
        image::write(name, &folder.path().join(file))?;
    }
    Ok(())
}

/// Images that every node has, and their archives in the cluster's folder.
pub(crate) fn images() -> [(&'static str, &'static str); 2] {
    [(PAUSE, "pause.tar"), (BUSYBOX, "busybox.tar")]
}

pub(crate) fn containerd_socket(folder: &Folder) -> String {
    folder.at("cri/c.sock")
}

/// Everything lies in the cluster's folder, so that it goes with it.
fn containerd(folder: &Folder) -> Result<String, Error> {
    let plugins = tools::network_plugins().ok_or_else(|| Error::NotInstalled(tools::missing(Shape::Node)))?;
    let at = |name: &str| folder.at(name);
    Ok(format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE runc cannot lower the score and no pod would start.
  restrict_oom_score_adj = true
  # Else they are machine-wide files in /run/netns, whose owner nobody could tell later.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{runc}"
"#,
        root = at("cri/root"),
        state = at("cri/state"),
        socket = containerd_socket(folder),
        opt = at("cri/opt"),
        plugins = plugins.display(),
        cni = at("cni"),
        runc = at("cri/runc"),
    ))
}

fn pod_network(folder: &Folder) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        // The plugins' library keeps results in a machine-wide folder, under this name.
        "name": folder.mark(),
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": folder.at("cni/leases"),
                    "ranges": [[{"subnet": NODE_PODS}]], "routes": [{"dst": "0.0.0.0/0"}]
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    })
}

fn kubelet(folder: &Folder) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": folder.at("pki/ca.crt")}
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": folder.at("pki/kubelet.crt"),
        "tlsPrivateKeyFile": folder.at("pki/kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", folder.mark()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDomain": "cluster.local",
        "clusterDNS": [NODE],
        "containerRuntimeEndpoint": format!("unix://{}", containerd_socket(folder)),
        // A machine of many tests may be fuller than a node should be; only the last resort stays.
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "resolvConf": folder.at("resolv.conf"),
        "podLogsDir": folder.at("pod-logs"),
    })
}

fn dns(folder: &Folder) -> String {
    let kubeconfig = folder.at("inside.kubeconfig");
    format!(
        ".:53 {{\n  bind {NODE}\n  errors\n  kubernetes cluster.local {SERVICES} {{\n    kubeconfig {kubeconfig} test\n    \
         pods insecure\n  }}\n}}\n"
    )
}
