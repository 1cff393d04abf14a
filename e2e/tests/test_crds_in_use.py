"""The custom resources as people meet them: by every verb of kubectl, in its tables and explanations, in the docs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest
import yaml

from netloom.api.meta import Resource
from netloom.api.v1alpha1 import (
    LEDGERS,
    NETLOOM_NODES,
    NETWORKS,
    POOLS,
    PREFILTERS,
    NetloomNetwork,
)
from netloom.api.validation import validate_network
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane

ROOT = Path(__file__).parents[2]
RESOURCES: list[Resource[Any]] = [NETWORKS, NETLOOM_NODES, POOLS, PREFILTERS, LEDGERS]
PATH = NETWORKS.path("default")
EXAMPLES = sorted(
    file for file in (ROOT / "docs" / "examples").glob("*.yaml") if "kind: NetloomNetwork" in file.read_text()
)
LOCKED = (
    'The NetloomNetwork "default" is invalid: spec.ipam.mode: Forbidden: the IPAM mode of a live cluster cannot '
    "change: nodes hold addresses of mode cluster-pool, and in mode kubernetes their pods would lose the network. "
    "Keep spec.ipam.mode cluster-pool, or remove every node first (the lock opens when the last address came back), "
    "or build a new cluster in mode kubernetes and move the workloads there.\n"
)


@pytest.fixture
def cluster(crds_installed: ControlPlane) -> Iterator[ControlPlane]:
    yield crds_installed
    crds_installed.delete_all(*(f"{resource.plural}.{resource.version}.{resource.group}" for resource in RESOURCES))


def network(mode: str = "cluster-pool", **spec: Any) -> str:
    pool = {"ipv4PodCIDRList": ["10.244.0.0/16"]}
    return manifest("NetloomNetwork", "default", ipam={"mode": mode, "clusterPool": pool}, **spec)


def manifest(kind: str, name: str, **spec: Any) -> str:
    return json.dumps({"apiVersion": "netloom.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def lock(cluster: ControlPlane, mode: str = "cluster-pool", **ipam: Any) -> None:
    cluster.client.request("PATCH", f"{PATH}/status", {"status": {"ipam": {"mode": mode, **ipam}}})


VERBS: dict[str, tuple[str, ...]] = {
    "apply": ("apply", "-f", "-"),
    "apply --server-side": ("apply", "--server-side", "--force-conflicts", "-f", "-"),
    "apply --dry-run=server": ("apply", "--dry-run=server", "-f", "-"),
    "replace": ("replace", "-f", "-"),
    "diff": ("diff", "-f", "-"),
    "patch --type=merge": ("patch", "nlnet", "default", "--type=merge", '-p={"spec":{"ipam":{"mode":"kubernetes"}}}'),
    "patch --type=json": (
        "patch",
        "nlnet",
        "default",
        "--type=json",
        '-p=[{"op":"replace","path":"/spec/ipam/mode","value":"kubernetes"}]',
    ),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_verb_gets_around_the_mode_lock(cluster: ControlPlane, verb: tuple[str, ...]) -> None:
    cluster.kubectl("apply", "-f", "-", input=network())
    lock(cluster)
    refusal = cluster.kubectl(*verb, input=network("kubernetes"), check=False)
    assert refusal.returncode != 0
    assert refusal.stderr == LOCKED
    assert cluster.client.request("GET", PATH)["spec"]["ipam"]["mode"] == "cluster-pool"


def test_what_was_deleted_and_made_again_can_be_locked_again(cluster: ControlPlane) -> None:
    """`replace --force` gets around the rule; from then on the operator has to be able to rebuild the lock."""
    cluster.kubectl("apply", "-f", "-", input=network())
    lock(cluster)
    cluster.kubectl("replace", "--force", "-f", "-", input=network("kubernetes"))
    lock(cluster)
    stored = cluster.client.request("GET", PATH)
    assert (stored["spec"]["ipam"]["mode"], stored["status"]["ipam"]["mode"]) == ("kubernetes", "cluster-pool")
    (problem,) = validate_network(msgspec.convert(stored, NetloomNetwork))
    assert str(problem) == (
        "NetloomNetwork default: spec.ipam.mode 'kubernetes': nodes hold addresses of mode cluster-pool, which stays "
        "in force; mode kubernetes is not followed. Set spec.ipam.mode to cluster-pool, or remove every node first."
    )
    cluster.kubectl("apply", "-f", "-", input=network())
    assert validate_network(msgspec.convert(cluster.client.request("GET", PATH), NetloomNetwork)) == []


def test_spec_and_status_cannot_be_written_in_one(cluster: ControlPlane) -> None:
    """So the mode in force and the mode asked for are ordered by the API server."""
    both = {"spec": {"mtu": 9000}, "status": {"ipam": {"mode": "cluster-pool"}}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(json.loads(network()) | {"status": both["status"]}))
    assert "status" not in cluster.client.request("GET", PATH)
    cluster.client.request("PATCH", PATH, both)
    stored = cluster.client.request("GET", PATH)
    assert (stored["spec"]["mtu"], stored.get("status")) == (9000, None)
    cluster.client.request("PATCH", f"{PATH}/status", {"spec": {"mtu": 1500}, "status": both["status"]})
    stored = cluster.client.request("GET", PATH)
    assert (stored["spec"]["mtu"], stored["status"]["ipam"]) == (9000, {"mode": "cluster-pool"})


def test_an_almost_empty_network_is_stored_in_full(cluster: ControlPlane) -> None:
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam={"mode": "kubernetes"}))
    assert cluster.client.request("GET", PATH)["spec"] == {
        "ipam": {
            "mode": "kubernetes",
            "clusterPool": {"ipv4MaskSize": 24, "ipv6MaskSize": 120},
            "multiPool": {"defaultPool": "default", "requirePoolMatch": False},
        },
        "routing": {
            "mode": "tunnel",
            "tunnelProtocol": "vxlan",
            "tunnelPort": 0,
            "tunnelSenders": "nodes",
            "autoDirectNodeRoutes": False,
            "directRoutingSkipUnreachable": False,
        },
        "mtu": 0,
        "masquerade": {"ipv4": True, "ipv6": True},
        "forwarding": {"filter": "accept"},
        "limits": {"raise": False},
        "nodeSelector": {},
    }


def test_null_means_absent(cluster: ControlPlane) -> None:
    spec = {"ipam": {"mode": "kubernetes", "clusterPool": None}, "routing": None, "mtu": None, "masquerade": None}
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", **spec))
    stored = msgspec.convert(cluster.client.request("GET", PATH), NetloomNetwork)
    assert stored.spec == msgspec.convert({"ipam": {"mode": "kubernetes"}}, type(stored.spec))


def test_full_lists_are_within_the_budget_for_rules(cluster: ControlPlane) -> None:
    """The cost of rules is bounded twice: as estimated from the schema, and as it really is."""
    full = {
        "ipv4PodCIDRList": [f"10.{number}.0.0/16" for number in range(32)],
        "ipv6PodCIDRList": [f"fd00:1111:2222:3333:4444:5555:66{number:02}:0/112" for number in range(32)],
    }
    masquerade = {"nonMasqueradeCIDRs": [f"10.0.{number}.0/24" for number in range(256)]}
    ipam = {"mode": "cluster-pool", "clusterPool": full}
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam=ipam, masquerade=masquerade))
    ranges = [f"172.{number}.0.0/16" for number in range(16)]
    ranges += [f"fd00:1111:2222:3300:4444:5555:66{number}:0/112" for number in range(64, 80)]
    lock(cluster, ledgerRanges=ranges, inUse="x" * 1024)
    full["ipv4PodCIDRList"].reverse()
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam=ipam, masquerade=masquerade))
    # All are made larger, and what holds them stands at the end of the list: each is compared with nearly each.
    full["ipv4PodCIDRList"] = [f"10.{number}.0.0/16" for number in range(64, 80)]
    full["ipv4PodCIDRList"] += [f"10.{number}.0.0/15" for number in range(0, 32, 2)]
    full["ipv6PodCIDRList"] = [f"fd00:1111:2222:3333:4444:5555:66{number}:0/112" for number in range(64, 80)]
    full["ipv6PodCIDRList"] += [f"fd00:1111:2222:3333:4444:5555:66{number:02}:0/111" for number in range(0, 32, 2)]
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam=ipam, masquerade=masquerade))
    # All are taken away: each is compared with each range, too.
    full["ipv4PodCIDRList"] = [f"10.{number}.0.0/16" for number in range(100, 132)]
    full["ipv6PodCIDRList"] = [f"fd00:9999:2222:3333:4444:5555:66{number:02}:0/112" for number in range(32)]
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam=ipam, masquerade=masquerade))
    # All but the last, in which something is in use.
    lock(cluster, ledgerRanges=[*ranges[:15], "10.131.0.0/16", *ranges[16:]])
    refusal = cluster.kubectl("apply", "-f", "-", input=network(), check=False)
    assert f"10.131.0.0/16 cannot be removed or made smaller while {'x' * 1024}: pods may" in refusal.stderr
    cidrs = [f"fd00:1111:2222:3333:4444:5555:6666:{number:x}/128" for number in range(1, 16385)]
    path = PREFILTERS.path()
    stored = cluster.client.request("POST", path, json.loads(manifest("NetloomPrefilter", "full", denyCIDRs=cidrs)))
    assert len(stored["spec"]["denyCIDRs"]) == 16384


def test_a_list_that_is_too_full_is_refused(cluster: ControlPlane) -> None:
    pool = {"ipv4PodCIDRList": [f"10.{number}.0.0/16" for number in range(33)]}
    refusal = cluster.kubectl(
        "apply", "-f", "-", input=manifest("NetloomNetwork", "default", ipam={"clusterPool": pool}), check=False
    )
    assert "spec.ipam.clusterPool.ipv4PodCIDRList: Too many: 33: must have at most 32 items" in refusal.stderr


def test_a_misspelt_field_is_refused(cluster: ControlPlane) -> None:
    refusal = cluster.kubectl("apply", "-f", "-", input=network(tunelPort=1), check=False)
    assert refusal.returncode == 1
    assert refusal.stderr == (
        'Error from server (BadRequest): error when creating "STDIN": NetloomNetwork in version "v1alpha1" cannot be '
        'handled as a NetloomNetwork: strict decoding error: unknown field "spec.tunelPort"\n'
    )


def test_operator_and_agent_write_conditions_side_by_side(cluster: ControlPlane) -> None:
    cluster.kubectl("apply", "-f", "-", input=manifest("NetloomNode", "worker-1"))
    for writer, condition in (("operator", "Allocated"), ("agent", "DataplaneReady"), ("operator", "Allocated")):
        reported = json.loads(manifest("NetloomNode", "worker-1")) | {"status": {"conditions": [said(condition)]}}
        arguments = ("apply", "--server-side", f"--field-manager={writer}", "--subresource=status", "-f", "-")
        cluster.kubectl(*arguments, input=json.dumps(reported))
    stored = cluster.client.request("GET", NETLOOM_NODES.path("worker-1"))
    assert sorted(each["type"] for each in stored["status"]["conditions"]) == ["Allocated", "DataplaneReady"]


def test_blocks_of_pools_are_named_once_in_an_object_and_may_be_there_once(cluster: ControlPlane) -> None:
    """Each version of it goes to every agent: `managedFields` that named each block were half of that."""
    blocks = [f"10.1.{number}.0/28" for number in range(8)]
    held = [{"pool": "default", "cidrs": blocks}]
    made = json.loads(manifest("NetloomNode", "worker-1", ipam={"mode": "multi-pool", "pools": {"allocated": held}}))
    cluster.client.request("POST", NETLOOM_NODES.path(), made)
    asked = [{"pool": "default", "needed": {"ipv4Addrs": 8}}, {"pool": "blue", "needed": {"ipv4Addrs": 1}}]
    path, change = NETLOOM_NODES.path("worker-1"), {"spec": {"ipam": {"pools": {"requested": asked}}}}
    stored = cluster.client.request("PATCH", path, change)
    assert stored["spec"]["ipam"]["pools"] == {"allocated": held, "requested": asked}, (
        "a merge patch takes no part away"
    )
    assert [block for block in blocks if block in json.dumps(stored["metadata"]["managedFields"])] == []
    pool_twice, block_twice = [*held, {"pool": "default", "cidrs": []}], [{"pool": "default", "cidrs": blocks[:1] * 2}]
    for allocated in (pool_twice, block_twice):
        with pytest.raises(ApiFailure, match="Duplicate value"):
            cluster.client.request("PATCH", path, {"spec": {"ipam": {"pools": {"allocated": allocated}}}})


def said(condition: str, status: str = "True", reason: str = "Fine", message: str = "") -> dict[str, str]:
    time = "2026-01-01T00:00:00Z"
    return {"type": condition, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


TABLES = """\
NAME                                 MODE           ROUTING   READY   REASON   DEGRADED   NODES   NODES READY   AGE
netloomnetwork.netloom.dev/default   cluster-pool   tunnel    True    Fine     True       2       1             *

NAME                               ADDRESS        POD CIDR        SECOND CIDR       ALLOCATED   DATAPLANE   AGE
netloomnode.netloom.dev/worker-1   192.168.1.11   10.244.7.0/24   fd00:244:7::/64               True        *
netloomnode.netloom.dev/worker-2   192.168.1.12                                     False                   *

NAME                                IPV4 USED   IPV4 FREE   IPV6 USED   IPV6 FREE   NODES   READY   AGE
netloomippool.netloom.dev/default   3           2045                                2       True    *

NAME                                  MODE          SELECTED   ACTIVE   FAILED   READY   REASON   AGE
netloomprefilter.netloom.dev/bogons   best-effort   3          2        1        True    Fine     *

NAME                                         RANGE           MODE           USED   AGE
netloomledger.netloom.dev/v4-10.244.0.0-16   10.244.0.0/16   cluster-pool   1      *
"""


def test_tables_say_whether_all_is_fine(cluster: ControlPlane) -> None:
    ready = {"conditions": [said("Ready")]}
    exhausted = said("Allocated", "False", "PoolExhausted", "No block is free.")
    node = {"ipam": {"podCIDRs": ["10.244.7.0/24", "fd00:244:7::/64"]}}
    summary = {"conditions": [said("Ready"), said("Degraded", reason="ClusterPoolExhausted")]}
    counts = {"total": 2, "ready": 1, "waiting": 1, "notHeardOf": 0}
    created(cluster, NETWORKS, network(), summary | {"ipam": {"mode": "cluster-pool"}, "nodes": counts})
    created(cluster, NETLOOM_NODES, worker("1", **node), {"conditions": [said("DataplaneReady")]})
    created(cluster, NETLOOM_NODES, worker("2"), {"conditions": [exhausted]})
    pool = manifest("NetloomIPPool", "default", ipv4={"cidrs": ["10.245.0.0/16"], "maskSize": 27})
    created(cluster, POOLS, pool, ready | {"ipv4": {"total": 2048, "used": 3, "free": 2045}, "nodes": 2})
    prefilter = manifest("NetloomPrefilter", "bogons", devices=["eth0", "bond*"])
    created(cluster, PREFILTERS, prefilter, ready | {"nodes": {"selected": 3, "active": 2, "failed": 1}})
    ledger = manifest("NetloomLedger", "v4-10.244.0.0-16", mode="cluster-pool", range="10.244.0.0/16", used=1)
    created(cluster, LEDGERS, ledger, {})
    assert table(cluster.kubectl("get", "nlnet,nln,nlpool,nlpf,nlledger")) == TABLES
    assert len(cluster.kubectl("get", "netloom", "-o", "name").stdout.splitlines()) == 5, "no ledgers"
    wide = table(cluster.kubectl("get", "nln", "-o", "wide"))
    assert "No block is free." in wide


def worker(number: str, **spec: Any) -> str:
    return manifest("NetloomNode", f"worker-{number}", addresses=addresses(number), **spec)


def addresses(number: str) -> list[dict[str, str]]:
    return [{"type": "InternalIP", "ip": f"192.168.1.1{number}"}, {"type": "InternalIP", "ip": f"fd00::1{number}"}]


def created(cluster: ControlPlane, resource: Resource[Any], text: str, status: dict[str, Any]) -> None:
    stored = cluster.client.request("POST", resource.path(), json.loads(text))
    if status:
        name = stored["metadata"]["name"]
        cluster.client.request("PATCH", resource.path(name, subresource="status"), {"status": status})


def table(shown: CompletedProcess[str]) -> str:
    """Without the age, and without the blanks that make room for it."""
    return re.sub(r"(?m)\d+[smh]\s*?$", "*", re.sub(r"(?m) +$", "", shown.stdout))


EXPLAINED = """\
GROUP:      netloom.dev
KIND:       NetloomNetwork
VERSION:    v1alpha1

FIELD: clusterPool <Object>


DESCRIPTION:
    What mode cluster-pool cuts from. A family is used if its list has a CIDR;
    with both, every node gets one pod CIDR of each.

FIELDS:
  ipv4MaskSize	<integer>
    Prefix length of one node's IPv4 pod CIDR: 24 gives every node 256
    addresses. Cannot be changed while nodes hold addresses. Default: 24.

  ipv4PodCIDRList	<[]string>
    IPv4 CIDRs, used in this order. They must not overlap one another, the
    nodes' addresses or anything else that pods shall reach. While nodes hold
    addresses, CIDRs can be added or made larger, and removed only if nothing
    was given of them.

  ipv6MaskSize	<integer>
    Prefix length of one node's IPv6 pod CIDR: 120 gives every node 256
    addresses. Cannot be changed while nodes hold addresses. Default: 120.

  ipv6PodCIDRList	<[]string>
    IPv6 CIDRs, used in this order. They must not overlap one another, the
    nodes' addresses or anything else that pods shall reach. While nodes hold
    addresses, CIDRs can be added or made larger, and removed only if nothing
    was given of them.
"""


def test_explain_reads_well(cluster: ControlPlane) -> None:
    shown = cluster.kubectl("explain", "nlnet.spec.ipam.clusterPool").stdout
    assert re.sub(r"(?m)^ +$", "", shown).strip() == EXPLAINED.strip()
    for resource in RESOURCES:
        assert "FIELDS:" in cluster.kubectl("explain", f"{resource.plural}.spec", "--recursive").stdout


def test_schemas_are_structural(cluster: ControlPlane) -> None:
    for resource in RESOURCES:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource.plural}.{resource.group}"
        conditions = {
            each["type"]: each["status"] for each in cluster.client.request("GET", path)["status"]["conditions"]
        }
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_examples_are_taken(cluster: ControlPlane, example: Path) -> None:
    cluster.kubectl("apply", "-f", example)
    assert validate_network(msgspec.convert(cluster.client.request("GET", PATH), NetloomNetwork)) == []


def test_the_manifests_in_the_documentation_are_taken(cluster: ControlPlane) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "objects.md").read_text(), re.DOTALL)
    for block in blocks:
        cluster.kubectl("apply", "-f", "-", input=block)
    assert [yaml.safe_load(block)["kind"] for block in blocks] == [
        "NetloomNetwork",
        "NetloomNode",
        "NetloomIPPool",
        "NetloomPrefilter",
    ]
