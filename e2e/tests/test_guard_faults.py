"""The guard that cannot be reached, that lags behind, or that is shouted at; and a cluster that goes on meanwhile."""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom_e2e import crds
from netloom_e2e.allocations import Cluster
from netloom_e2e.asking import BREAK_GLASS, put, remove
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import Guard, Guards, guarding, install_cilium, uninstall_cilium
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operators
from netloom_e2e.relay import Relay

Manifest = dict[str, Any]

OPERATOR = "netloom-operator"
"""The user of `Operators`."""
CONFIG: Manifest = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "cilium-config", "namespace": "kube-system"},
    "data": {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/16", "cluster-pool-ipv4-mask-size": "24"},
}
CONFIG_PATH = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
PROBE = f"{CONFIG_PATH}?dryRun=All"
RECORD = "/api/v1/namespaces/netloom-system/configmaps/netloom-guard"
POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
NETWORK = "/apis/netloom.dev/v1alpha1/netloomnetworks/default"
NODES = "/apis/netloom.dev/v1alpha1/netloomnodes"
EMERGENCY = ["delete", "validatingwebhookconfigurations,validatingadmissionpolicybindings", "-l", "netloom.dev/guard"]
TO_KUBERNETES: Manifest = {"data": {"ipam": "kubernetes"}}
COLLECTOR_SECONDS = 60.0
"""Controllers try again after growing pauses."""


def cilium_node(name: str) -> Manifest:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": name},
        "spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}},
    }


def pool(name: str, cidr: str) -> Manifest:
    return {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomIPPool",
        "metadata": {"name": name},
        "spec": {"ipv4": {"cidrs": [cidr], "maskSize": 27}},
    }


@pytest.fixture(scope="module")
def kinds(crds_installed: ControlPlane) -> Iterator[None]:
    """Those of Cilium."""
    install_cilium(crds_installed)
    yield
    uninstall_cilium(crds_installed)


@pytest.fixture
def plane(kinds: None, cluster: Cluster) -> Iterator[ControlPlane]:
    """With Cilium's kinds; emptied afterwards, whatever stands in the way."""
    plane = cluster.plane
    yield plane
    plane.kubectl(*EMERGENCY)
    for manifest in (CONFIG, cilium_node("a")):
        remove(plane, manifest)
    plane.delete_all("netloomippools.v1alpha1.netloom.dev", "ciliumnodes.v2.cilium.io")


@pytest.fixture
def guards(plane: ControlPlane) -> Iterator[Guards]:
    with guarding(plane, operator_users=(OPERATOR,)) as guards:
        yield guards


def refused(plane: ControlPlane, method: str, path: str, body: Manifest) -> str:
    """The message of a refusal; "" where there was none."""
    try:
        plane.client.request(method, path, body)
    except ApiFailure as failure:
        return str(json.loads(str(failure).partition(": ")[2])["message"])
    return ""


def recorded(plane: ControlPlane) -> dict[str, str]:
    data: dict[str, str] = plane.client.request("GET", RECORD).get("data", {})
    return data


def cilium_lives(plane: ControlPlane) -> None:
    """Cilium's configuration and a node with addresses, which the record tells the policies of."""
    put(plane, CONFIG)
    put(plane, cilium_node("a"))
    wait_for("the record", lambda: recorded(plane).get("ciliumMode") == "cluster-pool")
    wait_for("the policy", lambda: "ValidatingAdmissionPolicy" in refused(plane, "PATCH", PROBE, TO_KUBERNETES))


def webhook_calls(plane: ControlPlane) -> Counter[str]:
    """How often the API server asked (or found that it need not be asked: that counts for nothing)."""
    text = plane.client.request("GET", "/metrics")
    calls: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("apiserver_admission_webhook_request_total{"):
            name = line.partition('name="')[2].partition('"')[0]
            if name.endswith(".guard.netloom.dev"):
                calls[name] += int(float(line.rpartition(" ")[2]))
    return calls


def everything_else(cluster: Cluster, tag: str) -> None:
    """Writes that no guard is asked about: what a cluster does all day, beside the guarded ConfigMap too."""
    client = cluster.client
    name = f"other-{tag}"
    cluster.add_node(name, pod_cidrs=["10.200.0.0/24"])
    client.request("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {"a": "b"}}})
    client.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"capacity": {"cpu": "4"}}})
    pods = "/api/v1/namespaces/kube-system/pods"
    pod = {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": name}}
    client.request("POST", pods, {"apiVersion": "v1", "kind": "Pod"} | pod)
    client.request("PATCH", f"{pods}/{name}/status", {"status": {"phase": "Running"}})
    client.request("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    client.request("POST", leases, {"metadata": {"name": name}, "spec": {"holderIdentity": "x"}})
    client.request("PATCH", f"{leases}/{name}", {"spec": {"holderIdentity": "y"}})
    client.request("DELETE", f"{leases}/{name}")
    for namespace in ("kube-system", "default"):
        maps = f"/api/v1/namespaces/{namespace}/configmaps"
        client.request("POST", maps, {"metadata": {"name": name}, "data": {"ipam": "eni"}})
        client.request("PATCH", f"{maps}/{name}", {"data": {"ipam": "gke"}})
        client.request("DELETE", f"{maps}/{name}")
    client.request("PATCH", CONFIG_PATH, {"data": {"debug": tag}})
    client.request("DELETE", f"/api/v1/nodes/{name}")


@contextmanager
def nothing_listens(guards: Guards) -> Iterator[None]:
    """The processes are killed."""
    guards.kill()
    yield


@contextmanager
def black_hole(guards: Guards) -> Iterator[None]:
    """Connections are accepted by the kernel, and nobody ever answers: a network that swallows packets."""
    guards.kill()
    with socket.create_server(("127.0.0.1", guards.port), backlog=1024):
        yield


@pytest.mark.parametrize("outage", [nothing_listens, black_hole], ids=["nothing listens", "black hole"])
def test_the_cluster_goes_on_while_no_guard_can_be_reached(
    cluster: Cluster,
    plane: ControlPlane,
    guards: Guards,
    operators: Operators,
    outage: Callable[[Guards], Any],
) -> None:
    """Nodes join and get addresses, and only guarded changes wait; the mode stays locked without any guard."""
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operators.start()
    cluster.add_nodes("node-1")
    wait_for("the node has its CIDR", cluster.served)
    cilium_lives(plane)
    with outage(guards):
        everything_else(cluster, "1")
        cluster.add_nodes("node-2", "node-3")
        wait_for("new nodes get CIDRs", lambda: all(cluster.held().get(f"node-{n}") for n in (1, 2, 3)))
        status = {"status": {"conditions": []}}
        cluster.client.request("PATCH", f"{NODES}/node-1/status", status)
        cluster.remove_nodes("node-3")
        wait_for("a node that leaves gives its CIDR back", lambda: "node-3" not in cluster.held())

        said = refused(plane, "PATCH", CONFIG_PATH, {"data": {"cluster-pool-ipv4-cidr": "10.1.0.0/16"}})
        assert said.startswith(
            "Internal error occurred: failed calling webhook "
            '"cilium-config.guard.netloom.dev": failed to call webhook: Post "https://127.0.0.1:'
        )
        assert ("context deadline exceeded" in said) == (outage is black_hole)
        assert "failed calling webhook" in refused(plane, "POST", POOLS, pool("p", "10.64.0.0/16"))

        by_policy = "ValidatingAdmissionPolicy 'netloom-guard-cilium' with binding 'netloom-guard-cilium' denied"
        assert by_policy in refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES)
        assert by_policy in refused(plane, "DELETE", CONFIG_PATH, {})
        locked = "spec.ipam.mode: Forbidden: the IPAM mode of a live cluster cannot change"
        assert locked in refused(plane, "PATCH", NETWORK, {"spec": {"ipam": {"mode": "kubernetes"}}})
        assert "denied request" in refused(plane, "DELETE", NETWORK, {})

        group = ["--as=admin", "--as-group=system:masters", "--as-group=netloom:break-glass"]
        grow = json.dumps({"data": {"cluster-pool-ipv4-cidr": "10.0.0.0/16 10.1.0.0/16"}})
        patch = ["patch", "configmap", "cilium-config", "--namespace=kube-system", "--type=merge", f"--patch={grow}"]
        plane.kubectl(*patch, *group)

        gone = plane.kubectl(*EMERGENCY).stdout
        assert gone.count("deleted") == 9, gone
        wait_for("the mode can be changed", lambda: not refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES))
        plane.client.request("PATCH", CONFIG_PATH, {"data": {"ipam": "cluster-pool"}})

    guards.install()
    guards.wait_in_force(guards.start())
    wait_for("the policies", lambda: by_policy in refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES))
    removed = {"data": {"cluster-pool-ipv4-cidr": "10.1.0.0/16"}}
    assert "10.0.0.0/16 cannot be removed" in refused(plane, "PATCH", CONFIG_PATH, removed)


def test_no_call_is_made_for_what_is_not_guarded(cluster: Cluster, plane: ControlPlane, guards: Guards) -> None:
    put(plane, CONFIG)
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    node = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "n"}}
    plane.client.request("POST", NODES, node)
    before, asked = webhook_calls(plane), guards.requests()
    for number in range(10):
        everything_else(cluster, str(number))
        plane.client.request("PATCH", f"{NODES}/n/status", {"status": {"conditions": []}})
        plane.client.request("PATCH", f"{NODES}/n", {"metadata": {"labels": {"n": str(number)}}})
        plane.client.request("PATCH", NETWORK, {"metadata": {"annotations": {"n": str(number)}}})
    operator = plane.client_of(OPERATOR, ("system:masters",))
    operator.request("PATCH", f"{NODES}/n", {"spec": {"ipam": {"mode": "cluster-pool", "podCIDRs": ["10.70.0.0/24"]}}})
    operator.request("PATCH", f"{NETWORK}/status", {"status": {"ipam": {"mode": "cluster-pool", "epoch": 1}}})
    assert webhook_calls(plane) - before == Counter()
    assert guards.requests() == asked
    assert refused(plane, "PATCH", NETWORK, {"spec": {"mtu": 1400}}) == ""
    assert webhook_calls(plane) - before == Counter({"network.guard.netloom.dev": 1})
    operator.request("PATCH", f"{NETWORK}/status", {"status": {"ipam": {"mode": ""}}})


def test_controllers_meet_the_guard_as_people_do(control_plane_binaries: Path) -> None:
    """The garbage collector passes without a call; the deletion of Cilium's namespace waits for its last node."""
    config = CONFIG | {"metadata": {"name": "cilium-config", "namespace": "cilium"}}
    with ControlPlane() as plane:
        crds.install(plane)
        install_cilium(plane)
        plane.start_controller_manager()
        plane.kubectl("create", "namespace", "cilium")
        with guarding(plane, cilium_namespace="cilium") as guards:
            for manifest in (config, cilium_node("a")):
                put(plane, manifest)
            wait_for("the record", lambda: recorded(plane).get("ciliumMode") == "cluster-pool")
            node = plane.client.request("POST", "/api/v1/nodes", {"metadata": {"name": "n"}})
            owner = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": node["metadata"]["uid"]}
            put(
                plane,
                {
                    "apiVersion": "netloom.dev/v1alpha1",
                    "kind": "NetloomNode",
                    "metadata": {"name": "n", "ownerReferences": [owner]},
                    "spec": {"ipam": {"mode": "cluster-pool", "podCIDRs": ["10.70.0.0/24"]}},
                },
            )
            asked = guards.requests()
            plane.client.request("DELETE", "/api/v1/nodes/n")
            wait_for(
                "it is collected", lambda: not plane.client.request("GET", NODES)["items"], deadline=COLLECTOR_SECONDS
            )
            assert guards.requests() == asked

            plane.client.request("DELETE", "/api/v1/namespaces/cilium")
            wait_for("the namespace says why it stays", lambda: why_it_stays(plane, "cilium"))
            assert "Cilium's configuration cannot be deleted while it is in use: 1 node holds addresses (a)" in (
                why_it_stays(plane, "cilium")
            )
            assert plane.client.request("GET", "/api/v1/namespaces/cilium/configmaps/cilium-config")["data"]
            plane.client.request("DELETE", "/apis/cilium.io/v2/ciliumnodes/a")
            names = "/api/v1/namespaces?fieldSelector=metadata.name%3Dcilium"
            wait_for(
                "the namespace goes with the last node",
                lambda: not plane.client.request("GET", names)["items"],
                deadline=COLLECTOR_SECONDS,
            )


def why_it_stays(plane: ControlPlane, namespace: str) -> str:
    """What the namespace controller could not delete; "" before it has tried."""
    conditions = plane.client.request("GET", f"/api/v1/namespaces/{namespace}")["status"].get("conditions", [])
    return "".join(each["message"] for each in conditions if each["type"] == "NamespaceDeletionContentFailure")


# A guard that sees the cluster as it was


def start_behind(relay: Relay, guards: Guards, plane: ControlPlane) -> Guard:
    """A guard, in the place of the one that runs, that sees of the cluster what a relay lets through."""
    config = yaml.safe_load(guards.kubeconfig().read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
    path = plane.state / "behind-relay.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    guards.kill()
    return guards.start(kubeconfig=path)


@contextmanager
def lagging(guards: Guards, plane: ControlPlane) -> Iterator[tuple[Guard, Relay]]:
    """A guard whose news of the cluster can be held back."""
    with Relay(plane.host, plane.port).running() as relay:
        guard = start_behind(relay, guards, plane)
        guards.wait_in_force(guard)
        try:
            yield guard, relay
        finally:
            relay.release()
            guard.kill()


def test_a_guard_that_lags_behind(cluster: Cluster, plane: ControlPlane, guards: Guards) -> None:
    """The network carries its own lock, which no lag can hide; what only the caches know is found out afterwards."""
    put(plane, CONFIG)
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    plane.kubectl("delete", "validatingadmissionpolicybindings", "netloom-guard-network", "netloom-guard-cilium")
    with lagging(guards, plane) as (guard, relay):
        relay.hold()
        operator = plane.client_of(OPERATOR, ("system:masters",))
        operator.request("PATCH", f"{NETWORK}/status", {"status": {"ipam": {"mode": "cluster-pool", "epoch": 1}}})
        by_guard = 'admission webhook "network.guard.netloom.dev" denied the request: NetloomNetwork default: '
        wait_for("no policy answers any more", lambda: by_guard in refused(plane, "DELETE", NETWORK, {}))
        assert "cannot be deleted while it is in use: nodes hold addresses of mode cluster-pool" in refused(
            plane, "DELETE", NETWORK, {}
        )

        put(plane, cilium_node("a"))
        assert refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES) == "", "the guard cannot know of the first node yet"
        relay.release()
        wait_for("the bypass is reported", lambda: guard.metric("netloom_guard_bypassed") == 1)
    operator.request("PATCH", f"{NETWORK}/status", {"status": {"ipam": {"mode": ""}}})


def test_a_guard_that_sees_nothing_is_not_ready_and_refuses(plane: ControlPlane, guards: Guards) -> None:
    put(plane, CONFIG)
    with Relay(plane.host, plane.port).running() as relay:
        relay.hold()
        guard = start_behind(relay, guards, plane)
        with suppress(TimeoutError):
            wait_for("it is ready, which must not be", guard.ready, deadline=3)
        assert not guard.ready()
        assert refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES) != ""
        relay.release()
        guards.wait_in_force(guard)
        assert refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES) == ""


ROUNDS = 30


def test_a_mode_change_of_cilium_and_the_first_node_that_meet(plane: ControlPlane, guards: Guards) -> None:
    """Two objects cannot be compared at once, so both may get through; the guard then has to say so."""
    put(plane, CONFIG)
    (guard,) = guards.running
    rng, outcomes, told = random.Random(7), Counter[str](), []
    for _ in range(ROUNDS):
        offset = rng.uniform(-0.01, 0.01)
        began = threading.Barrier(2)

        def join(began: threading.Barrier = began, offset: float = offset) -> None:
            client = plane.client_of("admin")
            began.wait()
            time.sleep(max(0.0, offset))  # the two are sent at times that are that far apart
            client.request("POST", "/apis/cilium.io/v2/ciliumnodes", cilium_node("a"))

        joining = threading.Thread(target=join)
        joining.start()
        began.wait()
        time.sleep(max(0.0, -offset))  # as above
        said = refused(plane, "PATCH", CONFIG_PATH, TO_KUBERNETES)
        done = time.monotonic()
        joining.join()
        node = plane.client.request("GET", "/apis/cilium.io/v2/ciliumnodes/a")
        config = plane.client.request("GET", CONFIG_PATH)
        joined_first = int(node["metadata"]["resourceVersion"]) < int(config["metadata"]["resourceVersion"])
        if said:
            outcomes["refused"] += 1
            assert config["data"]["ipam"] == "cluster-pool"
        elif not joined_first:
            outcomes["changed before the node"] += 1
        else:
            outcomes["changed behind the node"] += 1
            wait_for("the bypass is reported", lambda: guard.metric("netloom_guard_bypassed") == 1)
            told.append(time.monotonic() - done)
        remove(plane, cilium_node("a"))
        plane.client_of("admin", BREAK_GLASS).request("PATCH", CONFIG_PATH, {"data": {"ipam": "cluster-pool"}})
        wait_for("the record is clear", lambda: not recorded(plane).get("ciliumMode"))
        wait_for("the policy is open", lambda: not refused(plane, "PATCH", PROBE, TO_KUBERNETES))
    print(f"{dict(outcomes)}; bypasses reported after {[round(each, 3) for each in told]} s")
    assert sum(outcomes.values()) == ROUNDS


# A guard that is shouted at


def review(uid: str = "u", **request: Any) -> bytes:
    """An AdmissionReview of a change that is refused while a node holds addresses."""
    asked = {
        "uid": uid,
        "operation": "UPDATE",
        "resource": {"group": "", "version": "v1", "resource": "configmaps"},
        "name": "cilium-config",
        "namespace": "kube-system",
        "userInfo": {"username": "admin"},
        "object": {**CONFIG, "data": {"ipam": "kubernetes"}},
        "oldObject": CONFIG,
        **request,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}).encode()


def post(port: int, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
    """The certificate is the API server's business; here it is not looked at."""
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request("POST", "/validate", body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def rss_mib(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def test_a_guard_that_is_shouted_at_answers_the_api_server_all_the_same(plane: ControlPlane, guards: Guards) -> None:
    cilium_lives(plane)
    (guard,) = guards.running
    port, before = guards.port, rss_mib(guard.process.pid)

    def still_right(after: str) -> None:
        status, body = post(port, review(uid=after))
        answer = json.loads(body)["response"]
        assert (status, answer["uid"], answer["allowed"]) == (200, after, False), after
        assert (
            "the IPAM mode of a live cluster cannot change: 1 node holds addresses (a)" in answer["status"]["message"]
        )

    still_right("nothing")
    for name, body in {
        "an empty body": b"",
        "no JSON": b"{",
        "a list": b"[]",
        "no request": b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        "another version": review().replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
        "no UTF-8": review().replace(b"admin", b"\xff\xfe"),
        "depth": b'{"request": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    }.items():
        status, answered = post(port, body)
        assert status >= 400 or not json.loads(answered)["response"]["allowed"], name
        still_right(name)
    assert post(port, review(), "text/plain")[0] == 415
    still_right("another content type")

    large = review(object={**CONFIG, "data": {"ipam": "kubernetes", "blob": "x" * (3 << 20)}})
    status, answered = post(port, large)
    assert (status, json.loads(answered)["response"]["allowed"]) == (200, False)
    still_right("3 MiB")

    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 500, random.Random(1).randbytes(4096)):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw, suppress(OSError):
            raw.sendall(garbage)
            raw.recv(1)
        still_right("TLS garbage")

    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    still_right("200 that do not begin a handshake")
    for each in slow:
        each.close()

    with ThreadPoolExecutor(100) as pool_:
        answers = list(pool_.map(lambda n: post(port, review(uid=str(n))), range(1000)))
    assert all(status == 200 and not json.loads(body)["response"]["allowed"] for status, body in answers)
    assert len({json.loads(body)["response"]["uid"] for _, body in answers}) == 1000
    still_right("1,000 requests, 100 at a time")
    grown = rss_mib(guard.process.pid) - before
    print(f"RSS {before:.1f} MiB, and {grown:.1f} more")
    assert grown < 64
