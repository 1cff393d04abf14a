"""A node of a cluster: a kubelet, containerd and kube-proxy in namespaces of their own, as on a machine of its own.

It is the network namespace of a lab's machine, and beside it a mount, uts, ipc and pid namespace that `node-init.sh`
furnishes: control groups, /etc, /opt, /var/lib, /var/log, /run, /sys and /proc are the node's. What runs in it ends
with its process 1.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from netloom_e2e import belongings, binaries, cgroups
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.image_store import lay_out
from netloom_e2e.machines import Machine
from netloom_e2e.namespaces import run, wait_for
from netloom_e2e.processes import Process

DNS_ADDRESS = "10.96.0.10"
DNS_DOMAIN = "cluster.local"
_INIT = Path(__file__).parent / "node-init.sh"
_START_SECONDS = 30.0
_SOCKET = "/run/containerd/containerd.sock"


class KubeletNode:
    """One node. `machine` is its network namespace.

    cluster_cidrs: what kube-proxy takes for pods' addresses. pause: the image that holds pods' namespaces. store: of
    all images that its pods ask for (`image_store`): nothing is pulled. taints: keys of those that the Node is
    registered with (NoSchedule).
    """

    def __init__(
        self,
        plane: ControlPlane,
        machine: Machine,
        cluster_cidrs: Sequence[str],
        pause: str,
        store: Path,
        taints: Sequence[str] = (),
    ) -> None:
        self.plane = plane
        self.machine = machine
        self.name = machine.node
        self.folder = plane.state / "nodes" / self.name
        self.cgroup = machine.name
        self.cluster_cidrs = tuple(cluster_cidrs)
        self._pause = pause
        self._taints = tuple(taints)
        self._store = store
        self._processes: dict[str, Process] = {}

    # Life

    def boot(self) -> None:
        """Its namespaces and containerd. After `power_off` it finds its disk as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "ready").unlink(missing_ok=True)
        if not (images := self.folder / "plain/var/lib/containerd").exists():
            lay_out(self._store, images)
        belongings.add_cgroup(self.plane.state, self.cgroup)
        cgroups.make(self.cgroup)
        unshare = [
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]
        command = [*self.machine.enter, *unshare, "--", str(_INIT), self.name, str(self.folder)]
        init = self._processes["init"] = self.plane.folder.spawn(f"{self.name}-init", command)
        self._wait("its namespaces", init, (self.folder / "ready").exists)
        self.start_containerd()

    def power_off(self) -> None:
        """As if the plug was pulled: all processes end at once, and mounts go. Devices are the lab's."""
        self._processes.pop("init").kill()
        for process in self._processes.values():
            process.popen.wait(_START_SECONDS)
        self._processes.clear()
        cgroups.remove(self.cgroup)

    def start_containerd(self) -> None:
        """Returns when it answers."""
        config = self.folder / "containerd.toml"
        config.write_text(_CONTAINERD.format(socket=_SOCKET, pause=self._pause))
        process = self._spawn("containerd", ["containerd", "--config", str(config)])
        self._wait("containerd", process, lambda: self._answers("ctr", "version"))

    def start_kubelet(self) -> None:
        """Returns at once; it registers the Node when it can."""
        pair = self.plane.authority.issue(
            f"kubelet-{self.name}", f"system:node:{self.name}", hosts=[self.name, *self.machine.underlay]
        )
        config = self.folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(self._kubelet_configuration(str(pair.certificate), str(pair.key))))
        kubeconfig = self.plane.kubeconfig(f"system:node:{self.name}", ["system:nodes"])
        flags = [
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self.machine.underlay)}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
        ]
        self._spawn("kubelet", [binaries.find("kubelet"), *flags])

    def start_proxy(self) -> None:
        """kube-proxy, which makes Services work; returns at once."""
        flags = [
            f"--kubeconfig={self.plane.kubeconfig('system:kube-proxy')}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={','.join(self.cluster_cidrs)}",
            # Of the whole machine, so not a node's to set.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]
        self._spawn("kube-proxy", [binaries.find("kube-proxy"), *flags])

    def kill(self, program: str) -> None:
        """SIGKILL to `kubelet`, `containerd` or `kube-proxy`; returns when it is dead. Pods live on."""
        process = self._processes.pop(program)
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.popen.wait(_START_SECONDS)

    # Within

    @property
    def pid(self) -> int:
        """Of its process 1, as the machine counts."""
        return int((self.folder / "pid").read_text())

    @property
    def root(self) -> Path:
        """Its file system, to be read and written from outside."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def enter(self) -> tuple[str, ...]:
        """Words to put before a command to run it in all namespaces of the node."""
        return ("nsenter", f"--target={self.pid}", *["--net", "--mount", "--uts", "--ipc", "--pid", "--wdns=/", "--"])

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """Run a command of the machine in the node."""
        return run(*self.enter, *argv, check=check, timeout=timeout)

    def install_plugins(self) -> None:
        """The CNI's standard plugins, as a distribution's package puts them on a machine."""
        plugins = self.root / "opt" / "cni" / "bin"
        for plugin in binaries.cni_plugins().iterdir():
            shutil.copy2(plugin, plugins / plugin.name)

    def configure_network(self, configuration: object, name: str = "10-cluster.conflist") -> None:
        """A network configuration for containerd, put there whole."""
        folder = self.root / "etc" / "cni" / "net.d"
        (folder / ".new").write_text(json.dumps(configuration))
        (folder / ".new").rename(folder / name)

    def pod_cidrs(self) -> tuple[str, ...]:
        """Of its Node; the controller manager gives them. Waits for them."""
        found: list[str] = []

        def given() -> bool:
            with suppress(ApiFailure):
                found[:] = self.plane.client.request("GET", f"/api/v1/nodes/{self.name}")["spec"].get("podCIDRs", [])
            return bool(found)

        wait_for(f"pod CIDRs of {self.name}", given, deadline=_START_SECONDS)
        return tuple(found)

    def pod_processes(self, uid: str) -> list[int]:
        """The processes of a pod, as the machine counts them."""
        found: set[int] = set()
        for hierarchy in cgroups.hierarchies():
            for group in (hierarchy / self.cgroup).glob(f"kubepods/**/pod{uid}/*/cgroup.procs"):
                found |= {int(pid) for pid in group.read_text().split()}
        return sorted(found)

    # Pieces

    def _spawn(self, program: str, command: Sequence[str | Path]) -> Process:
        process = self.plane.folder.spawn(f"{self.name}-{program}", [*self.enter, *command])
        self._processes[program] = process
        return process

    def _answers(self, *argv: str) -> bool:
        return subprocess.run([*self.enter, *argv], capture_output=True, timeout=30, check=False).returncode == 0

    def _wait(self, what: str, process: Process, condition: Callable[[], object]) -> None:
        def there() -> bool:
            if process.status is not None:
                raise RuntimeError(f"{process.name} ended with status {process.status}:\n{process.tail()}")
            return bool(condition())

        try:
            wait_for(f"{what} on {self.name}", there, deadline=_START_SECONDS)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{process.tail()}") from error

    def _kubelet_configuration(self, certificate: str, key: str) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": certificate,
            "tlsPrivateKeyFile": key,
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": DNS_DOMAIN,
            "resolvConf": "",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "evictionHard": {"memory.available": "1%", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            # 110 of others' on a node, beside those of the cluster itself.
            "maxPods": 130,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "registerWithTaints": [{"key": key, "effect": "NoSchedule"} for key in self._taints],
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "eventRecordQPS": 0,
        }


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


_CONTAINERD = """\
version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  # Who lacks CAP_SYS_RESOURCE, as in a container, may not lower a score: without it every pod fails there.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
"""
