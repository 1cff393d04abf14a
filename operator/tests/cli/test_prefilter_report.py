"""What `netloom prefilter` says, from objects."""

from collections.abc import Sequence

import msgspec

from netloom.api.core import Node
from netloom.api.meta import Condition, LabelSelector, ObjectMeta
from netloom.api.prefilter import (
    FilteredDevice,
    FilterFailure,
    ListReference,
    NetloomPrefilter,
    NodeFilter,
    NodePrefilter,
    PrefilterNodes,
    PrefilterSpec,
    PrefilterStatus,
)
from netloom.api.v1alpha1 import Address, NetloomNode, NetloomNodeSpec, NetloomNodeStatus
from netloom.cidr import parse_address
from netloom.cli.prefilter_report import AddressAnswer, shown, table, told, verdicts
from netloom.prefilter.lists import parse_list

NAMES = ("n1", "n2", "n3")
EDGE = LabelSelector(match_labels={"edge": "true"})
LIST = ListReference(name="drop")
LISTS = {LIST: {"x/drop:list": parse_list("198.51.100.0/24\n198.51.100.7\n10.0.0.0/8")}}
PREFILTERS = [
    NetloomPrefilter(
        metadata=ObjectMeta(name="bogons"),
        spec=PrefilterSpec(node_selector=EDGE, deny_from_config_maps=(LIST,), allow_cidrs=("198.51.100.8/32",)),
    ),
    NetloomPrefilter(metadata=ObjectMeta(name="own"), spec=PrefilterSpec(deny_cidrs=("198.51.100.0/24",))),
]


DEVICES = (FilteredDevice("eth0", "generic", main=True),)


def node(name: str, address: str, *filters: NodeFilter, devices: tuple[FilteredDevice, ...] = DEVICES) -> NetloomNode:
    return NetloomNode(
        metadata=ObjectMeta(name=name),
        spec=NetloomNodeSpec(addresses=(Address(type="InternalIP", ip=address),)),
        status=NetloomNodeStatus(prefilter=NodePrefilter(devices, filters) if filters else None),
    )


NODES = [
    Node(metadata=ObjectMeta(name="n1", labels={"edge": "true"})),
    Node(metadata=ObjectMeta(name="n2", labels={"edge": "true"})),
    Node(metadata=ObjectMeta(name="n3")),
]
NETLOOM_NODES = [
    node("n1", "10.1.0.1", NodeFilter("bogons"), NodeFilter("own", packets=5)),
    node("n2", "10.1.0.2", NodeFilter("bogons"), NodeFilter("own", packets=7, error="eth0: no.")),
    node("n3", "10.1.0.3"),
]


def said(
    address: str,
    objects: Sequence[NetloomPrefilter] = PREFILTERS,
    netloom_nodes: Sequence[NetloomNode] = NETLOOM_NODES,
    *devices: str,
) -> list[str]:
    found = tuple(verdicts(parse_address(address), objects, NODES, netloom_nodes, LISTS, devices))
    return list(told(AddressAnswer(address=address, verdicts=found)))


def test_the_entry_that_decides_is_named_with_its_list_devices_and_nodes() -> None:
    assert said("198.51.100.7") == [
        "198.51.100.7: dropped on eth0 of 2 nodes (n1, n2): by 198.51.100.7/32 of NetloomPrefilter bogons "
        "(x/drop:list)",
        "  not everywhere: on n2: eth0: no.",
        "198.51.100.7: dropped on 1 node (n3), which has not said on which devices: by 198.51.100.0/24 of "
        "NetloomPrefilter own (spec.denyCIDRs)",
    ]


def test_an_exception_and_what_none_holds() -> None:
    assert said("198.51.100.8")[0] == (
        "198.51.100.8: passes on eth0 of 2 nodes (n1, n2): by the exception 198.51.100.8/32 of NetloomPrefilter bogons "
        "(spec.allowCIDRs)"
    )
    assert said("2001:db8::1")[-1] == (
        "2001:db8::1: passes on 1 node (n3), which has not said on which devices: no entry holds it"
    )
    assert said("2001:db8::1", []) == [
        "2001:db8::1: passes on every device of 3 nodes (n1, n2, n3): no NetloomPrefilter is meant for that"
    ]


def test_what_would_cut_nodes_off_is_not_active() -> None:
    assert said("10.9.9.9")[:2] == [
        "10.9.9.9: passes on eth0 of 2 nodes (n1, n2): no entry holds it",
        "  not active: 10.0.0.0/8 of NetloomPrefilter bogons: it holds 10.1.0.1, an address of node n1",
    ]


def test_each_device_is_told_of_by_the_prefilters_that_are_meant_for_it() -> None:
    """By names, patterns and what is left out, and where none is named those by which the node is known."""
    specs = {
        "inner": PrefilterSpec(devices=("vlan*", "!vlan9"), allow_cidrs=("198.51.100.7/32",)),
        "nowhere": PrefilterSpec(devices=("ppp*",), deny_cidrs=("198.51.100.7/32",)),
        "outer": PrefilterSpec(deny_cidrs=("198.51.100.0/24",)),
        "vlans": PrefilterSpec(devices=("vlan7", "eth1"), deny_cidrs=("198.51.100.0/24",)),
    }
    objects = [NetloomPrefilter(metadata=ObjectMeta(name=name), spec=spec) for name, spec in specs.items()]
    devices = (
        FilteredDevice("eth0", "native", main=True),
        FilteredDevice("eth1", error="there is no device eth1"),
        FilteredDevice("vlan7", "native"),
    )
    why = "spec.devices (ppp*) means no device of this node."
    filters = (
        NodeFilter("inner", generation=7),
        NodeFilter("nowhere", error=why),
        NodeFilter("outer"),
        NodeFilter(
            "vlans",
            error="eth1: there is no device eth1.",
            failures=(FilterFailure("eth1: there is no device eth1.", ("eth1",)),),
        ),
    )
    nodes = [node(name, "10.1.0.1", *filters, devices=devices) for name in ("n1", "n2", "n3")]
    assert said("198.51.100.7", objects, nodes) == [
        "198.51.100.7: passes on vlan7 of 3 nodes (n1, n2, n3): by the exception 198.51.100.7/32 of NetloomPrefilter "
        "inner (spec.allowCIDRs)",
        *(f"  not everywhere: on {name}: it has not taken over NetloomPrefilter inner as it is now" for name in NAMES),
        "198.51.100.7: dropped on eth0 of 3 nodes (n1, n2, n3): by 198.51.100.0/24 of NetloomPrefilter outer "
        "(spec.denyCIDRs)",
        "198.51.100.7: dropped on eth1 of 3 nodes (n1, n2, n3): by 198.51.100.0/24 of NetloomPrefilter vlans "
        "(spec.denyCIDRs)",
        *(f"  not everywhere: on {name}: eth1: there is no device eth1." for name in NAMES),
    ]
    (alone,) = said("198.51.100.7", objects, nodes, "eth0")
    assert "dropped on eth0 of 3 nodes" in alone
    assert len([each for each in said("198.51.100.7", objects, nodes, "eth*") if "198.51.100.7:" in each]) == 2
    assert said("198.51.100.7", objects, nodes, "wlan0")[:2] == [
        "198.51.100.7: passes on wlan0 of 3 nodes (n1, n2, n3): no NetloomPrefilter is meant for that",
        f"  not everywhere: on n1: NetloomPrefilter nowhere: {why}",
    ]


def test_an_error_is_of_the_devices_that_it_names_and_where_none_is_named_of_all() -> None:
    """Agents of before named none."""
    both = [NetloomPrefilter(metadata=ObjectMeta(name="a"), spec=PrefilterSpec(devices=("eth*",)))]
    devices = (FilteredDevice("eth0", "native"), FilteredDevice("eth1", error="no."))
    no, never = FilterFailure("eth1: no.", ("eth1",)), FilterFailure("never.")
    told = {(): ["eth0", "eth1"], (no,): ["eth1"], (never, no): ["eth0", "eth1"]}
    for failures, failing in told.items():
        said_so = [NodeFilter("a", error="never. eth1: no.", failures=failures)]
        nodes = [node("n1", "10.1.0.1", *said_so, devices=devices)]
        found = {each: said("192.0.2.1", both, nodes, each) for each in ("eth0", "eth1")}
        assert [each for each, lines in found.items() if any("not everywhere" in line for line in lines)] == failing
    assert "  not everywhere: on n1: never." in found["eth0"]


def test_the_table_says_where_each_runs() -> None:
    failed = Condition("Ready", "False", "NodesFailed", "On n2: eth0: no.", "2026-01-01T00:00:00Z")
    status = PrefilterStatus(
        nodes=PrefilterNodes(selected=3, active=1, failed=1),
        ipv4_entries=1,
        conditions=(failed,),
        problems=("on n1: x",),
    )
    obj = NetloomPrefilter(metadata=ObjectMeta(name="own"), status=status)
    assert list(table([shown(obj, NETLOOM_NODES)])) == [
        "PREFILTER   MODE          SELECTED   ACTIVE   FAILED   GENERIC   IPV4   IPV6   WITHHELD   DROPPED   READY",
        "own         best-effort   3          1        1        1         1      0      0          12        "
        "False NodesFailed",
        "own: On n2: eth0: no.",
        "own: on n1: x",
    ]
    elsewhere = NetloomPrefilter(metadata=ObjectMeta(name="own"), spec=PrefilterSpec(devices=("eth1",)), status=status)
    assert shown(elsewhere, NETLOOM_NODES).generic == 0, "what runs in generic mode there is others'"
    stale = shown(msgspec.structs.replace(obj, metadata=ObjectMeta(name="own", generation=2)), NETLOOM_NODES)
    assert (stale.ready, stale.reason) == ("Unknown", "NotYetJudged"), "it is of another spec"
    assert list(table([])) == ["there is no NetloomPrefilter"]
