"""The command lines of a control plane's components."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.identities import SERVICE_CIDR, Identities


@dataclass(frozen=True, slots=True)
class ControllerManager:
    """How kube-controller-manager runs. Of each family at most one CIDR; masks are /24 and /64 unless flags differ."""

    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    controllers: tuple[str, ...] = ("*",)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """Where a component listens, and by which certificate."""

    identities: Identities
    bind: str
    port: int

    @property
    def flags(self) -> list[str]:
        serving = self.identities.serving
        return [
            f"--bind-address={self.bind}",
            f"--secure-port={self.port}",
            "--permit-port-sharing",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
        ]


def etcd_url(state: Path) -> str:
    """Sockets in the state folder: no ports to collide, and nobody else can reach them."""
    return f"unix://{state}/etcd.sock"


def etcd(state: Path, data: Path) -> list[str]:
    peer = f"unix://{state}/etcd-peer.sock"
    return [
        "--name=default",
        f"--data-dir={data}",
        f"--listen-client-urls={etcd_url(state)}",
        f"--advertise-client-urls={etcd_url(state)}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=8589934592",
        "--log-level=warn",
    ]


def apiserver(server: Server, state: Path, host: str, *, accounts: bool) -> list[str]:
    """host: the address that it tells of itself. accounts: whether somebody makes ServiceAccounts.

    Without a controller manager none exists, and the admission plugin would refuse every pod.
    """
    identities = server.identities
    admission = [] if accounts else ["--disable-admission-plugins=ServiceAccount"]
    # A Service's endpoint may not be a loopback address.
    endpoint = ["--endpoint-reconciler-type=none"] if ipaddress.ip_address(host).is_loopback else []
    return [
        f"--etcd-servers={etcd_url(state)}",
        *server.flags,
        f"--advertise-address={host}",
        f"--client-ca-file={identities.authority.certificate}",
        f"--token-auth-file={identities.token_file}",
        f"--kubelet-client-certificate={identities.kubelet_client.certificate}",
        f"--kubelet-client-key={identities.kubelet_client.key}",
        f"--kubelet-certificate-authority={identities.authority.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={identities.service_account_key}",
        f"--service-account-signing-key-file={identities.service_account_key}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--enable-priority-and-fairness=false",
        "--max-requests-inflight=0",
        "--max-mutating-requests-inflight=0",
        "--delete-collection-workers=8",
        "--profiling=false",
        *endpoint,
        *admission,
    ]


def controller_manager(server: Server, kubeconfig: Path, settings: ControllerManager) -> list[str]:
    return [
        *_client(server, kubeconfig),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={server.identities.service_account_key}",
        f"--root-ca-file={server.identities.authority.certificate}",
        "--allocate-node-cidrs",
        f"--cluster-cidr={','.join(settings.cluster_cidrs)}",
        f"--controllers={','.join(settings.controllers)}",
        *settings.flags,
    ]


def scheduler(server: Server, kubeconfig: Path) -> list[str]:
    return _client(server, kubeconfig)


def _client(server: Server, kubeconfig: Path) -> list[str]:
    """Of a component that works through the API server, alone and as fast as it can."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        *server.flags,
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
    ]
