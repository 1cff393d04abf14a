"""What `netloom prefilter` says, from objects."""

import msgspec

from netloom.api.core import Node
from netloom.api.meta import Condition, LabelSelector, ObjectMeta
from netloom.api.v1alpha1 import (
    Address,
    FilteredDevice,
    ListReference,
    NetloomNode,
    NetloomNodeSpec,
    NetloomNodeStatus,
    NetloomPrefilter,
    NodeFilter,
    NodePrefilter,
    PrefilterNodes,
    PrefilterSpec,
    PrefilterStatus,
)
from netloom.cidr import parse_address
from netloom.cli.prefilter_report import AddressAnswer, shown, table, told, verdicts
from netloom.prefilter.lists import parse_list

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


DEVICES = (FilteredDevice("eth0", "generic"),)


def node(name: str, address: str, *filters: NodeFilter) -> NetloomNode:
    return NetloomNode(
        metadata=ObjectMeta(name=name),
        spec=NetloomNodeSpec(addresses=(Address(type="InternalIP", ip=address),)),
        status=NetloomNodeStatus(prefilter=NodePrefilter(DEVICES, filters) if filters else None),
    )


NODES = [
    Node(metadata=ObjectMeta(name="n1", labels={"edge": "true"})),
    Node(metadata=ObjectMeta(name="n2", labels={"edge": "true"})),
    Node(metadata=ObjectMeta(name="n3")),
]
NETLOOM_NODES = [
    node("n1", "10.1.0.1", NodeFilter("own", packets=5)),
    node("n2", "10.1.0.2", NodeFilter("own", packets=7, error="eth0: no.")),
    node("n3", "10.1.0.3"),
]


def said(address: str) -> list[str]:
    found = tuple(verdicts(parse_address(address), PREFILTERS, NODES, NETLOOM_NODES, LISTS))
    return list(told(AddressAnswer(address=address, verdicts=found)))


def test_the_entry_that_decides_is_named_with_its_list_and_nodes() -> None:
    assert said("198.51.100.7") == [
        "198.51.100.7: dropped on 2 nodes (n1, n2): by 198.51.100.7/32 of NetloomPrefilter bogons (x/drop:list)",
        "  not everywhere: on n2: eth0: no.",
        "198.51.100.7: dropped on 1 node (n3): by 198.51.100.0/24 of NetloomPrefilter own (spec.denyCIDRs)",
    ]


def test_an_exception_and_what_none_holds() -> None:
    assert said("198.51.100.8")[0] == (
        "198.51.100.8: passes on 2 nodes (n1, n2): by the exception 198.51.100.8/32 of NetloomPrefilter bogons "
        "(spec.allowCIDRs)"
    )
    assert said("2001:db8::1")[-1] == "2001:db8::1: passes on 1 node (n3): no entry holds it"


def test_what_would_cut_nodes_off_is_not_active() -> None:
    assert said("10.9.9.9")[:2] == [
        "10.9.9.9: passes on 2 nodes (n1, n2): no entry holds it",
        "  not active: 10.0.0.0/8 of NetloomPrefilter bogons: it holds 10.1.0.1, an address of node n1",
    ]


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
    stale = shown(msgspec.structs.replace(obj, metadata=ObjectMeta(name="own", generation=2)), NETLOOM_NODES)
    assert (stale.ready, stale.reason) == ("Unknown", "NotYetJudged"), "it is of another spec"
    assert list(table([])) == ["there is no NetloomPrefilter"]
