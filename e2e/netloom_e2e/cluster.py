"""A real Kubernetes control plane on this machine: etcd, kube-apiserver and, where asked for, kube-controller-manager.

Nothing is simplified that a client could notice: TLS is verified, RBAC is on, admission runs. What differs from
production makes it fast: etcd does not wait for the disk, and no limit on requests holds a bench back.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import yaml

from netloom_e2e import binaries
from netloom_e2e.certificates import Authority, new_key
from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.processes import Process, StateFolder, sweep

START_SECONDS = 90.0
_POLL_SECONDS = 0.03
_SERVICE_CIDR = "10.96.0.0/12"
_SERVICE_ADDRESS = "10.96.0.1"
_ADMIN = "admin"
_ADMIN_GROUPS = ("system:masters",)


class ControlPlaneError(Exception):
    """A component did not start; the message ends with the tail of its log."""


class KubectlError(subprocess.CalledProcessError):
    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr}"


class HelmError(KubectlError):
    """Helm's refusal, with Helm's words."""


@dataclass(frozen=True, slots=True)
class ControllerManager:
    """How kube-controller-manager runs. Of each family at most one CIDR; masks are /24 and /64 unless flags differ."""

    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    controllers: tuple[str, ...] = ("*",)
    flags: tuple[str, ...] = ()


class ControlPlane:
    """Use as a context manager, or call `start` and `stop`. All methods block; call them in a thread from a coroutine.

    bind: the address the API server listens on. Give one of a bridge to reach it from network namespaces.
    hosts: further addresses and names that its certificate is valid for.
    controller_manager: True for the defaults; `start_controller_manager` does the same later.
    apiserver_flags: come last, so they win over the ones given here.
    """

    def __init__(
        self,
        name: str = "",
        *,
        bind: str = "127.0.0.1",
        hosts: Iterable[str] = (),
        controller_manager: ControllerManager | bool = False,
        apiserver_flags: Sequence[str] = (),
    ) -> None:
        self.bind = bind
        self.host = "127.0.0.1" if ipaddress.ip_address(bind).is_unspecified else bind
        self._name = name
        self._hosts = tuple(hosts)
        self._controller_manager = ControllerManager() if controller_manager is True else controller_manager or None
        self._apiserver_flags = tuple(apiserver_flags)
        self._processes: dict[str, Process] = {}
        self._reserved: list[socket.socket] = []
        self._folder: StateFolder | None = None
        self._writing = threading.Lock()
        """Nodes that start beside each other ask for one kubeconfig: of two keys the certificate is of one."""

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Life

    def start(self) -> None:
        """Returns when the API server (and the controller manager) are ready: about 3 s. Raises ControlPlaneError."""
        began = time.monotonic()
        try:
            if not self._folder:
                self.open()
            self._start_etcd()
            self.start_apiserver()
            if self._controller_manager:
                self.start_controller_manager(self._controller_manager)
            self.start_seconds = time.monotonic() - began
        except BaseException:
            self.stop()
            raise

    def open(self) -> None:
        """Its state folder and identities, for what is to be started beside it; `start` does it where nobody has."""
        binaries.prepare()
        sweep()
        self._folder = StateFolder(self._name)
        self.port = self._reserve_port()
        self._write_identities()

    def stop(self) -> None:
        """Kills everything and removes all files. May be called twice."""
        folder, self._folder = self._folder, None
        if folder:
            folder.close()
        self._processes.clear()
        self._free_ports()

    def detach(self) -> None:
        """Leaves it running when this process ends; `netloom-e2e down`, or `processes.destroy`, takes it away."""
        assert self._folder
        self._folder.detach()
        self._folder = None
        self._free_ports()

    @property
    def state(self) -> Path:
        assert self._folder, "the control plane is not running"
        return self._folder.path

    @property
    def folder(self) -> StateFolder:
        """To spawn processes that are to vanish together with this control plane."""
        assert self._folder, "the control plane is not running"
        return self._folder

    @property
    def url(self) -> str:
        return f"https://{_bracketed(self.host)}:{self.port}"

    @property
    def pids(self) -> dict[str, int]:
        """Of the components that run, for what the kernel knows of them."""
        return {name: process.pid for name, process in self._processes.items()}

    # Outages

    def start_apiserver(self) -> None:
        """On the same port and data as before, if it was killed."""
        process = self._spawn("kube-apiserver", self._apiserver_arguments())
        client = self.client
        self._wait_until(process, lambda: client.request("GET", "/readyz"))

    def kill_apiserver(self) -> None:
        """SIGKILL: connections are reset, new ones refused."""
        self._processes.pop("kube-apiserver").kill()

    def restart_apiserver(self) -> None:
        self.kill_apiserver()
        self.start_apiserver()

    def pause_apiserver(self) -> None:
        """SIGSTOP: connections stay open and are accepted, but nothing is ever answered."""
        self._processes["kube-apiserver"].send(signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        self._processes["kube-apiserver"].send(signal.SIGCONT)

    # Restores

    def backup(self) -> Path:
        """A copy of etcd's data as it is at this moment, as after a power cut: etcd stands still meanwhile."""
        taken = Path(tempfile.mkdtemp(prefix="backup-", dir=self.state))
        etcd = self._processes["etcd"]
        etcd.send(signal.SIGSTOP)
        try:
            shutil.copytree(self._etcd_data, taken, dirs_exist_ok=True)
        finally:
            etcd.send(signal.SIGCONT)
        return taken

    def stop_for_restore(self, backup: Path) -> None:
        """Kills API server and etcd and puts the backup in place of the data; `start_restored` comes next."""
        self.kill_apiserver()
        self._replace_data(backup)

    def start_restored(self) -> None:
        """Starts what `stop_for_restore` killed; returns when the API server is ready."""
        self._start_etcd()
        self.start_apiserver()

    def restore(self, backup: Path) -> None:
        """As the Kubernetes documentation says: no API server runs while etcd is given its older data."""
        self.stop_for_restore(backup)
        self.start_restored()

    def restore_etcd_alone(self, backup: Path) -> None:
        """As it says not to: the API server lives on, and finds its etcd in the past."""
        self._replace_data(backup)
        self._start_etcd()

    def _replace_data(self, backup: Path) -> None:
        self._processes.pop("etcd").kill()
        shutil.rmtree(self._etcd_data)
        shutil.copytree(backup, self._etcd_data)

    @property
    def _etcd_data(self) -> Path:
        return self.state / "etcd"

    def present(self, authority: Authority) -> None:
        """From its next connection on the API server shows a certificate of this authority, as after a rotated CA.

        Its own kubeconfigs trust both authorities from now on; client certificates may be of either.
        """
        pair = authority.issue("serving", "kube-apiserver", hosts=self._serving_hosts)
        with self._authority.certificate.open("ab") as bundle:
            bundle.write(authority.certificate.read_bytes())
        for new, old in ((pair.certificate, self._serving.certificate), (pair.key, self._serving.key)):
            old.write_bytes(new.read_bytes())

    # Clients

    @property
    def authority(self) -> Authority:
        """Of the clients' certificates, and of the API server's from the start."""
        return self._authority

    def kubeconfig(self, user: str = _ADMIN, groups: Iterable[str] = (), *, host: str = "") -> Path:
        """Writes a kubeconfig for any user, who is granted nothing but what RBAC grants the user and the groups.

        `admin` is in system:masters. host: another address of the API server, as seen from a network namespace.
        """
        groups = tuple(groups)
        file = "+".join(quote(part, safe="") for part in (user, *groups)) + (f"@{quote(host, safe='')}" if host else "")
        path = self.state / "kubeconfigs" / f"{file}.yaml"
        with self._writing:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                pair = self._authority.issue(file, user, groups=groups or (_ADMIN_GROUPS if user == _ADMIN else ()))
                server = f"https://{_bracketed(host)}:{self.port}" if host else self.url
                path.write_text(
                    yaml.safe_dump(_kubeconfig(server, self._authority.certificate, user, pair.certificate, pair.key))
                )
        return path

    @property
    def kubectl_path(self) -> Path:
        return binaries.find("kubectl")

    def kubectl(
        self,
        *args: str | Path,
        input: str | None = None,
        check: bool = True,
        user: str = _ADMIN,
        groups: Iterable[str] = (),
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs the real kubectl; raises KubectlError where `check` is set and it fails. env: beside this process's."""
        command = [str(self.kubectl_path), *(str(arg) for arg in args)]
        environment = os.environ | {
            "KUBECONFIG": str(self.kubeconfig(user, groups)),
            "KUBECACHEDIR": str(self.state / "kubectl-cache"),
            "KUBERC": "off",
            **(env or {}),
        }
        return _run(command, environment, input, timeout, KubectlError if check else None)

    def helm(
        self,
        *args: str | Path,
        input: str | None = None,
        check: bool = True,
        user: str = _ADMIN,
        groups: Iterable[str] = (),
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs the real Helm, which is built first where it is missing; raises HelmError where `check` is set."""
        command = [str(binaries.helm()), *(str(arg) for arg in args)]
        homes = {f"HELM_{kind}_HOME": str(self.state / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        environment = os.environ | homes | {"KUBECONFIG": str(self.kubeconfig(user, groups))}
        return _run(command, environment, input, timeout, HelmError if check else None)

    @property
    def client(self) -> Client:
        """A bare HTTP client with the admin's rights."""
        return Client.from_kubeconfig(self.kubeconfig())

    def client_of(self, user: str, groups: Iterable[str] = ()) -> Client:
        """A bare HTTP client with the rights of a user and groups."""
        return Client.from_kubeconfig(self.kubeconfig(user, groups))

    def delete_all(self, *resources: str, namespace: str = "") -> None:
        """Removes all objects of resources such as `nodes` or `netloomnodes.v1alpha1.netloom.dev`, finalizers or not.

        To be called between tests that share a control plane, when what was started by the test has stopped.
        """
        for resource in resources:
            self.client.delete_collection(resource, namespace)

    # Components

    def start_controller_manager(self, settings: ControllerManager | None = None) -> None:
        """Best called after the CRDs are there: its garbage collector looks for new kinds only every 30 s.

        Pods need it from the start (`ControlPlane(controller_manager=True)`): else ServiceAccount admission is off.
        """
        settings = settings or ControllerManager()
        port = self._reserve_port()
        arguments = [
            f"--kubeconfig={self.kubeconfig('system:kube-controller-manager')}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self._authority.certificate}",
            f"--bind-address={self.bind}",
            f"--secure-port={port}",
            "--permit-port-sharing",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            "--allocate-node-cidrs",
            f"--cluster-cidr={','.join(settings.cluster_cidrs)}",
            f"--controllers={','.join(settings.controllers)}",
            "--kube-api-qps=2000",
            "--kube-api-burst=4000",
            *settings.flags,
        ]
        process = self._spawn("kube-controller-manager", arguments)

        client = Client.from_kubeconfig(self.kubeconfig(), port=port)
        self._wait_until(process, lambda: client.request("GET", "/healthz"))

    def start_scheduler(self) -> None:
        """Returns when it is ready to place pods on nodes."""
        port = self._reserve_port()
        arguments = [
            f"--kubeconfig={self.kubeconfig('system:kube-scheduler')}",
            "--leader-elect=false",
            f"--bind-address={self.bind}",
            f"--secure-port={port}",
            "--permit-port-sharing",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            "--kube-api-qps=2000",
            "--kube-api-burst=4000",
        ]
        process = self._spawn("kube-scheduler", arguments)
        client = Client.from_kubeconfig(self.kubeconfig(), port=port)
        self._wait_until(process, lambda: client.request("GET", "/healthz"))

    def stop_controller_manager(self) -> None:
        """Kills it, so that tests that share the control plane and come later are alone again."""
        self._processes.pop("kube-controller-manager").kill()

    def _start_etcd(self) -> None:
        # Sockets in the state folder: no ports to collide, and nobody else can reach them.
        peer = f"unix://{self.state}/etcd-peer.sock"
        arguments = [
            "--name=default",
            f"--data-dir={self._etcd_data}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--quota-backend-bytes=8589934592",
            "--log-level=warn",
        ]
        self._spawn("etcd", arguments)

    @property
    def _etcd_url(self) -> str:
        return f"unix://{self.state}/etcd.sock"

    def _apiserver_arguments(self) -> list[str]:
        # Without a controller manager no ServiceAccount exists, and the admission plugin would refuse every pod.
        admission = [] if self._controller_manager else ["--disable-admission-plugins=ServiceAccount"]
        # A Service's endpoint may not be a loopback address.
        endpoint = ["--endpoint-reconciler-type=none"] if ipaddress.ip_address(self.host).is_loopback else []
        return [
            f"--etcd-servers={self._etcd_url}",
            f"--bind-address={self.bind}",
            f"--advertise-address={self.host}",
            f"--secure-port={self.port}",
            "--permit-port-sharing",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self._authority.certificate}",
            f"--token-auth-file={self._token_file}",
            f"--kubelet-client-certificate={self._kubelet_client.certificate}",
            f"--kubelet-client-key={self._kubelet_client.key}",
            f"--kubelet-certificate-authority={self._authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            f"--service-cluster-ip-range={_SERVICE_CIDR}",
            "--enable-priority-and-fairness=false",
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=0",
            "--delete-collection-workers=8",
            "--profiling=false",
            *endpoint,
            *admission,
            *self._apiserver_flags,
        ]

    def _spawn(self, program: str, arguments: Sequence[str]) -> Process:
        process = self._processes[program] = self.folder.spawn(program, [binaries.find(program), *arguments])
        return process

    def _wait_until(self, process: Process, probe: Callable[[], object]) -> None:
        """Until the probe of a component that was just started raises nothing."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            for needed in dict.fromkeys((self._processes["etcd"], process)):  # the cause before what follows from it
                if needed.status is not None:
                    raise ControlPlaneError(f"{needed.name} ended with status {needed.status}:\n{needed.tail()}")
            try:
                probe()
                return
            except (OSError, http.client.HTTPException, ApiFailure) as error:
                if time.monotonic() > deadline:
                    message = f"{process.name} is not ready after {START_SECONDS:.0f} s: {error}\n{process.tail()}"
                    raise ControlPlaneError(message) from error
            time.sleep(_POLL_SECONDS)

    def _write_identities(self) -> None:
        folder = self.state / "certificates"
        self._authority = Authority(folder, "netloom-e2e")
        names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            _SERVICE_ADDRESS,
        ]
        self._serving_hosts = list(dict.fromkeys([*names, self.host, *self._hosts]))
        self._serving = self._authority.issue("serving", "kube-apiserver", hosts=self._serving_hosts)
        self._kubelet_client = self._authority.issue("kubelet-client", "kube-apiserver", groups=_ADMIN_GROUPS)
        self._service_account_key = new_key(folder / "service-account.key")
        self.token = secrets.token_hex(16)
        self._token_file = folder / "tokens.csv"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(f'{self.token},{_ADMIN},{_ADMIN},"{",".join(_ADMIN_GROUPS)}"\n')

    def _reserve_port(self) -> int:
        """A free port that stays ours while the server on it is down: bound, but not listening, so it refuses."""
        family = socket.AF_INET6 if ":" in self.bind else socket.AF_INET
        reserved = socket.socket(family, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.append(reserved)
        try:
            reserved.bind((self.bind, 0))
        except OSError as error:
            raise ControlPlaneError(f"cannot listen on {self.bind}: {error.strerror}") from error
        port = reserved.getsockname()[1]
        assert isinstance(port, int)
        return port

    def _free_ports(self) -> None:
        for reserved in self._reserved:
            reserved.close()
        self._reserved.clear()


def _run(
    command: list[str],
    environment: Mapping[str, str],
    input: str | None,
    timeout: float,
    failure: type[KubectlError] | None,
) -> subprocess.CompletedProcess[str]:
    """failure: what to raise where the command fails."""
    result = subprocess.run(command, input=input, capture_output=True, text=True, env=environment, timeout=timeout)
    if failure and result.returncode != 0:
        raise failure(result.returncode, command, result.stdout, result.stderr)
    return result


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _kubeconfig(server: str, authority: Path, user: str, certificate: Path, key: Path) -> dict[str, object]:
    """Refers to files: from data inside it clients make temporary files, which a killed one leaves behind."""
    credentials = {"client-certificate": str(certificate), "client-key": str(key)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "netloom-e2e",
        "contexts": [{"name": "netloom-e2e", "context": {"cluster": "netloom-e2e", "user": user}}],
        "clusters": [{"name": "netloom-e2e", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": user, "user": credentials}],
    }
