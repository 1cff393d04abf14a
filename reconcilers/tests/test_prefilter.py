"""From NetloomPrefilters to what one node drops, on which devices, and what it says of that."""

import base64
import gzip
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from netloom.api.meta import LabelRequirement, LabelSelector, ObjectMeta
from netloom.api.prefilter import FilteredDevice, ListReference, NetloomPrefilter, NodeFilter, NodePrefilter
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.cidr import Cidr, parse_address
from netloom.kernel.keeper.report import Failure
from netloom.kernel.mesh.lifelines import Device, NodeNetwork, NodeRoute
from netloom.kernel.prefilter.keeper import PrefilterReport
from netloom.kernel.prefilter.prefiltering import DeviceReport, DeviceWish, Dropped, Mode, Prefiltering
from netloom.runtime.clock import ServerClock
from netloom.runtime.store import Store
from netloom_e2e.trie_entries import key, value
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.node.prefilter import telling
from netloom_reconcilers.node.prefilter.config_maps import ConfigMaps, ListConfigMap, read
from netloom_reconcilers.node.prefilter.reporting import PrefilterReporter
from netloom_reconcilers.node.prefilter.selection import Machine, devices_of, machine_of, selecting, together
from tests.prefilter_setting import Setting, node, prefilter

MACHINE = Machine(("bond0", "eth0", "eth1", "veth1"), ("bond0",), frozenset(), frozenset())


# ------------------------------------------------------------------------------------------------------ which and where


@pytest.mark.parametrize(
    ("patterns", "devices"),
    [
        ((), ("bond0",)),
        (("eth*",), ("eth0", "eth1")),
        (("eth*", "!eth1"), ("eth0",)),
        (("!bond*",), ()),
        (("!veth*",), ("bond0",)),
        (("eth7", "eth0"), ("eth0", "eth7")),
        (("eth[01]",), ("eth0", "eth1")),
        (("wlan*",), ()),
    ],
)
def test_devices_are_named_by_patterns_and_left_out_by_others(
    patterns: tuple[str, ...], devices: tuple[str, ...]
) -> None:
    assert devices_of(patterns, MACHINE) == devices


def test_main_devices_have_a_default_route_or_an_address_that_the_node_is_known_by() -> None:
    devices = {
        1: Device("lo"),
        2: Device("eth0"),
        3: Device("eth1"),
        4: Device("eth2"),
        5: Device("netloom_x", ours=True),
    }
    gateway, known, other = (parse_address(each) for each in ("192.0.2.1", "10.1.0.5", "10.2.0.5"))
    routes = [
        NodeRoute(Cidr.parse("0.0.0.0/0"), ((2, gateway),)),
        NodeRoute(Cidr.parse("10.9.0.0/16"), ((4, parse_address("10.2.0.1")),)),
    ]
    loopback = (1, parse_address("127.0.0.1"))
    around = NodeNetwork(devices, routes, [loopback, (3, known), (4, other), (5, known)])
    assert machine_of(around, {known}) == Machine(
        ("eth0", "eth1", "eth2"), ("eth0", "eth1"), frozenset({known, other}), frozenset({gateway})
    )


def test_a_node_is_selected_by_its_labels_in_the_order_of_names() -> None:
    edge = LabelSelector(match_labels={"edge": "true"})
    old = LabelSelector(match_expressions=(LabelRequirement("old", "DoesNotExist"),))
    going = NetloomPrefilter(metadata=ObjectMeta(name="0", deletion_timestamp="2026-01-01T00:00:00Z"))
    some = [prefilter("c"), prefilter("b", node_selector=edge), prefilter("a", node_selector=old), going]
    assert [each.metadata.name for each in selecting(some, {"edge": "true"})] == ["a", "b", "c"]
    assert [each.metadata.name for each in selecting(some, {"old": ""})] == ["c"]


def test_on_each_device_those_decide_that_are_meant_for_it() -> None:
    some = [
        prefilter("a"),
        prefilter("b", mode="generic"),
        prefilter("c", devices=("eth*",), mode="native"),
        prefilter("d", devices=("bond*", "eth1"), mode="native"),
        prefilter("e", devices=("wlan*",)),
    ]
    found = together(some, MACHINE)
    assert found.devices == (
        DeviceWish("bond0", Mode.GENERIC, 0),
        DeviceWish("eth0", Mode.NATIVE, 1),
        DeviceWish("eth1", Mode.NATIVE, 2),
    )
    assert [[each.metadata.name for each in group] for group in found.groups] == [["a", "b", "d"], ["c"], ["c", "d"]]
    assert [each.metadata.name for each in found.active] == ["a", "b", "d", "c"]
    assert found.meant == {"a": ("bond0",), "b": ("bond0",), "c": ("eth0", "eth1"), "d": ("bond0", "eth1"), "e": ()}
    assert found.errors == {
        "e": "spec.devices (wlan*) means no device of this node. Name another, or select other nodes."
    }
    assert found.problems == {"d": "it runs in generic mode on bond0, as NetloomPrefilter b wants, not in native mode."}
    shared = together([prefilter("a", devices=("eth*",)), prefilter("b", devices=("eth0", "eth1"))], MACHINE)
    assert ([each.rules for each in shared.devices], len(shared.groups)) == ([0, 0], 1)


# ----------------------------------------------------------------------------------------------------------- lists


def test_a_config_map_is_text_or_text_packed_by_gzip() -> None:
    packed = {
        "packed": base64.b64encode(gzip.compress(b"192.0.2.0/24\n198.51.100.0/24\n")).decode(),
        "plain": base64.b64encode(b"203.0.113.0/24").decode(),
        "cut": base64.b64encode(gzip.compress(b"192.0.2.0/24\n" * 1000)[:-8]).decode(),
        "picture": base64.b64encode(b"\x89PNG\xff").decode(),
    }
    texts = {"list": "10.0.0.0/8\nx", "blank": "\n", "comment": "# nobody at present"}
    found = read(ListConfigMap(metadata=ObjectMeta(name="x"), data=texts, binary_data=packed), {}).entries
    assert {key: len(each.v4) for key, each in found.items() if not isinstance(each, str)} == {
        "list": 1,
        "packed": 2,
        "plain": 1,
        "comment": 0,
    }
    assert found["blank"] == "is empty, without even a comment", "a download failed: that is told"
    assert found["cut"].startswith("is not whole")
    assert found["picture"].startswith("is neither text nor text packed by gzip")


async def test_a_list_that_is_lost_by_mistake_stays_in_force() -> None:
    """A key that is named and gone, a download that failed, all of it; not what people take out by themselves."""
    maps = ConfigMaps(None, "netloom-system", lambda: None)  # type: ignore[arg-type]
    named, all_of_it = ListReference(name="drop", keys=("a",)), ListReference(name="drop")
    maps.want([named])

    def held(reference: ListReference, **texts: str) -> tuple[list[str], list[str]]:
        (followed,) = maps._followed.values()
        followed.last = read(ListConfigMap(metadata=ObjectMeta(name="drop"), data=texts), {})
        found, problems = maps.lists(reference)
        return [f"{key} {len(each.v4)}" for key, each in found.items()], problems

    one, stays = "10.0.0.0/8", "What it held before stays in force while the agent runs."
    where = "ConfigMap netloom-system/drop"
    assert held(named, b=one) == ([], [f"{where} has no key a. Name one that it has: b."]), "it never had"
    assert held(named, a=one) == (["netloom-system/drop:a 1"], [])
    assert held(named, b=one) == (
        ["netloom-system/drop:a 1"],
        [f"{where} has no key a. {stays} Name one that it has: b."],
    )
    assert held(named, a=" \n") == (
        ["netloom-system/drop:a 1"],
        [f"{where}, key a: it is empty, without even a comment. {stays}"],
    )
    assert held(named, a="<html>\n429 Too Many Requests") == (
        ["netloom-system/drop:a 1"],
        [f"{where}, key a: it holds no entry: line 1 ('<html>') is no CIDR, address or range of addresses. {stays}"],
    )
    assert held(named, a="# none at present") == (["netloom-system/drop:a 0"], [])
    assert held(all_of_it, a=one, b=one)[0] == ["netloom-system/drop:a 1", "netloom-system/drop:b 1"]
    assert held(all_of_it, b=one) == (["netloom-system/drop:b 1"], []), "a key that nobody names is taken out"
    empty = f"{where} is empty: it has neither data nor binaryData. {stays} Fill it, or take it out of the prefilter."
    assert held(all_of_it) == (["netloom-system/drop:b 1"], [empty])
    maps.want([])
    maps.want([all_of_it])
    assert held(all_of_it)[0] == []


async def test_who_reads_all_of_a_config_map_takes_no_key_from_who_names_it() -> None:
    maps = ConfigMaps(None, "netloom-system", lambda: None)  # type: ignore[arg-type]
    named, all_of_it = ListReference(name="drop", keys=("a",)), ListReference(name="drop")
    maps.want([named, all_of_it])
    (followed,) = maps._followed.values()
    for texts in ({"a": "10.0.0.0/8", "b": "10.0.0.0/8"}, {"b": "10.0.0.0/8"}):
        followed.last = read(ListConfigMap(metadata=ObjectMeta(name="drop"), data=texts), {})
        for _ in range(2):
            found = [list(maps.lists(reference)[0]) for reference in (named, all_of_it)]
            assert found == [["netloom-system/drop:a"], [f"netloom-system/drop:{key}" for key in texts]]


# --------------------------------------------------------------------------------------------------------- the feature


@pytest.fixture
def setting(tmp_path: Any) -> Setting:
    return Setting(tmp_path)


def denied(cidr: str) -> bytes:
    found = Cidr.parse(cidr)
    return key(found.packed, found.length)


async def test_what_is_dropped_is_what_a_prefilter_says(setting: Setting) -> None:
    wanted = await setting.have(prefilter("a", deny_cidrs=("198.51.100.0/24",), allow_cidrs=("198.51.100.7/32",)))
    assert wanted.devices == (DeviceWish("eth0"),)
    assert wanted.rules.v4.keys == denied("198.51.100.0/24") + denied("198.51.100.7/32")
    assert wanted.rules.v4.values == value(0) + value(0, allow=True)
    assert wanted.rules.names == ("a",)
    again = await setting.have(prefilter("a", deny_cidrs=("198.51.100.0/24",), allow_cidrs=("198.51.100.7/32",)))
    assert (again.rules is wanted.rules, len(setting.kernel.applied)) == (True, 1)


async def test_nothing_is_wanted_where_none_selects_the_node(setting: Setting) -> None:
    elsewhere = LabelSelector(match_labels={"edge": "true"})
    assert (
        await setting.have(prefilter("a", node_selector=elsewhere, deny_cidrs=("198.51.100.0/24",))) == Prefiltering()
    )
    setting.nodes.replace({"node-1": node("node-1", "10.1.0.5", edge="true")})
    wanted = await setting.have(prefilter("a", node_selector=elsewhere, deny_cidrs=("198.51.100.0/24",)))
    assert wanted.rules.v4.keys == denied("198.51.100.0/24")
    assert await setting.have() == Prefiltering()
    assert setting.feature.status() == NodePrefilter((), ())


async def test_devices_are_followed_where_a_prefilter_selects_the_node_and_never_looked_for(setting: Setting) -> None:
    await setting.have()
    assert "around" not in setting.following.events, "a node without a prefilter follows nothing"
    some = prefilter("a", devices=("eth*",), deny_cidrs=("198.51.100.0/24",))
    assert [each.name for each in (await setting.have(some)).devices] == ["eth0"]
    assert await setting.feature.reconcile("prefilter") is None, "nothing is to be looked at without an event"
    devices = {2: Device("eth0"), 3: Device("eth1"), 4: Device("wlan0")}
    setting.following.now = replace(setting.following.now, devices=devices)
    await setting.feature.reconcile("prefilter")
    assert [each.name for each in setting.kernel.applied[-1].devices] == ["eth0", "eth1"]
    await setting.have()
    assert setting.following.events[-1] == "leave"


async def test_what_the_node_lives_by_is_held_back_and_said(setting: Setting) -> None:
    wanted = await setting.have(
        prefilter("a", deny_cidrs=("10.1.0.0/24", "192.0.2.1/32", "198.51.100.0/24", "10.1.0.6/32"))
    )
    assert wanted.rules.v4.keys == denied("198.51.100.0/24")
    assert setting.feature.warnings() == [
        "NetloomPrefilter a: entries would cut this node off, and are not active: 10.1.0.0/24: it holds 10.1.0.5, an "
        "address of this node; 10.1.0.6/32: it holds 10.1.0.6, an address of node node-2; 192.0.2.1/32: it holds "
        "192.0.2.1, a gateway of this node. Take them out, give exceptions in spec.allowCIDRs, or set "
        "spec.mayCutOffNodes to true."
    ]
    status = setting.feature.status()
    assert status is not None
    assert (status.filters[0].withheld, status.filters[0].ipv4_entries) == (3, 1)
    assert telling.readiness_of(status)[:2] == (True, "Withheld")


async def test_a_peer_that_comes_takes_its_entry_out_of_force(setting: Setting) -> None:
    rules = (await setting.have(prefilter("a", deny_cidrs=("10.7.0.0/16", "198.51.100.0/24")))).rules
    assert len(rules.v4) == 2
    setting.nodes.replace({"node-1": node("node-1", "10.1.0.5"), "node-3": node("node-3", "10.7.0.3")})
    assert (await setting.have(*setting.prefilters.values())).rules.v4.keys == denied("198.51.100.0/24")
    confirmed = prefilter("a", deny_cidrs=("10.7.0.0/16", "198.51.100.0/24"), may_cut_off_nodes=True)
    assert len((await setting.have(confirmed)).rules.v4) == 2


async def test_what_is_lived_by_is_made_for_the_node_that_changed_alone(setting: Setting) -> None:
    """And for none where a device comes or goes that makes no difference to it, as a container's."""
    nodes = {f"node-{number}": node(f"node-{number}", f"10.1.{number}.6") for number in range(1, 200)}
    setting.nodes.replace({**nodes, "node-1": node("node-1", "10.1.0.5")})
    wanted = prefilter("a", deny_cidrs=("10.7.0.0/16", "198.51.100.0/24"))
    await setting.have(wanted)
    before = setting.feature._lifelines
    setting.nodes.take(node("node-7", "10.7.0.7"))
    await setting.feature.reconcile("prefilter")
    after = setting.feature._lifelines
    assert len([each for each in after if not any(each is known for known in before)]) == 3
    assert [each.what for each in after][:2] == ["an address of this node", "a gateway of this node"]
    assert setting.kernel.applied[-1].rules.v4.keys == denied("198.51.100.0/24")
    setting.following.now = replace(setting.following.now, devices={2: Device("eth0"), 9: Device("veth9")})
    await setting.feature.reconcile("prefilter")
    assert setting.feature._lifelines is after


async def test_what_is_in_the_kernel_is_told_by_prefilter_and_device(setting: Setting) -> None:
    setting.kernel.report = PrefilterReport(
        devices=(DeviceReport("eth0", 2, "generic", 7, note="the driver has no native mode."),)
    )
    setting.kernel.counts = {"a": Dropped(12, 720)}
    await setting.have(prefilter("a", deny_cidrs=("198.51.100.0/24",)), prefilter("b", deny_cidrs=("198.51.100.0/24",)))
    status = setting.feature.status()
    assert status is not None
    assert [(each.name, each.mode, each.error, each.main) for each in status.devices] == [
        ("eth0", "generic", "the driver has no native mode.", True)
    ]
    assert [(each.name, each.generation, each.ipv4_entries, each.packets, each.bytes) for each in status.filters] == [
        ("a", 3, 1, 12, 720),
        ("b", 3, 0, 0, 0),
    ]
    assert telling.readiness_of(status).ready
    assert {each.name: len(each.samples) for each in setting.feature.metrics()} == {
        "netloom_prefilter_dropped_packets": 2,
        "netloom_prefilter_dropped_bytes": 2,
        "netloom_prefilter_entries": 4,
        "netloom_prefilter_left_out": 4,
        "netloom_prefilter_devices": 3,
        "netloom_prefilter_overtagged_packets": 1,
    }


def test_of_more_devices_and_prefilters_than_an_object_holds_those_are_told_that_fail() -> None:
    devices = [DeviceReport(f"veth{number}", number, "native", 7) for number in range(300)]
    report = PrefilterReport(devices=(*devices, DeviceReport("wan0", error="it is in somebody's way.")))
    filters = [telling.Told(f"p{number:03}", devices=("veth1",)) for number in range(300)]
    status = telling.status_of([*filters, telling.Told("q", error="no device.")], {}, report, {})
    assert [len(status.devices), len(status.filters)] == [256, 256]
    assert status.devices[-1].name == "wan0"
    assert (status.filters[0].name, status.filters[-1].name) == ("p000", "q")


def test_an_error_is_told_by_device_and_leaves_none_out() -> None:
    """What is not of one device is of all; past what an object holds the last stands for the rest."""
    some = telling.Told("a", devices=("eth0", "eth1"))
    away = DeviceReport("eth1", error="it is in somebody's way")
    report = PrefilterReport(
        devices=(DeviceReport("eth0", 2, "native", 7), away, DeviceReport("eth2", error="no")),
        failures=(Failure("xdp", "eth0", "EBUSY"), Failure("xdp", "eth2", "EIO"), Failure("entries", "v4", "ENOMEM")),
    )
    (told,) = telling.status_of([some], {}, report, {}).filters
    assert [(each.message, each.devices) for each in told.failures] == [
        ("eth1: it is in somebody's way.", ("eth1",)),
        ("xdp eth0: EBUSY.", ("eth0",)),
        ("entries v4: ENOMEM.", ()),
    ]
    assert told.error == " ".join(each.message for each in told.failures)
    names = tuple(f"veth{number}" for number in range(20))
    absent = PrefilterReport(devices=tuple(DeviceReport(name, error="it is not there") for name in names))
    (told,) = telling.status_of([telling.Told("a", devices=names)], {}, absent, {}).filters
    assert len(told.failures) == 8
    assert [name for each in told.failures for name in each.devices] == list(names)


async def test_what_keeps_it_from_running_is_its_error(setting: Setting) -> None:
    why = "the driver of eth0 has no native mode"
    setting.kernel.report = PrefilterReport(
        devices=(DeviceReport("eth0", error=why),), failures=(Failure("xdp", "eth0", why),)
    )
    await setting.have(prefilter("a", devices=("eth0",)), prefilter("b", devices=("eth0",)))
    status = setting.feature.status()
    assert status is not None
    assert telling.readiness_of(status) == Readiness(
        False, "PrefilterFailed", "NetloomPrefilter a, b: eth0: the driver of eth0 has no native mode."
    ), "once, though device, retry and both prefilters say it"


async def test_what_is_meant_for_one_device_is_wanted_there_alone_and_fails_alone(setting: Setting) -> None:
    devices = {2: Device("eth0"), 3: Device("eth1")}
    setting.following.now = replace(setting.following.now, devices=devices)
    setting.kernel.report = PrefilterReport(
        devices=(DeviceReport("eth0", 2, "native", 7), DeviceReport("eth1", 3, error="it is in somebody's way."))
    )
    some = (
        prefilter("a", devices=("eth*",), deny_cidrs=("198.51.100.0/24", "10.1.0.5/32")),
        prefilter("b", devices=("eth1",), deny_cidrs=("203.0.113.0/24",)),
        prefilter("c", devices=("eth0",), deny_cidrs=("203.0.113.0/24",), allow_cidrs=("198.51.100.0/24",)),
    )
    wanted = await setting.have(*some)
    assert wanted.devices == (DeviceWish("eth0", rules=0), DeviceWish("eth1", rules=1))
    on_eth0, on_eth1 = wanted.sets
    keys = denied("198.51.100.0/24") + denied("203.0.113.0/24")
    assert (on_eth0.v4.keys, on_eth0.names) == (keys, ("a", "c"))
    assert on_eth0.v4.values == value(1, allow=True) + value(1), "an exception of c's comes before a's denial, there"
    assert (on_eth1.v4.keys, on_eth1.v4.values, on_eth1.names) == (keys, value(0) + value(1), ("a", "b"))
    status = setting.feature.status()
    assert status is not None
    assert {each.name: (each.error, each.withheld) for each in status.filters} == {
        "a": ("eth1: it is in somebody's way.", 1),
        "b": ("eth1: it is in somebody's way.", 0),
        "c": ("", 0),
    }


async def test_counts_alone_are_no_news(setting: Setting) -> None:
    await setting.have(prefilter("a", deny_cidrs=("198.51.100.0/24",)))
    before = setting.feature.status()
    setting.kernel.counts = {"a": Dropped(12, 720)}
    after = setting.feature.status()
    assert before is not None
    assert after is not None
    assert after != before
    assert telling.uncounted(after, before) == before


class Writes:
    """Instead of an API server: takes what is applied to the status of the only node."""

    def __init__(self, nodes: Store[NetloomNode]) -> None:
        self.clock = ServerClock()
        self.nodes = nodes
        self.count = 0

    async def patch(self, res: Any, name: str, patch: dict[str, Any], **options: Any) -> NetloomNode:
        self.count += 1
        node = self.nodes.get(name)
        assert node is not None
        meta = ObjectMeta(name=name, resource_version=str(self.count + 1))
        status = msgspec.convert(patch["status"], type(node.status))
        return msgspec.structs.replace(node, metadata=meta, status=status)

    def event(self, *words: object) -> None:
        """Of no interest."""


async def test_a_device_that_comes_and_goes_for_ever_is_told_now_and_then() -> None:
    nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
    nodes.put(NetloomNode(metadata=ObjectMeta(name="n1", resource_version="1")))
    api, now, error = Writes(nodes), 0.0, ""

    def status() -> NodePrefilter:
        return NodePrefilter(
            (FilteredDevice("eth0", "" if error else "native", error),), (NodeFilter("a", error=error),)
        )

    reporter = PrefilterReporter("n1", nodes, api, api, status, lambda: now)  # type: ignore[arg-type]
    for turn in range(1800):  # an hour
        now, error = now + 2, "" if turn % 2 else "eth0: there is no such device."
        await reporter.reconcile("n1")
    assert 100 < api.count <= 10 + 3600 / 20, "some at once, then one in 20 seconds"
    error = "eth0: there is no such device."
    now += 20
    await reporter.reconcile("n1")
    said = nodes.get("n1")
    assert said is not None
    assert said.status.prefilter == status(), "how it ends is told"
