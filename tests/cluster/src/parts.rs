//! The processes a cluster is made of, and how each is started.

use crate::cluster::{Options, Shape};
use crate::folder::Folder;
use crate::namespace::NODE;

/// Where the API server listens in the cluster's network.
pub(crate) const API_PORT: u16 = 6443;
pub(crate) const NODE_NAME: &str = "node1";
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// By default controllers ask 20 times a second, which would be what a measurement of many objects measures.
const QUERIES: &str = "--kube-api-qps=1000";
const BURST: &str = "--kube-api-burst=2000";
/// Label of nodes that KWOK plays.
pub(crate) const FAKE: &str = "mcphub.io/fake-node=true";
/// The first address of [`SERVICES`], which is the API server's own.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
pub(crate) const PODS: &str = "10.244.0.0/16";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Containerd,
    Kubelet,
    Proxy,
    Dns,
    /// Plays the kubelets of nodes that do not exist.
    Kwok,
    /// Keeps the API server's port of 127.0.0.1 when the process that started the cluster has ended.
    Door,
    /// A container engine by itself, with no cluster around it.
    Docker,
    Podman,
}

impl Part {
    /// The program's name, and its log's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Dns => "coredns",
            Self::Kwok => "kwok",
            Self::Door => "door",
            Self::Docker => "dockerd",
            Self::Podman => "podman",
        }
    }

    /// Whether this program is built here and not the machine's own.
    pub(crate) fn is_built(self) -> bool {
        !matches!(self, Self::Containerd | Self::Door | Self::Docker | Self::Podman)
    }

    /// Arguments that start it. Configuration files lie in the cluster's folder already.
    pub(crate) fn arguments(self, folder: &Folder, options: &Options) -> Vec<String> {
        let admin = folder.at("inside.kubeconfig");
        let own = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>();
        match self {
            Self::Etcd => own(&[
                &format!("--data-dir={}", folder.at("etcd")),
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                // Its state is removed with the cluster.
                "--unsafe-no-fsync",
            ]),
            Self::ApiServer => api_server(folder, options),
            Self::ControllerManager => own(&[
                &format!("--kubeconfig={admin}"),
                "--bind-address=127.0.0.1",
                &format!("--service-account-private-key-file={}", folder.at("pki/accounts.key")),
                &format!("--root-ca-file={}", folder.at("pki/ca.crt")),
                "--use-service-account-credentials",
                "--allocate-node-cidrs",
                &format!("--cluster-cidr={PODS}"),
                "--leader-elect=false",
                QUERIES,
                BURST,
            ]),
            Self::Scheduler => own(&[
                &format!("--kubeconfig={admin}"),
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
                QUERIES,
                BURST,
            ]),
            Self::Containerd => own(&["--config", &folder.at("containerd.toml")]),
            Self::Kubelet => own(&[
                &format!("--config={}", folder.at("kubelet.json")),
                &format!("--kubeconfig={}", folder.at("kubelet.kubeconfig")),
                &format!("--hostname-override={NODE_NAME}"),
                &format!("--node-ip={NODE}"),
                &format!("--root-dir={}", folder.at("kubelet")),
                &format!("--cert-dir={}", folder.at("kubelet-pki")),
            ]),
            Self::Proxy => own(&[
                &format!("--kubeconfig={admin}"),
                &format!("--hostname-override={NODE_NAME}"),
                // In mode `iptables` service addresses did not answer on machines without its kernel modules.
                "--proxy-mode=nftables",
                &format!("--cluster-cidr={PODS}"),
                &format!("--bind-address={NODE}"),
                // That table's size belongs to the machine and cannot be set from a namespace.
                "--conntrack-max-per-core=0",
            ]),
            Self::Dns => own(&["-conf", &folder.at("Corefile")]),
            Self::Kwok => own(&[
                &format!("--kubeconfig={admin}"),
                &format!("--config={}", folder.at("fake-nodes.yaml")),
                "--manage-all-nodes=false",
                &format!("--manage-nodes-with-label-selector={FAKE}"),
                // kubelet's default; a node without a lease is given up after 50 s.
                "--node-lease-duration-seconds=40",
            ]),
            Self::Door | Self::Docker | Self::Podman => Vec::new(),
        }
    }
}

fn api_server(folder: &Folder, options: &Options) -> Vec<String> {
    let mut arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={NODE}"),
        format!("--advertise-address={NODE}"),
        format!("--secure-port={API_PORT}"),
        format!("--client-ca-file={}", folder.at("pki/ca.crt")),
        format!("--tls-cert-file={}", folder.at("pki/apiserver.crt")),
        format!("--tls-private-key-file={}", folder.at("pki/apiserver.key")),
        format!("--service-account-key-file={}", folder.at("pki/accounts.pub")),
        format!("--service-account-signing-key-file={}", folder.at("pki/accounts.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        // For logs, exec and port-forward; node names do not resolve here.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-certificate-authority={}", folder.at("pki/ca.crt")),
        format!("--kubelet-client-certificate={}", folder.at("pki/admin.crt")),
        format!("--kubelet-client-key={}", folder.at("pki/admin.key")),
    ];
    if options.shape == Shape::ApiServer {
        // Nobody makes the account that this check wants of every pod.
        arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    if options.audit.is_some() {
        arguments.push(format!("--audit-policy-file={}", folder.at("audit-policy.yaml")));
        arguments.push(format!("--audit-log-path={}", folder.at("audit.log")));
        // An entry is in the file when the request is answered.
        arguments.push("--audit-log-mode=blocking-strict".to_owned());
        // Megabytes. Whoever counts entries counts those of one file.
        arguments.push("--audit-log-maxsize=10000".to_owned());
    }
    arguments.extend(options.api_server.iter().cloned());
    arguments
}
