"""A NetloomPrefilter as its users have it: objects in a real API server, an agent, packets that come or do not."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import gauges, operators
from netloom_e2e.agents import NETWORK, NODES, Agents, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.mesh import NETLOOM, facts
from tests.kernel.prefilters import mounted_bpffs

PREFILTERS = "/apis/netloom.dev/v1alpha1/netloomprefilters"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
STRANGER, PARTNER = "198.51.100.7", "198.51.100.8"

_BIND = 'mount --bind "$0" /sys/fs/bpf && exec "$@"'
"""A bpffs where a machine has it, which outlives the agent; this machine may have none."""


class Filtered:
    """n1, whose agent runs, and n2, from which strangers send."""

    def __init__(self, agents: Agents, bpffs: Path) -> None:
        self.agents = agents
        self.bpffs = bpffs
        self.client = agents.plane.client
        self.n1, self.n2 = agents.enter("n1"), agents.enter("n2")
        self.client.request("POST", "/api/v1/nodes", {"metadata": {"name": "n1", "labels": {"edge": "true"}}})
        for address in (STRANGER, PARTNER):
            self.n2.ip("address", "add", f"{address}/32", "dev", "lo")
        self.n1.ip("route", "add", "198.51.100.0/24", "via", self.n2.underlay[0])
        self.start()

    def start(self, *flags: str) -> None:
        """The agent of n1."""
        agents, kubeconfig = self.agents, self.agents.plane.kubeconfig("admin", host=self.agents.lab.address)
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            _BIND,
            str(self.bpffs),
            str(NETLOOM),
            "agent",
            "--kubeconfig",
            str(kubeconfig),
            "--node-name",
            "n1",
        ]
        with (agents.folder / "n1.log").open("a") as log:
            agents.agents["n1"] = self.n1.popen([*command, "--run-dir", agents.run_dir(self.n1), *flags], stdout=log)

    def answered(self, source: str) -> bool:
        """Whether n1 hears a packet from there."""
        words = ("ping", "-n", "-q", "-c", "1", "-W", "1", "-I", source, self.n1.underlay[0])
        return "1 received" in self.n2.run(*words, check=False)

    def said(self) -> dict[str, Any]:
        """What the node's object says of its prefilters; empty if nothing."""
        status = self.client.request("GET", f"{NODES}/n1").get("status", {})
        return dict(status.get("prefilter") or {})

    def wait_for(self, what: str, **wanted: object) -> dict[str, Any]:
        """Until the node says this of its only prefilter."""
        found: dict[str, Any] = {}

        def so() -> bool:
            filters = self.said().get("filters") or [{}]
            found.clear()
            found.update(filters[0])
            return all(found.get(name, 0) == value for name, value in wanted.items()) and bool(found)

        try:
            wait_for(what, so, deadline=60)
        except TimeoutError as error:
            raise AssertionError(f"{error}: it says {self.said()}\n{self.agents.log(self.n1)[-3000:]}") from error
        return found


@pytest.fixture(scope="module")
def filtered(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filtered]:
    plane = crds_installed
    folder = tmp_path_factory.mktemp("machine")
    with (
        mounted_bpffs(folder / "bpf") as bpffs,
        Lab(f"nlf{os.getpid() % 10000}") as lab,
        gateway(lab, plane.port),
    ):
        agents = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        try:
            yield Filtered(agents, bpffs)
        finally:
            agents.stop()
            plane.client.request("DELETE", "/api/v1/nodes/n1")
            kinds = ("netloomprefilters", "netloomnodes", "netloomnetworks")
            plane.delete_all(*(f"{kind}.v1alpha1.netloom.dev" for kind in kinds))


def test_a_list_is_followed_from_its_config_map_to_the_packets(filtered: Filtered) -> None:
    """From nothing at all: a list with a bad line, an exception, an edit, entries that would cut the node off."""
    client, listed = filtered.client, f"{CONFIG_MAPS}/drop"
    wait_for("packets to pass", lambda: filtered.answered(STRANGER), deadline=30)
    assert filtered.said() == {}, "a node without a prefilter says nothing"

    text = "# a block list\n198.51.100.0/24 ; strangers\nexample.com\n"
    client.request("POST", CONFIG_MAPS, {"metadata": {"name": "drop"}, "data": {"list": text}})
    spec = {
        "nodeSelector": {"matchLabels": {"edge": "true"}},
        "denyFromConfigMaps": [{"name": "drop"}],
        "allowCIDRs": [f"{PARTNER}/32"],
    }
    made = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomPrefilter", "metadata": {"name": "strangers"}}
    client.request("POST", PREFILTERS, made | {"spec": spec})
    found = filtered.wait_for("it runs", ipv4Entries=2, badLines=1)
    assert found.get("error", "") == ""
    assert found["problems"] == [
        "kube-system/drop:list: 1 line is left out: line 3 ('example.com') is no CIDR, address or range of addresses. "
        "Mend the list."
    ]
    assert [each["name"] for each in filtered.said()["devices"]] == ["eth0"]
    assert filtered.agents.condition("n1", "PrefilterReady")["reason"] == "NotWhole"
    assert (filtered.answered(STRANGER), filtered.answered(PARTNER)) == (False, True)
    (counted,) = facts(filtered.n1)["prefilter"]["status"]["filters"]
    assert counted["packets"] >= 1
    the_cluster_is_told(filtered)

    client.request("PATCH", listed, {"data": {"list": f"{STRANGER}/31\n{filtered.n2.underlay[0]}/32\n"}})
    found = filtered.wait_for("the edit is in force", ipv4Entries=2, withheld=1, badLines=0)
    assert "an address of node n2" in found["problems"][0]
    assert filtered.answered(filtered.n2.underlay[0]), "what would cut the node off is not active"

    client.request("PATCH", listed, {"data": {"list": "203.0.113.0/24\n"}})
    filtered.wait_for("the list is another", ipv4Entries=2, withheld=0)
    assert filtered.answered(STRANGER)

    client.request("PATCH", listed, {"data": {"list": f"{STRANGER}/32\n"}})
    wait_for("the stranger is denied", lambda: not filtered.answered(STRANGER), deadline=60)
    client.request("PATCH", listed, {"data": {"list": "\n"}})
    stays = "is empty, without even a comment. What it held before stays in force while the agent runs."
    problems = [f"ConfigMap kube-system/drop, key list: it {stays}"]
    filtered.wait_for("a download that failed is told", ipv4Entries=2, problems=problems)
    assert not filtered.answered(STRANGER)
    words = [NETLOOM, "prefilter", "test", STRANGER, f"--kubeconfig={filtered.agents.plane.kubeconfig()}"]
    asked = subprocess.run(words, capture_output=True, text=True)
    assert "not looked at: key list of ConfigMap kube-system/drop has no list; agents that" in asked.stdout, asked


def the_cluster_is_told(filtered: Filtered) -> None:
    """By an operator, in two writes, and by the commands that people type."""
    client, plane = filtered.client, filtered.agents.plane
    before = gauges.writes(client)

    def reasons() -> dict[str, str]:
        status = client.request("GET", f"{PREFILTERS}/strangers").get("status", {})
        return {each["type"]: each["reason"] for each in status.get("conditions", ())}

    with operators.running(plane) as started:
        operator = started.start("--features=prefilters", kubeconfig=plane.kubeconfig())
        wait_for("the operator says how it fares", lambda: len(reasons()) == 2, deadline=60)
        operator.stop()
    assert reasons() == {"Ready": "Active", "Whole": "BadLines"}
    written = gauges.writes(client)
    written.subtract(before)
    assert sum(count for each, count in written.items() if each.resource.startswith("netloomprefilters")) == 2

    kubeconfig = str(plane.kubeconfig())
    shown = subprocess.run(
        [NETLOOM, "prefilter", "status", f"--kubeconfig={kubeconfig}"], capture_output=True, text=True
    )
    assert "strangers   best-effort   1          1        0" in shown.stdout, shown
    assert shown.returncode == 0
    answers = {
        ("--device=eth*", "--node=n1"): f"{STRANGER}: dropped on eth0 of 1 node (n1): by 198.51.100.0/24 of "
        "NetloomPrefilter strangers (kube-system/drop:list)\n",
        ("--device=eth7",): f"{STRANGER}: passes on eth7 of 1 node (n1): no NetloomPrefilter is meant for that\n",
        ("--node=n9",): "",
    }
    for flags, answer in answers.items():
        words = [NETLOOM, "prefilter", "test", STRANGER, *flags, f"--kubeconfig={kubeconfig}"]
        asked = subprocess.run(words, capture_output=True, text=True)
        assert asked.stdout == answer, asked
        assert answer or "no node of Netloom's is named n9" in asked.stderr, asked
    problems = subprocess.run([NETLOOM, "status", f"--kubeconfig={kubeconfig}"], capture_output=True, text=True).stdout
    assert "NetloomPrefilter strangers: Whole=False BadLines: on n1: kube-system/drop:list: 1 line" in problems

    with operators.running(plane) as started:
        operator = started.start("--features=health", kubeconfig=plane.kubeconfig())
        wait_for("one without the feature takes it back", lambda: reasons() == {}, deadline=60)
        operator.stop()
    status = client.request("GET", f"{PREFILTERS}/strangers").get("status", {})
    assert status == {}, "counts are gone with the conditions"


def test_it_outlives_its_agent_and_goes_with_the_feature_or_the_label(filtered: Filtered) -> None:
    client = filtered.client
    spec = {"denyCIDRs": [f"{STRANGER}/32"], "denyFromConfigMaps": []}
    changed = client.request("PATCH", f"{PREFILTERS}/strangers", {"spec": spec})["metadata"]["generation"]
    filtered.wait_for("the stranger is denied", generation=changed)
    assert not filtered.answered(STRANGER)
    filtered.agents.agents["n1"].kill()
    filtered.agents.agents["n1"].wait(20)
    assert not filtered.answered(STRANGER), "the filter works on without its agent"
    filtered.start()
    wait_for("an agent that found it", lambda: facts(filtered.n1).get("prefilter"), deadline=30)
    assert not filtered.answered(STRANGER)

    client.request("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"edge": None}}})
    wait_for("the node is let go", lambda: filtered.said() == {}, deadline=30)
    assert filtered.answered(STRANGER)
    assert filtered.agents.condition("n1", "PrefilterReady") == {}
    client.request("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"edge": "true"}}})
    filtered.wait_for("it is back", ipv4Entries=2)
    assert not filtered.answered(STRANGER)

    filtered.agents.end("n1")
    filtered.start("--features=-prefilter")
    wait_for("packets to pass, as the feature is off", lambda: filtered.answered(STRANGER), deadline=30)
    wait_for("nothing to be said of what is off", lambda: filtered.said() == {}, deadline=30)
    assert filtered.agents.condition("n1", "PrefilterReady") == {}
