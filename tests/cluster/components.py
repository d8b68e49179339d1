"""The programs of the cluster: their command lines and their configuration files. Pure.

What is unusual here has one cause each: the node shares a machine that may not raise limits, may be on cgroup v1 and
has no route out of its network namespace.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.cluster import recipe
from tests.cluster.layout import (
    API_SERVICE_IP,
    CONTEXT,
    NODE,
    NODE_IP,
    POD_CIDR,
    SERVICE_CIDR,
    Layout,
)

ETCD_PORT: Final = 2379
API_PORT: Final = 6443
CNI_NETWORK: Final = "pods"
PROVISIONER_NAMESPACE: Final = "local-path-storage"


@dataclass(frozen=True, slots=True)
class Component:
    """One program of the cluster. `needs_api` ones start when the API server answers."""

    name: str
    command: tuple[str, ...]
    needs_api: bool = True


def build_components(at: Layout, base_image: str) -> tuple[Component, ...]:
    """All programs, in the order of their start."""
    etcd = f"http://127.0.0.1:{ETCD_PORT}"
    peer = f"http://127.0.0.1:{ETCD_PORT + 1}"
    pki, state, admin = at.pki, at.state, str(at.kubeconfig)
    return (
        Component(
            "etcd",
            (
                *("etcd", "--data-dir", f"{state}/etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}", "--unsafe-no-fsync"),  # nothing of it outlives the cluster
            ),
            needs_api=False,
        ),
        Component("containerd", ("containerd", "-c", f"{state}/containerd.toml"), needs_api=False),
        Component(
            "kube-apiserver",
            (
                *("kube-apiserver", f"--etcd-servers={etcd}", f"--advertise-address={NODE_IP}"),
                *("--bind-address=0.0.0.0", f"--secure-port={API_PORT}", f"--service-cluster-ip-range={SERVICE_CIDR}"),
                *(f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key"),
                *(f"--client-ca-file={pki}/ca.crt", "--authorization-mode=Node,RBAC", "--allow-privileged"),
                f"--kubelet-client-certificate={pki}/admin.crt",
                f"--kubelet-client-key={pki}/admin.key",
                "--kubelet-preferred-address-types=InternalIP",  # nobody resolves the node's name
                *(f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key"),
                "--service-account-issuer=https://kubernetes.default.svc",
                *(f"--audit-log-path={at.audit_log}", f"--audit-policy-file={state}/audit.yaml"),
            ),
            needs_api=False,
        ),
        Component(
            "kube-controller-manager",
            (
                *("kube-controller-manager", f"--kubeconfig={admin}", "--use-service-account-credentials"),
                *(f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt"),
                *(f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key"),
                *(f"--cluster-cidr={POD_CIDR}", "--allocate-node-cidrs", "--leader-elect=false"),
            ),
        ),
        Component("kube-scheduler", ("kube-scheduler", f"--kubeconfig={admin}", "--leader-elect=false")),
        Component(
            "kubelet",
            (
                *("kubelet", f"--config={state}/kubelet.yaml", f"--kubeconfig={pki}/node.kubeconfig"),
                *(f"--root-dir={state}/kubelet", f"--hostname-override={NODE}", f"--node-ip={NODE_IP}"),
            ),
        ),
        Component("kube-proxy", ("kube-proxy", f"--config={state}/kube-proxy.yaml")),
        Component("coredns", ("coredns", "-conf", f"{state}/Corefile")),
        Component(
            "local-path-provisioner",
            (
                *("local-path-provisioner", "start", f"--config={state}/local-path.json", f"--kubeconfig={admin}"),
                *(f"--namespace={PROVISIONER_NAMESPACE}", f"--helper-pod-file={state}/helper-pod.yaml"),
                f"--helper-image={base_image}",
            ),
        ),
    )


def build_files(at: Layout, base_image: str, pause_image: str) -> Iterator[tuple[str, str]]:
    """Each file of the state folder: its name and its text."""
    yield "audit.yaml", AUDIT_POLICY
    yield "containerd.toml", _containerd(at, pause_image)
    yield "cni/10-pods.conflist", json.dumps(_pod_network())
    yield "kubelet.yaml", json.dumps(_kubelet(at))  # JSON is YAML
    yield "kube-proxy.yaml", json.dumps(_kube_proxy(at))
    yield "Corefile", _corefile(at)
    yield "local-path.json", json.dumps(_provisioner(at))
    yield "helper-pod.yaml", json.dumps(_helper_pod(base_image))
    yield "storage.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": list(_storage())})


def build_kubeconfig(user: str, ca: str, certificate: str, key: str) -> str:
    """A kubeconfig with everything inside; the certificates and the key are base64 of their PEM."""
    cluster = {"server": f"https://{NODE_IP}:{API_PORT}", "certificate-authority-data": ca}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": CONTEXT,
            "clusters": [{"name": CONTEXT, "cluster": cluster}],
            "users": [{"name": user, "user": {"client-certificate-data": certificate, "client-key-data": key}}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": user}}],
        }
    )


AUDIT_POLICY: Final = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, nonResourceURLs: ["/*"]}
  - {level: Metadata, resources: [{group: "", resources: [secrets]}]}
  - {level: Request, verbs: [create, update, patch, delete, deletecollection]}
  - {level: Metadata}
"""


def _containerd(at: Layout, pause_image: str) -> str:
    return f"""\
version = 2
root = "{at.state}/containerd"
state = "/run/containerd-state"
[grpc]
  address = "{at.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true  # some machines may not lower it
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{recipe.CNI_PLUGINS}"
    conf_dir = "{at.state}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _pod_network() -> dict[str, object]:
    addresses = {"type": "host-local", "ranges": [[{"subnet": POD_CIDR}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [bridge | {"ipam": addresses}, ports]}


def _kubelet(at: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": f"{at.pki}/ca.crt"},
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{at.pki}/node.crt",
        "tlsPrivateKeyFile": f"{at.pki}/node.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{at.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{at.socket}",
        "clusterDNS": [NODE_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": "/dev/null",  # no name outside the cluster can be reached
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        # The machine is shared with everything else: its disk says nothing about the pods.
        "evictionHard": {
            "memory.available": "100Mi",
            **dict.fromkeys(("nodefs.available", "imagefs.available", "nodefs.inodesFree"), "1%"),
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "volumePluginDir": f"{at.state}/volume-plugins",
        "featureGates": {"KubeletInUserNamespace": True},  # limits that it may not raise are no reason to stop
    }


def _kube_proxy(at: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(at.kubeconfig)},
        "mode": "iptables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": NODE,
        # 0: leave the machine's own as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    }


def _corefile(at: Layout) -> str:
    return f"""\
.:53 {{
  bind {NODE_IP}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {at.kubeconfig} {CONTEXT}
    pods insecure
  }}
  cache 5
}}
"""


def _provisioner(at: Layout) -> dict[str, object]:
    return {"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [f"{at.state}/volumes"]}]}


def _helper_pod(base_image: str) -> dict[str, object]:
    container = {"name": "helper-pod", "image": base_image, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def _storage() -> Iterator[dict[str, object]]:
    """What the provisioner expects to find, and the default storage class."""
    namespace = {"namespace": PROVISIONER_NAMESPACE}
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PROVISIONER_NAMESPACE}}
    account = {"name": "local-path-provisioner-service-account", **namespace}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "local-path-config", **namespace},
        "data": {
            "setup": '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n',
            "teardown": '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n',
        },
    }
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    yield {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": default},
        "provisioner": "rancher.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def alternative_names() -> tuple[str, ...]:
    """The names that the API server's certificate carries."""
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    return (*(f"DNS:{name}" for name in names), *(f"IP:{ip}" for ip in ("127.0.0.1", NODE_IP, API_SERVICE_IP)))
