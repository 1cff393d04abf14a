"""A real Kubernetes control plane on this machine: etcd, kube-apiserver and, where asked for, kube-controller-manager.

Nothing is simplified that a client could notice: TLS is verified, RBAC is on, admission runs. What differs from
production makes it fast: etcd does not wait for the disk, and no limit on requests holds a bench back.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from netloom_e2e import binaries, components
from netloom_e2e.certificates import Authority
from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.components import ControllerManager, Server
from netloom_e2e.identities import ADMIN, Identities
from netloom_e2e.life import Started
from netloom_e2e.namespaces import wait_for
from netloom_e2e.processes import Process, StateFolder, sweep

START_SECONDS = 90.0
_POLL_SECONDS = 0.03


class ControlPlaneError(Exception):
    """A component did not start; the message ends with the tail of its log."""


class KubectlError(subprocess.CalledProcessError):
    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr}"


class HelmError(KubectlError):
    """Helm's refusal, with Helm's words."""


class ControlPlane(Started):
    """All methods block; call them in a thread from a coroutine.

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
        self._clients: dict[Path, Client] = {}

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
        self._identities = Identities(self.state, [self.host, *self._hosts])

    def stop(self) -> None:
        """Kills everything and removes all files. May be called twice."""
        self._forget_clients()
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

    def apiserver_arguments(self) -> list[str]:
        """Also of a second one beside the same etcd, in another network namespace."""
        accounts = self._controller_manager is not None
        arguments = components.apiserver(self._server(self.port), self.state, self.host, accounts=accounts)
        return [*arguments, *self._apiserver_flags]

    # Outages

    def start_apiserver(self) -> None:
        """On the same port and data as before, if it was killed."""
        process = self._spawn("kube-apiserver", self.apiserver_arguments())
        client = self.client
        self._wait_until(process, lambda: client.request("GET", "/readyz"))

    def kill_apiserver(self) -> None:
        """SIGKILL: connections are reset, new ones refused."""
        self._processes.pop("kube-apiserver").kill()

    def pause_apiserver(self) -> None:
        """SIGSTOP: connections stay open and are accepted, but nothing is ever answered."""
        server = self._processes["kube-apiserver"]
        server.send(signal.SIGSTOP)
        tasks = Path(f"/proc/{server.pid}/task")
        # One thread after another stops, and one that did not yet may answer.
        wait_for("the API server to stand still", lambda: all(map(_is_stopped, tasks.iterdir())))

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
        self._identities.present(authority)
        self._forget_clients()

    # Clients

    @property
    def authority(self) -> Authority:
        """Of the clients' certificates, and of the API server's from the start."""
        return self._identities.authority

    @property
    def token(self) -> str:
        """The admin's."""
        return self._identities.token

    def kubeconfig(self, user: str = ADMIN, groups: Iterable[str] = (), *, host: str = "") -> Path:
        """Writes a kubeconfig for any user, who is granted nothing but what RBAC grants the user and the groups.

        `admin` is in system:masters. host: another address of the API server, as seen from a network namespace.
        """
        server = f"https://{_bracketed(host)}:{self.port}" if host else self.url
        return self._identities.kubeconfig(server, user, tuple(groups), host=host)

    @property
    def kubectl_path(self) -> Path:
        return binaries.find("kubectl")

    def kubectl(
        self,
        *args: str | Path,
        input: str | None = None,
        check: bool = True,
        user: str = ADMIN,
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
        user: str = ADMIN,
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
        return self.client_of(ADMIN)

    def client_of(self, user: str, groups: Iterable[str] = ()) -> Client:
        """A bare HTTP client with the rights of a user and groups: the same one each time."""
        kubeconfig = self.kubeconfig(user, groups)
        if kubeconfig not in self._clients:
            self._clients[kubeconfig] = Client.from_kubeconfig(kubeconfig)
        return self._clients[kubeconfig]

    def _forget_clients(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

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
        server = self._server(self._reserve_port())
        kubeconfig = self.kubeconfig("system:kube-controller-manager")
        arguments = components.controller_manager(server, kubeconfig, settings or ControllerManager())
        self._start_client("kube-controller-manager", arguments, server)

    def start_scheduler(self) -> None:
        """Returns when it is ready to place pods on nodes."""
        server = self._server(self._reserve_port())
        arguments = components.scheduler(server, self.kubeconfig("system:kube-scheduler"))
        self._start_client("kube-scheduler", arguments, server)

    def _start_client(self, program: str, arguments: Sequence[str], server: Server) -> None:
        process = self._spawn(program, arguments)
        client = Client.from_kubeconfig(self.kubeconfig(), port=server.port)
        self._wait_until(process, lambda: client.request("GET", "/healthz"))

    def stop_controller_manager(self) -> None:
        """Kills it, so that tests that share the control plane and come later are alone again."""
        self._processes.pop("kube-controller-manager").kill()

    def _start_etcd(self) -> None:
        self._spawn("etcd", components.etcd(self.state, self._etcd_data))

    def _server(self, port: int) -> Server:
        return Server(self._identities, self.bind, port)

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
    # Who ends in a moment need not tidy up its memory: a quarter of what a call costs.
    environment = {**environment, "GOGC": "off"}
    result = subprocess.run(command, input=input, capture_output=True, text=True, env=environment, timeout=timeout)
    if failure and result.returncode != 0:
        raise failure(result.returncode, command, result.stdout, result.stderr)
    return result


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
