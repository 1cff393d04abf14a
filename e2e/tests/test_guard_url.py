"""The guard on a URL: docs/guard-url.md as it stands, on two control-plane nodes; and URLs that change."""

import configparser
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from netloom.webhook.names import NAME, Scope
from netloom_e2e import binaries
from netloom_e2e.certificates import Authority
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.components import ControllerManager
from netloom_e2e.guard import Guard, Guards, install_cilium, uninstall_cilium
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.namespaces import Namespace, add, remove, run
from netloom_e2e.operators import free_port
from netloom_e2e.processes import Process

PAGE = Path(__file__).parents[2] / "docs" / "guard-url.md"
POOL = "ciliumpodippools.cilium.io"
OBJECTS = [
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cilium-config", "namespace": "kube-system"},
        "data": {"ipam": "multi-pool", "debug": "false"},
    },
    {
        "apiVersion": "cilium.io/v2alpha1",
        "kind": "CiliumPodIPPool",
        "metadata": {"name": "default"},
        "spec": {"ipv4": {"cidrs": ["10.0.0.0/8"], "maskSize": 24}},
    },
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": "n1"},
        "spec": {"ipam": {"pools": {"allocated": [{"pool": "default", "cidrs": ["10.0.7.0/24"]}]}}},
    },
]
BY_WEBHOOK = 'admission webhook "cilium-pool.guard.netloom.dev" denied the request: CiliumPodIPPool default: '


def steps(page: Path) -> dict[str, str]:
    """What a page says to type, by heading."""
    found: dict[str, str] = {}
    for part in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        found[heading] = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    return {heading: commands for heading, commands in found.items() if commands}


SET_UP = """
mount -t tmpfs tmpfs "$1"
cp -a /etc "$1/etc"
mkdir -p "$1/etc/kubernetes/manifests" "$1/etc/systemd/system" "$1/bin"
ln -s "$2" "$1/bin/netloom"
ln -s "$3" "$1/bin/kubectl"
printf '#!/bin/sh\\necho "$@" >> /etc/systemctl-calls\\n' > "$1/bin/systemctl"
chmod +x "$1/bin/systemctl"
mount --bind "$1/etc" /etc
mount --bind "$1/bin" /usr/local/bin
echo ready > /etc/machine-is-ready
exec sleep infinity
"""


@dataclass(frozen=True)
class Node:
    """A control-plane node as far as the page can tell: loopback, /etc and /usr/local/bin of its own. What it runs ends
    with the control plane."""

    place: Namespace
    plane: ControlPlane
    holder: Process

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 90) -> str:
        return run(*self.command(*argv), check=check, timeout=timeout)

    def type(self, commands: str) -> str:
        """As somebody does who copies them into a terminal; in a folder that both nodes share."""
        variables = [f"KUBECONFIG={self.plane.kubeconfig()}", f"KUBECACHEDIR={self.plane.state}/kubectl-cache"]
        shell = ["bash", "-c", f"cd {self.plane.state}\nset -eu -o pipefail\n{commands}"]
        return self.run("env", *variables, *shell)

    def kubectl(self, *argv: str, check: bool = True) -> str:
        """What it says, be it a refusal or not."""
        kubectl = shlex.join(["kubectl", *argv])
        return self.type(kubectl if check else f"{kubectl} 2>&1 || true")

    def start(self, name: str, command: list[str]) -> Process:
        return self.plane.folder.spawn(name, self.command(*command), env=environment())

    def reviews(self) -> float:
        """How often its guard was asked about pools."""
        metrics = self.run("curl", "-s", "http://127.0.0.1:9965/metrics")
        found = re.findall(r'^netloom_guard_reviews_total\{.*resource="ciliumpodippools".*\} (\S+)$', metrics, re.M)
        return sum(map(float, found))


@contextmanager
def control_plane_node(name: str, plane: ControlPlane) -> Iterator[tuple[Namespace, Callable[[], Node]]]:
    """Its network, and the rest of it once the control plane has a folder."""
    place = Namespace(name)
    remove([name])
    add(place)

    def furnished() -> Node:
        state = plane.state / name
        state.mkdir()
        netloom = Path(sys.executable).with_name("netloom")
        script = ["sh", "-eu", "-c", SET_UP, "sh", str(state), str(netloom), str(plane.kubectl_path)]
        command = [*place.enter, "unshare", "--mount", "--propagation=private", "--", *script]
        node = Node(place, plane, plane.folder.spawn(name, command))
        wait_for("the node is there", lambda: "ready" in node.run("cat", "/etc/machine-is-ready", check=False))
        return node

    try:
        yield place, furnished
    finally:
        remove([name])


@pytest.fixture
def nodes(control_plane_binaries: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes, each with an API server at the same address of its own loopback device, beside one etcd."""
    plane = ControlPlane()
    with control_plane_node("url-1", plane) as (one, first), control_plane_node("url-2", plane) as (two, second):
        try:
            one.inside(lambda: _prepare(plane))
            yield first(), _second_api_server(plane, second(), two)
        finally:
            plane.stop()


def _prepare(plane: ControlPlane) -> None:
    plane.start()
    plane.start_controller_manager(ControllerManager(controllers=("serviceaccount-token-controller",)))
    install_cilium(plane)
    for manifest in OBJECTS:
        plane.kubectl("apply", "-f", "-", input=json.dumps(manifest))


def _second_api_server(plane: ControlPlane, node: Node, place: Namespace) -> Node:
    command = [*place.enter, str(binaries.find("kube-apiserver")), *plane.apiserver_arguments()]
    plane.folder.spawn("kube-apiserver-2", command)
    wait_for("its API server is ready", lambda: "ok" in node.kubectl("get", "--raw=/readyz", check=False), deadline=60)
    return node


def shrink(node: Node) -> str:
    patch = json.dumps({"spec": {"ipv4": {"cidrs": ["10.128.0.0/9"]}}})
    return node.kubectl("patch", POOL, "default", "--type=merge", f"--patch={patch}", check=False)


def grow(node: Node, cidr: str) -> str:
    patch = json.dumps({"spec": {"ipv4": {"cidrs": ["10.0.0.0/8", cidr]}}})
    return node.kubectl("patch", POOL, "default", "--type=merge", f"--patch={patch}", check=False)


def guards_its_api_server(node: Node, cidr: str) -> None:
    """What may be, is, and what may not, is refused; on the word of the guard of this very node."""
    asked = node.reviews()
    assert grow(node, cidr) == "ciliumpodippool.cilium.io/default patched\n"
    assert BY_WEBHOOK in shrink(node)
    assert node.reviews() == asked + 2
    mode = ["--type=merge", "--dry-run=server", '--patch={"data": {"ipam": "kubernetes"}}']
    refusal = node.kubectl("patch", "configmap", "cilium-config", "-n", "kube-system", *mode, check=False)
    assert "the IPAM mode of a live cluster cannot change" in refusal


def test_the_page_as_it_stands(nodes: tuple[Node, Node]) -> None:
    pod_node, unit_node = nodes
    page = steps(PAGE)
    assert list(page) == [
        "1. Rights and webhooks",
        "2. Credentials",
        "3. Files",
        "4. As a static pod",
        "4. Or under systemd",
        "5. Look",
        "Away again",
    ]
    pod_node.type(page["1. Rights and webhooks"])
    wait_for("asked for", lambda: "failed calling webhook" in shrink(pod_node), deadline=20)
    pod_node.type(page["2. Credentials"])
    for node in nodes:
        node.type(page["3. Files"])
        reader = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"]
        assert "token: ey" in node.run(*reader, "cat", "/etc/netloom-guard/kubeconfig")
        stranger = ["setpriv", "--reuid=65531", "--regid=65531", "--clear-groups"]
        assert node.run(*stranger, "cat", "/etc/netloom-guard/kubeconfig", check=False) == ""

    pod_node.type(page["4. As a static pod"])
    manifest = "/etc/kubernetes/manifests/netloom-guard.yaml"
    pod_node.kubectl("create", "--dry-run=server", "--validate=strict", f"--filename={manifest}")
    pod = yaml.safe_load(pod_node.run("cat", manifest))["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert (pod["hostNetwork"], pod["securityContext"]["runAsUser"]) == (True, 65532)
    assert volume["hostPath"]["path"] == container["volumeMounts"][0]["mountPath"], "as the guard finds it here"
    guard = pod_node.start("guard-pod", container["command"])

    unit_node.type(page["4. Or under systemd"])
    assert unit_node.run("cat", "/etc/systemctl-calls") == "daemon-reload\nenable --now netloom-guard.service\n"
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read_string(unit_node.run("cat", "/etc/systemd/system/netloom-guard.service"))
    unit_node.start("guard-unit", shlex.split(unit["Service"]["ExecStart"]))

    for node, cidr in zip(nodes, ("11.0.0.0/8", "12.0.0.0/8"), strict=True):
        assert "[+] certificates" in node.type(page["5. Look"])
        wait_for("its API server trusts it", lambda: "failed calling" not in shrink(node), deadline=20)  # noqa: B023
        guards_its_api_server(node, cidr)

    guard.kill()
    assert "failed calling webhook" in grow(pod_node, "13.0.0.0/8"), "the other node's guard is not asked"
    guards_its_api_server(unit_node, "14.0.0.0/8")
    pod_node.type(page["Away again"])
    wait_for("allowed again", lambda: "patched" in grow(pod_node, "13.0.0.0/8"), deadline=20)


@pytest.fixture
def guards(control_plane: ControlPlane) -> Iterator[Guards]:
    """Of Cilium only; nothing installed, nothing started yet."""
    install_cilium(control_plane)
    for manifest in OBJECTS:
        control_plane.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    guards = Guards(control_plane, Scope(guarded="cilium"))
    yield guards
    guards.kill()
    guards.uninstall()
    uninstall_cilium(control_plane)
    control_plane.kubectl("delete", "--ignore-not-found", "configmap", "cilium-config", "-n", "kube-system")


def dry(plane: ControlPlane, *cidrs: str) -> str:
    """What is said to other CIDRs of the pool; "" if nothing."""
    patch = json.dumps({"spec": {"ipv4": {"cidrs": cidrs}}})
    arguments = ("patch", POOL, "default", "--type=merge", f"--patch={patch}", "--dry-run=server")
    return plane.kubectl(*arguments, check=False).stderr


def asked_at(plane: ControlPlane, guards: Guards, guard: Guard, url: str) -> None:
    """The webhooks get another URL, and what may be is allowed and what may not is refused at once again."""
    guards.url = url
    guards.install()
    wait_for(f"asked at {url}", lambda: dry(plane, "10.0.0.0/8", "11.0.0.0/8") == "", deadline=30)
    before = guard.metric("netloom_guard_reviews_total", resource="ciliumpodippools")
    assert BY_WEBHOOK in dry(plane, "10.128.0.0/9")
    assert guard.metric("netloom_guard_reviews_total", resource="ciliumpodippools") == before + 1
    wait_for("the guard says so", guard.ready, deadline=30)


def test_a_url_that_changes_needs_no_restart(control_plane: ControlPlane, guards: Guards) -> None:
    """IPv4, IPv6 and a name; and replicas at different local addresses, of whom each could be called at any of them."""
    guards.install()
    guard = guards.start(f"--address=:{guards.port}")
    guards.wait_in_force(guard)
    other = guards.start(f"--address=127.0.0.2:{(port := free_port())}", port=port)
    for url in (f"https://[::1]:{guards.port}", f"https://localhost:{guards.port}", f"https://127.0.0.1:{guards.port}"):
        asked_at(control_plane, guards, guard, url)
    wait_for("the other is ready", other.ready, deadline=30)
    asked_at(control_plane, guards, other, f"https://127.0.0.2:{port}")
    assert guard.metric("netloom_guard_ca_bundle_writes_total") == 1, "it was one CA all the time"


def test_a_certificate_of_ones_own_that_is_not_for_the_address(
    control_plane: ControlPlane, guards: Guards, tmp_path: Path
) -> None:
    """As `--url` was documented: it said that it was ready, while every guarded write failed."""
    authority = Authority(tmp_path, "ours")

    def issue(*hosts: str) -> list[str]:
        pair = authority.issue("tls", "guard", hosts=hosts)
        return [f"--tls-cert-file={pair.certificate}", f"--tls-key-file={pair.key}"]

    guards.install()
    guard = guards.start(*issue("guard.test"), f"--tls-ca-file={authority.certificate}")
    wait_for("it says which", lambda: "and not for 127.0.0.1, where API servers call" in guard.readiness(), deadline=30)
    assert f"tls.crt is for guard.test, and not for 127.0.0.1, where API servers call ({CONFIGURATION}" in (
        guard.readiness()
    )
    wait_for(
        "the API server trusts the CA", lambda: "doesn't contain any IP SANs" in dry(control_plane, "10.128.0.0/9")
    )
    issue("guard.test", "127.0.0.1")
    # It looks at the files every 10 s, and whenever the webhooks change.
    control_plane.kubectl("annotate", "validatingwebhookconfigurations", NAME, "note=renewed", "--overwrite")
    wait_for("it follows the files", guard.ready, deadline=30)
    assert dry(control_plane, "10.0.0.0/8", "11.0.0.0/8") == ""
    assert BY_WEBHOOK in dry(control_plane, "10.128.0.0/9")


CONFIGURATION = f"ValidatingWebhookConfiguration {NAME}, webhooks cilium-config.guard.netloom.dev, "
