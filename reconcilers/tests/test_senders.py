"""Objects to who may send through the tunnels: which addresses and ports count, and what is said."""

import time

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    CONTESTED,
    NETLOOM_NODES,
    NETWORKS,
    AcceptedEncapsulation,
    Address,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkSpec,
    NodeIPAM,
    NodePools,
    PoolAllocation,
    Routing,
)
from netloom.cidr import format_address, parse_address
from netloom.kernel.keeper.report import Failure
from netloom.kernel.senders.keeper import SendersKeeper, SendersReport
from netloom.kernel.senders.part import Refusals
from netloom.kernel.senders.senders import PAIRS, PODS
from netloom.runtime.store import Store
from netloom_reconcilers.node import senders
from netloom_reconcilers.node.senders import SendersFeature
from tests.contexts import context


def node(
    name: str, *cidrs: str, addresses: tuple[tuple[str, str], ...] = (), pools: tuple[str, ...] = (), **more: object
) -> NetloomNode:
    allocated = (PoolAllocation("blue", pools),) if pools else ()
    ipam = NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs, pools=NodePools(allocated=allocated))
    froms = tuple(Address(type=kind, ip=ip) for kind, ip in addresses)
    spec = NetloomNodeSpec(addresses=froms, ipam=ipam, **more)  # type: ignore[arg-type]
    return NetloomNode(metadata=ObjectMeta(name=name), spec=spec)


def network(**routing: object) -> NetloomNetwork:
    return NetloomNetwork(metadata=ObjectMeta(name="default"), spec=NetworkSpec(routing=Routing(**routing)))  # type: ignore[arg-type]


class Setting:
    """A reconciler of node-1 over caches that the test fills; the kernel side is never opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = ["lo", "eth0"]
        monkeypatch.setattr(senders.socket, "if_nameindex", lambda: list(enumerate(self.devices, 1)))  # type: ignore[attr-defined]
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.reconciler = SendersFeature(context("node-1", self.networks, self.nodes), SendersKeeper())

    def kept(self, kind: str) -> list[str]:
        """Keys of the sets of a kind."""
        desired = self.reconciler.desired()
        assert desired is not None
        found = []
        for name, keys in desired.keys.items():
            if name.kind == kind:
                found += [
                    ".".join([format_address(key[:4]), *([format_address(key[4:])] if key[4:] else [])]) for key in keys
                ]
        return sorted(found)

    def ports(self) -> list[str]:
        desired = self.reconciler.desired()
        assert desired is not None
        return [str(port) for port in desired.ports]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    setting = Setting(monkeypatch)
    setting.networks.put(network())
    setting.nodes.put(node("node-1", "10.1.0.0/24", addresses=(("InternalIP", "192.168.7.1"),)))
    setting.nodes.put(node("node-2", "10.2.0.0/24", addresses=(("InternalIP", "192.168.7.2"),)))
    return setting


def test_this_node_sends_nothing_to_itself_and_its_pods_are_its_own(setting: Setting) -> None:
    assert setting.kept("nodes") == ["192.168.7.2"]
    assert setting.kept(PAIRS) == ["192.168.7.2.10.2.0.0"]
    assert setting.kept(PODS) == ["10.1.0.0", "10.2.0.0"]


def test_all_addresses_that_a_node_may_send_from(setting: Setting) -> None:
    addresses = (
        ("Hostname", "node-3"),
        ("InternalIP", "192.168.7.3"),
        ("InternalIP", "fd00::3"),
        ("ExternalIP", "203.0.113.3"),
        (CONTESTED, "192.168.7.33"),
        ("InternalIP", "127.0.0.1"),
        ("InternalDNS", "node-3.example.com"),
    )
    setting.nodes.put(node("node-3", pools=("10.3.0.0/27",), addresses=addresses, source_addresses=("172.31.0.3",)))
    assert setting.kept("nodes") == ["172.31.0.3", "192.168.7.2", "192.168.7.3", "192.168.7.33", "203.0.113.3"]
    assert "172.31.0.3.10.3.0.0" in setting.kept(PAIRS)


def test_a_change_of_one_node_costs_what_changed(setting: Setting) -> None:
    desired = setting.reconciler.desired()
    assert desired is not None
    desired.take_journal()
    setting.nodes.put(node("node-2", "10.2.0.0/24", addresses=(("InternalIP", "192.168.7.9"),)))
    setting.kept("nodes")
    changed = {(str(where), wanted) for where, _key, wanted in desired.take_journal()}
    assert changed == {("nodes", True), ("pairs4-24", True)}
    assert setting.kept("nodes") == ["192.168.7.2", "192.168.7.9"], "what it may still send from lingers"
    desired.expire(time.monotonic() + 60)
    assert setting.kept("nodes") == ["192.168.7.9"]


def test_ports_are_those_wanted_announced_and_listened_on(setting: Setting) -> None:
    assert setting.ports() == ["vxlan:8472"]
    setting.networks.put(network(tunnel_protocol="geneve", tunnel_port=6082))
    announced = (AcceptedEncapsulation(protocol="vxlan", port=4789), AcceptedEncapsulation(protocol="none"))
    own = node("node-1", "10.1.0.0/24", addresses=(("InternalIP", "192.168.7.1"),), encapsulations=announced)
    setting.nodes.put(own)
    assert setting.ports() == ["geneve:6082", "vxlan:4789"]
    setting.devices += ["netloom_vxlan", "netloom_g6090", "netloom_gateway", "netloom_v"]
    assert setting.ports() == ["geneve:6082", "geneve:6090", "vxlan:4789", "vxlan:8472"]
    setting.networks.put(network(mode="native"))
    del setting.devices[2:]
    setting.nodes.put(node("node-1", "10.1.0.0/24", addresses=(("InternalIP", "192.168.7.1"),)))
    assert setting.ports() == []


def test_any(setting: Setting) -> None:
    desired = setting.reconciler.desired()
    assert desired is not None
    assert desired.checked
    setting.networks.put(network(tunnel_senders="any"))
    assert setting.reconciler.desired() is desired
    assert not desired.checked


def test_a_mistake_in_the_api_takes_nothing_away(setting: Setting) -> None:
    before = setting.kept(PAIRS)
    setting.networks.remove("default")
    assert setting.reconciler.desired() is None
    assert "there is no NetloomNetwork" in setting.reconciler.errors(SendersReport())[0]
    setting.networks.put(network())
    assert setting.kept(PAIRS) == before


def test_what_is_said(setting: Setting) -> None:
    """A kernel without nftables drops nobody: the tunnels work on."""
    setting.kept(PAIRS)
    dump = Failure("dump", "table inet netloom-tunnels", "this kernel has no nftables (nf_tables), so ...")
    element = Failure("element", "nodes 192.168.7.2", "add: ENOMEM: Cannot allocate memory")
    report = SendersReport(failures=(dump, element))
    assert setting.reconciler.errors(report) == [f"nftables {element}"]
    assert setting.reconciler.warnings(report) == [f"nftables {dump}"]
    who = tuple(parse_address(f"192.168.7.{number}") for number in range(60, 67))
    report = SendersReport(refusals=Refusals(strangers=12, forged=3, who=who, forgers=who[:1]))
    assert setting.reconciler.errors(report) == []
    strangers, forged = setting.reconciler.warnings(report)
    assert (
        "from 192.168.7.60, 192.168.7.61, 192.168.7.62, 192.168.7.63, 192.168.7.64 and 2 more are dropped" in strangers
    )
    assert "(12 so far)" in strangers
    assert "spec.routing.tunnelSenders" in strangers
    assert "from 192.168.7.60 with pods of other nodes as inner source are dropped (3 so far)" in forged


def test_what_was_dropped_is_counted_by_its_reason(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    report = SendersReport(refusals=Refusals(strangers=12, forged=3), repaired=2, written={"newtable": 1})
    monkeypatch.setattr(SendersKeeper, "report", report)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in setting.reconciler.metrics()
        for sample in metric.samples
    }
    assert found == {
        ("netloom_tunnel_senders_writes_total", "newtable"): 1,
        ("netloom_tunnel_packets_dropped_total", "stranger"): 12,
        ("netloom_tunnel_packets_dropped_total", "forged"): 3,
        ("netloom_tunnel_senders_drift_repaired_total",): 2,
        ("netloom_tunnel_senders_errors",): 0,
    }
