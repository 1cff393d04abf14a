"""Pods in the IPAM modes in which addresses are not just of the node's blocks: of pools by name, and from outside."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import cni_plugin
from netloom_e2e.agents import NETWORK, NODES, Agents, netloom_node
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.mesh import facts
from netloom_e2e.sandboxes import CniFailure, Runtime

POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
PODS = "/api/v1/namespaces/default/pods"
API = {"apiVersion": "netloom.dev/v1alpha1"}
BLUE = {"netloom.dev/ip-pool": "blue"}


@contextlib.contextmanager
def running(plane: ControlPlane, folder: Path, routing: dict[str, Any], **ipam: Any) -> Iterator[Runtime]:
    """The runtime of n1, whose object says that of `ipam`; no operator runs, and the mode is in force."""
    client, program = plane.client, cni_plugin.built()
    with Lab(f"nlcm{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        agents = Agents(lab, plane, folder)
        lists = {"clusterPool": {"ipv4PodCIDRList": ["10.42.0.0/16"]}} if ipam["mode"] == "cluster-pool" else {}
        spec = {"ipam": {"mode": ipam["mode"], **lists}, "routing": routing}
        client.request(
            "POST", NETWORK, {**API, "kind": "NetloomNetwork", "metadata": {"name": "default"}, "spec": spec}
        )
        client.request("PATCH", f"{NETWORK}/default/status", {"status": {"ipam": {"mode": ipam["mode"]}}})
        try:
            machine = lab.add_node("n1")
            node = netloom_node("n1", machine.underlay)
            client.request("POST", NODES, {**node, "spec": {**node["spec"], "ipam": ipam}})  # type: ignore[dict-item]
            place = Path(agents.run_dir(machine))
            agents.start(machine, flags=["--cni-socket", str(place / "cni.sock"), "--cni-deletions", str(place / "d")])
            runtime = Runtime(machine, Plugin(program, place / "cni.sock", place / "d"))

            try:
                wait_for("the agent", lambda: facts(machine).get("inSync"), deadline=30)
                if "podCIDRs" not in ipam:
                    wait_for("n1 to add pods", lambda: not refusal(runtime), deadline=30)
            except TimeoutError as error:
                raise AssertionError(f"{error}: {facts(machine)}\n{agents.log(machine)[-4000:]}") from error
            yield runtime
        finally:
            agents.stop()
            client.request("PATCH", f"{NETWORK}/default/status", {"status": {"ipam": {"mode": ""}}})
            plane.kubectl("delete", "pods", "--all", "--grace-period=0", "--force", "--namespace=default")
            plane.delete_all(
                "netloomnodes.v1alpha1.netloom.dev",
                "netloomippools.v1alpha1.netloom.dev",
                "netloomnetworks.v1alpha1.netloom.dev",
            )


def refusal(runtime: Runtime) -> str:
    """What STATUS says; "" where all is well."""
    try:
        runtime.status()
    except CniFailure as error:
        return error.said
    return ""


def test_a_pod_that_comes_before_its_nodes_cidr_waits_for_it(crds_installed: ControlPlane, tmp_path: Path) -> None:
    plane = crds_installed
    with running(plane, tmp_path, {}, mode="cluster-pool", podCIDRs=[]) as runtime:
        wait_for("it to say so", lambda: "holds no addresses for pods yet" in refusal(runtime))
        early = runtime.make("early")
        call = runtime.begin("ADD", early)
        waiting = 'netloom_node_addresses{family="ipv4",pool="",state="waiting"} 1.0'
        metrics = ("curl", "-s", "127.0.0.1:9964/metrics")
        wait_for("it to wait", lambda: waiting in runtime.machine.run(*metrics, check=False))
        assert call.poll() is None
        plane.client.request("PATCH", f"{NODES}/n1", {"spec": {"ipam": {"podCIDRs": ["10.42.1.0/24"]}}})
        output, _ = call.communicate(timeout=30)
        assert call.returncode == 0, output
        wait_for("it to be well", lambda: not refusal(runtime))
        runtime.end(early)


def test_pods_of_pools(crds_installed: ControlPlane, tmp_path: Path) -> None:
    plane = crds_installed
    for name, cidr in {"default": "10.60.0.0/16", "blue": "10.61.0.0/16"}.items():
        pool = {"ipv4": {"cidrs": [cidr], "maskSize": 28}}
        plane.client.request("POST", POOLS, {**API, "kind": "NetloomIPPool", "metadata": {"name": name}, "spec": pool})
    uids: dict[str, str] = {}
    for name, annotations in {"plain": {}, "sky": BLUE, "odd": {"netloom.dev/ip-pool": "red"}}.items():
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}
        meta = {"name": name, "annotations": annotations}
        made = plane.client.request("POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        uids[name] = made["metadata"]["uid"]
    held = [{"pool": "default", "cidrs": ["10.60.0.0/28"]}, {"pool": "blue", "cidrs": ["10.61.0.0/28"]}]
    with running(plane, tmp_path, {}, mode="multi-pool", pools={"allocated": held}) as runtime:
        late = runtime.make("sky", "late")  # of a pod before it, which has the name of another by now
        with pytest.raises(CniFailure, match="an address for a pod with uid u-sky was asked for") as caught:
            runtime.add(late)
        assert caught.value.code == 11
        runtime.end(late)
        runtime.uids |= uids
        plain, sky = runtime.run("plain"), runtime.run("sky")
        assert plain.addresses == ("10.60.0.1",)
        assert sky.addresses == ("10.61.0.1",)
        assert plain.pod.ping(sky.addresses[0], count=2).lost == 0
        odd = runtime.make("odd")
        with pytest.raises(CniFailure, match="pool") as caught:
            runtime.add(odd)
        assert caught.value.code == 100
        for each in (plain, sky, odd):
            runtime.end(each)


def test_pods_with_addresses_from_outside(crds_installed: ControlPlane, tmp_path: Path) -> None:
    plane = crds_installed
    pool = {"10.9.0.4": {}, "10.9.0.5": {"owner": "default/web"}}
    with running(plane, tmp_path, {"mode": "native"}, mode="crd", pool=pool) as runtime:
        web, other = runtime.run("web"), runtime.run("other")
        assert (web.addresses, other.addresses) == (("10.9.0.5",), ("10.9.0.4",))
        assert web.pod.ping("10.9.0.4", count=2).lost == 0
        runtime.end(other)
        runtime.end(web)
