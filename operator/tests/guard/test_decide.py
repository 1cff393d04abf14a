"""Whatever is asked, by whomever, whatever is live: a mode with live allocations stays, and what does no harm passes.

What is right is said here a second time, from the raw objects and in the plainest way.
"""

import copy
import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from netloom.api.admission import AdmissionRequest, GroupVersionResource, UserInfo
from netloom.api.cilium import CILIUM_NODE_CONFIGS, CILIUM_POOLS
from netloom.api.core import CONFIG_MAPS, NODES
from netloom.api.meta import Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decide import decide
from netloom.guard.record import bypassed, wanted
from tests.economy import examples
from tests.guard import requests as ask
from tests.guard.requests import Json

MODES = st.sampled_from(["kubernetes", "cluster-pool", "multi-pool", "crd", "eni", "azure", "gke"])
GOOD = ["10.244.0.0/16", "10.244.0.0/24", "10.244.7.0/24", "10.240.0.0/12", "10.0.0.0/8", "10.245.0.0/16", "0.0.0.0/0"]
GOOD_6 = ["fd00:10:244::/56", "fd00:10:244::/64", "fd00::/8"]
BAD = ["", " ", "10.244.0.1/16", "10.244.0.0/016", "10.0.0.0/33", "::ffff:10.0.0.0/104", "fe80::1%eth0/64", "\ud7ff/8"]
CIDRS = st.sampled_from([*GOOD, *GOOD_6, *BAD])
LISTS = st.lists(CIDRS, max_size=3)
NAMES = st.sampled_from(["worker-1", "worker-2", "worker-3", "worker-4"])
USERS = st.sampled_from([ask.OPERATOR, ask.AGENT, "admin", "", "system:serviceaccount:flux-system:flux"])
POOL_NAMES = st.sampled_from(["default", "blue", ""])
WHY = "its list was not read yet"

HELD: st.SearchStrategy[Json] = st.builds(
    lambda mode, cidrs, pools, pool: ask.ipam(mode, *cidrs, pools=pools, pool=pool),
    MODES | st.just(""),
    LISTS,
    st.dictionaries(POOL_NAMES, LISTS, max_size=2),
    st.dictionaries(st.sampled_from(["10.0.0.1", "not an address"]), st.just({}), max_size=1),
)
NETWORK: st.SearchStrategy[Json] = st.builds(
    lambda mode, in_force, name, v4, v6, size, routing, masquerade: ask.network(
        mode,
        in_force=in_force,
        name=name,
        pool={"ipv4PodCIDRList": v4, "ipv6PodCIDRList": v6, "ipv4MaskSize": size},
        routing=routing,
        masquerade={"ipv4": masquerade},
    ),
    MODES,
    MODES | st.just(""),
    st.sampled_from(["default", "default", "default", "other"]),
    LISTS,
    LISTS,
    st.sampled_from([24, 25, 0, -1]),
    st.fixed_dictionaries(
        {"mode": st.sampled_from(["native", "tunnel", "hybrid"])},
        optional={"ipv4NativeRoutingCIDR": CIDRS, "ipv6NativeRoutingCIDR": CIDRS},
    ),
    st.booleans(),
)
NODE: st.SearchStrategy[Json] = st.builds(
    lambda name, held: {"metadata": {"name": name}, "spec": {"ipam": held}}, NAMES, HELD
)
FAMILY = st.builds(lambda cidrs, mask: {"cidrs": cidrs, "maskSize": mask}, LISTS, st.sampled_from([24, 27, 64, -3]))
POOL: st.SearchStrategy[Json] = st.builds(
    lambda name, families: {"metadata": {"name": name}, "spec": families},
    POOL_NAMES,
    st.fixed_dictionaries({}, optional={"ipv4": FAMILY, "ipv6": FAMILY}),
)
CILIUM_MODES = st.sampled_from(["cluster-pool", "multi-pool", "kubernetes", "eni", "", " cluster-pool\n", "nonsense"])
CIDR_TEXTS = st.lists(CIDRS, max_size=3).flatmap(
    lambda each: st.sampled_from([" ", ",", ", "]).map(lambda by: by.join(each))
)
MASKS = st.sampled_from(["24", "25", "024", "", "many", "-1"])
DATA: st.SearchStrategy[dict[str, str]] = st.fixed_dictionaries(
    {},
    optional={
        "ipam": CILIUM_MODES,
        "cluster-pool-ipv4-cidr": CIDR_TEXTS,
        "cluster-pool-ipv4-mask-size": MASKS,
        "cluster-pool-ipv6-cidr": CIDR_TEXTS,
        "cluster-pool-ipv6-mask-size": MASKS,
        "enable-cluster-pool-to-multi-pool-migration": st.sampled_from(["true", "false", "1", "yes", ""]),
        "auto-create-cilium-pod-ip-pools": st.sampled_from(
            ["default=ipv4-cidrs:10.244.0.0/16;ipv4-mask-size:24", "=;:", "a=b", "default"]
        ),
        "ipam-default-ip-pool": POOL_NAMES,
        "mtu": st.sampled_from(["1450", ""]),
    },
)
NODE_CONFIG: st.SearchStrategy[Json] = st.builds(
    lambda ipam, selector, data: ask.node_config(ipam, selector, **data),
    st.none() | CILIUM_MODES,
    st.sampled_from([None, {}, {"matchLabels": {"zone": "a"}}, {"matchLabels": {"zone": "b"}}]),
    st.fixed_dictionaries({}, optional={"mtu": st.sampled_from(["1450", ""])}),
)
RECORDED = st.sampled_from(["", "", "cluster-pool", "multi-pool", "kubernetes", "eni"])
KINDS = [
    "NetloomNode", "NetloomNetwork", "NetloomIPPool", "Node", "CiliumNode", "CiliumPodIPPool", "ConfigMap",
    "cilium-config",
]  # fmt: skip


@st.composite
def states(draw: st.DrawFn, seen: bool = True) -> tuple[ClusterState, dict[str, Json], dict[str, Json]]:
    """What is live, and the NetloomNodes and CiliumNodes that it was told of, as JSON."""
    live = ask.fresh()
    nodes = draw(st.dictionaries(NAMES, HELD, max_size=3))
    cilium_nodes = draw(st.dictionaries(NAMES, HELD, max_size=3))
    for name, held in nodes.items():
        ask.with_node(live, name, held)
    for name, held in cilium_nodes.items():
        ask.with_cilium_node(live, name, held)
    for name in draw(st.lists(NAMES, max_size=2)):
        ask.with_addresses(live, name, draw(st.sampled_from(["10.244.0.9", "192.168.0.1", "worker.example.com"])))
    for obj in draw(st.lists(POOL, max_size=2)):
        ask.with_pool(live, obj)
        ask.with_cilium_pool(live, obj)
    ask.with_network(live, draw(NETWORK))
    ask.with_record(live, ciliumMode=draw(RECORDED))
    if draw(st.booleans()):
        ask.with_config(live, **draw(DATA))
    if not seen:
        hidden = draw(st.sets(st.sampled_from(KINDS)))
        live.unseen = lambda kind: WHY if kind in hidden else ""
    return live, nodes, cilium_nodes


def edited(draw: st.DrawFn, old: Any, other: Any) -> Any:
    """`old` with a few of its values, at any depth, as in `other`: most of an object stays in most writes."""
    if not isinstance(old, dict) or not isinstance(other, dict):
        return other if draw(st.integers(0, 3)) == 0 else old
    new = {}
    for key in sorted({*old, *other}):
        if key in old and key in other:
            new[key] = edited(draw, old[key], other[key])
        elif (key in old) != (draw(st.integers(0, 3)) == 0):
            new[key] = old[key] if key in old else other[key]
    return new


@st.composite
def writes(draw: st.DrawFn, objects: st.SearchStrategy[Any]) -> tuple[Any, Any]:
    """An object before and after; None where there is none."""
    old, other = draw(objects), draw(objects)
    match draw(st.sampled_from(["CREATE", "UPDATE", "UPDATE", "UPDATE", "DELETE"])):
        case "CREATE":
            return None, other
        case "DELETE":
            return old, None
    return old, edited(draw, old, other)


def holds(held: Json) -> bool:
    return bool(held["podCIDRs"] or held["pool"] or any(each["cidrs"] for each in held["pools"]["allocated"]))


def mode_in_spec(network: Json) -> str:
    return network["spec"]["ipam"]["mode"]  # type: ignore[no-any-return]


def mode_in_status(network: Json | None) -> str:
    return (network or {}).get("status", {}).get("ipam", {}).get("mode", "")  # type: ignore[no-any-return]


@settings(max_examples=examples(150))
@given(states(seen=False), writes(NETWORK), USERS, st.booleans())
def test_the_mode_of_a_live_network_never_changes(
    state: tuple[ClusterState, dict[str, Json], Any], write: tuple[Json | None, Json | None], user: str, dry_run: bool
) -> None:
    live, nodes, _ = state
    old, new = write
    if old and new:
        new["metadata"] = old["metadata"]
    allowed = ask.verdict(live, NETWORKS, old, new, user=user, dry_run=dry_run).allowed
    holding = [held for held in nodes.values() if holds(held)]
    recorded = {held["mode"] for held in holding} - {""}
    in_use = bool(holding or mode_in_status(old))
    event(f"in use {in_use}, allowed {allowed}, old {bool(old)}, new {bool(new)}")
    if not allowed:
        return
    assert (new or old)["metadata"]["name"] == "default" or old  # type: ignore[index]
    if not in_use or (new or old)["metadata"]["name"] != "default":  # type: ignore[index]
        return
    assert new, "deleted while in use"
    if old:
        in_force = {mode_in_status(old)} - {""} or recorded
        assert mode_in_spec(new) in {mode_in_spec(old), *in_force}
        assert user == ask.OPERATOR or old["status"] == new["status"]
    else:
        assert not recorded or mode_in_spec(new) in recorded
        assert not live.unseen("NetloomNode")


def cilium_mode(data: dict[str, str]) -> str:
    return data.get("ipam", "").strip() or "cluster-pool"


@settings(max_examples=examples(150))
@given(states(seen=False), writes(DATA), USERS, st.booleans())
def test_the_mode_of_a_live_cilium_never_changes(
    state: tuple[ClusterState, Any, dict[str, Json]],
    write: tuple[dict[str, str] | None, dict[str, str] | None],
    user: str,
    dry_run: bool,
) -> None:
    live, _, nodes = state
    old, new = write
    before, after = (None if data is None else ask.config(**data) for data in (old, new))
    allowed = ask.verdict(live, CONFIG_MAPS, before, after, user=user, dry_run=dry_run).allowed
    recorded = live.recorded["ciliumMode"]
    mode = recorded or (cilium_mode(old) if old is not None else "")
    in_use = bool(recorded) or any(map(holds, nodes.values()))
    event(f"in use {in_use}, allowed {allowed}, old {old is not None}, new {new is not None}")
    if not allowed or not in_use:
        return
    assert new is not None, "deleted while in use"
    flag = new.get("enable-cluster-pool-to-multi-pool-migration") in ("true", "1")
    if mode == "cluster-pool" and cilium_mode(new) == "multi-pool" and flag:
        return
    if old is None:
        assert not recorded or cilium_mode(new) == recorded
        return
    assert cilium_mode(new) in {mode, cilium_mode(old)}
    assert new.get("ipam", "").strip() or not old.get("ipam", "").strip(), "the key was removed while in use"
    if mode == "cluster-pool":
        for key, version in (("cluster-pool-ipv4-cidr", 4), ("cluster-pool-ipv6-cidr", 6)):
            assert networks(old.get(key, ""), version) <= networks(new.get(key, ""), version)


@settings(max_examples=examples(150))
@given(states(seen=False), writes(NODE_CONFIG), USERS, st.booleans())
def test_no_node_of_a_live_cilium_gets_another_mode(
    state: tuple[ClusterState, Any, dict[str, Json]], write: tuple[Json | None, Json | None], user: str, dry_run: bool
) -> None:
    live, _, nodes = state
    old, new = write
    verdict = ask.verdict(live, CILIUM_NODE_CONFIGS, old, new, user=user, dry_run=dry_run)
    recorded = live.recorded["ciliumMode"]
    in_use = bool(recorded) or any(map(holds, nodes.values()))
    mode = recorded or (cilium_mode(live.cilium_data) if live.cilium_data is not None else "not known")
    if recorded == "cluster-pool" and live.cilium_data is not None and migrates(live.cilium_data):
        mode = "multi-pool"
    was, asks = (None if each is None else each["spec"]["defaults"].get("ipam") for each in (old, new))
    event(f"in use {in_use}, mode {mode}, allowed {verdict.allowed}, old {bool(old)}, new {bool(new)}")
    if new is None or asks is None:
        assert verdict.allowed, "it takes an override away, or there is none"
    elif old and was is not None and (was.strip(), selector(old)) == (asks.strip(), selector(new)):
        assert verdict.allowed, "nothing changes for any node"
    elif in_use and asks.strip() != mode:
        assert not verdict.allowed
        assert bool(verdict.refusals) != bool(verdict.unseen)
    elif not any(map(live.unseen, ("CiliumNode", "ConfigMap", "cilium-config"))):
        assert verdict.allowed


def selector(config: Json) -> Any:
    return config["spec"].get("nodeSelector")


def migrates(data: dict[str, str]) -> bool:
    flag = data.get("enable-cluster-pool-to-multi-pool-migration", "")
    return cilium_mode(data) == "multi-pool" and flag in ("true", "1")


def networks(text: str, version: int) -> set[Any]:
    """The elements of a list that are networks of a family."""
    found = set()
    for element in text.replace(",", " ").split():
        try:
            network = ipaddress.ip_network(element, strict=False)
        except ValueError:
            continue
        if network.version == version and "/" in element and "/0" not in element[:-1] and "%" not in element:
            found.add(network)
    return {network for network in found if "ffff" not in str(network)}


@given(states(seen=False), NETWORK, USERS)
def test_no_mode_takes_the_place_of_another(
    state: tuple[ClusterState, dict[str, Json], Any], old: Json, user: str
) -> None:
    live, nodes, _ = state
    old["metadata"]["name"] = "default"
    holding = [held for held in nodes.values() if holds(held)]
    in_force = {mode_in_status(old)} - {""} or {held["mode"] for held in holding} - {""}
    for mode in ("kubernetes", "cluster-pool", "multi-pool", "crd", "eni", "azure", "gke"):
        new = copy.deepcopy(old)
        new["spec"]["ipam"]["mode"] = mode
        if (holding or in_force) and mode not in {mode_in_spec(old), *in_force}:
            assert not ask.verdict(live, NETWORKS, old, new, user=user).allowed


@given(states(seen=False), DATA, USERS)
def test_no_mode_of_cilium_takes_the_place_of_another(
    state: tuple[ClusterState, Any, dict[str, Json]], old: dict[str, str], user: str
) -> None:
    live, _, nodes = state
    recorded = live.recorded["ciliumMode"]
    in_force = recorded or cilium_mode(old)
    if not recorded and not any(map(holds, nodes.values())):
        return
    for flag in ("true", "yes"):
        old["enable-cluster-pool-to-multi-pool-migration"] = flag
        for mode in ("kubernetes", "cluster-pool", "multi-pool", "eni", "nonsense", ""):
            new = old | {"ipam": mode}
            moved = cilium_mode(new) not in {in_force, cilium_mode(old)} or (not mode and old.get("ipam", "").strip())
            migrates = (in_force, mode, flag) == ("cluster-pool", "multi-pool", "true")
            if moved and not migrates:
                assert not ask.verdict(live, CONFIG_MAPS, ask.config(**old), ask.config(**new), user=user).allowed


@given(states(seen=False), NETWORK, st.integers(0, 9000), USERS)
def test_a_harmless_change_of_the_network_passes(
    state: tuple[ClusterState, Any, Any], old: Json, mtu: int, user: str
) -> None:
    new = copy.deepcopy(old)
    new["spec"] |= {"mtu": mtu, "devices": ["eth1"]}
    new["metadata"] |= {"labels": {"a": "b"}}
    new["spec"]["ipam"]["clusterPool"]["ipv4PodCIDRList"].append("10.99.0.0/16")
    new["spec"]["masquerade"]["nonMasqueradeCIDRs"] = ["192.168.0.0/16"]
    assert ask.verdict(state[0], NETWORKS, old, new, user=user).allowed
    new["spec"]["masquerade"]["ipv4"] = False
    assert ask.verdict(state[0], NETWORKS, old, new, user=user).allowed


@given(states(seen=False), DATA, st.text(max_size=5), USERS)
def test_a_harmless_change_of_ciliums_configuration_passes(
    state: tuple[ClusterState, Any, Any], old: dict[str, str], text: str, user: str
) -> None:
    new = old | {"mtu": text, "debug": "true", "auto-create-cilium-pod-ip-pools": text}
    assert ask.verdict(state[0], CONFIG_MAPS, ask.config(**old), ask.config(**new), user=user).allowed
    key = "cluster-pool-ipv4-cidr"
    new[key] = ", ".join(["10.99.0.0/16", *old.get(key, "").replace(",", " ").split()[::-1]])
    assert ask.verdict(state[0], CONFIG_MAPS, ask.config(**old), ask.config(**new), user=user).allowed


@given(states(seen=False), NODE, POOL, USERS)
def test_labels_of_nodes_and_pools_are_anybodys(
    state: tuple[ClusterState, Any, Any], node: Json, pool: Json, user: str
) -> None:
    for resource, old in ((NETLOOM_NODES, node), (POOLS, pool), (CILIUM_POOLS, pool)):
        new = copy.deepcopy(old)
        new["metadata"]["labels"] = {"a": "b"}
        new["status"] = {"conditions": []}
        assert ask.verdict(state[0], resource, old, new, user=user).allowed


@settings(max_examples=examples(150))
@given(states(), st.data())
def test_pools_keep_the_blocks_that_nodes_hold(
    state: tuple[ClusterState, dict[str, Json], dict[str, Json]], data: st.DataObject
) -> None:
    live, nodes, cilium_nodes = state
    for resource, held_by in ((POOLS, nodes), (CILIUM_POOLS, cilium_nodes)):
        old, new = data.draw(writes(POOL))
        if old is None:
            continue
        name = old["metadata"]["name"]
        if new:
            new["metadata"] = old["metadata"]
        allowed = ask.verdict(live, resource, old, new).allowed
        blocks = [
            text
            for held in held_by.values()
            for each in held["pools"]["allocated"]
            if each["pool"] == name and name
            for text in each["cidrs"]
        ]
        if not allowed or not blocks:
            continue
        assert new, "deleted while in use"
        for family in ("ipv4", "ipv6"):
            was, now = old["spec"].get(family, {}), new["spec"].get(family, {})
            for network in networks(" ".join(blocks), int(family[-1])):
                if any(network.subnet_of(each) for each in networks(" ".join(was.get("cidrs", [])), network.version)):
                    kept = ipaddress.collapse_addresses(networks(" ".join(now.get("cidrs", [])), network.version))
                    assert any(network.subnet_of(each) for each in kept)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "name", "spec", "ipam", "mode", "data", "status", "cidrs", "ipv4", "pools", "allocated"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
DEEP = [b"[" * 100_000, b'{"spec":' * 100_000, b'{"x":' * 100_000]
NO_TEXT = [b"\xff\xfe", b"null", b"", b'{"metadata":{"name":"a\xff"}}']
RAW = (
    st.binary(max_size=30)
    | ANY_JSON.map(msgspec.json.encode)
    | (NETWORK | NODE | POOL | NODE_CONFIG | DATA.map(lambda data: ask.config(**data))).map(msgspec.json.encode)
    | st.sampled_from([*DEEP, *NO_TEXT])
)
RESOURCES = st.sampled_from([NETWORKS, NETLOOM_NODES, POOLS, CILIUM_POOLS, CILIUM_NODE_CONFIGS, CONFIG_MAPS, NODES])


@given(
    states(seen=False),
    RESOURCES,
    st.sampled_from(["CREATE", "UPDATE", "DELETE", "CONNECT"]),
    st.sampled_from(["", "default", "cilium-config", "worker-1"]),
    RAW,
    RAW,
    USERS,
)
def test_there_is_always_a_verdict(
    state: tuple[ClusterState, Any, Any], resource: Resource[Any], operation: Any, name: str,
    old: bytes, new: bytes, user: str,
) -> None:  # fmt: skip
    verdict = decide(
        AdmissionRequest(
            uid="1",
            operation=operation,
            resource=GroupVersionResource(group=resource.group, version="v9", resource=resource.plural),
            name=name,
            namespace="kube-system" if resource in (CONFIG_MAPS, CILIUM_NODE_CONFIGS) else "",
            user_info=UserInfo(username=user),
            object=msgspec.Raw(new),
            old_object=msgspec.Raw(old),
        ),
        state[0],
    )
    assert verdict.allowed or verdict.refusals or verdict.unseen
    for problem in verdict.refusals:
        assert problem.severity == "error"
        assert problem.object.startswith(resource.kind)
        assert problem.field
        assert problem.message.endswith(".")
        assert problem.way_out.endswith(".")


@given(states())
def test_there_is_always_a_record(state: tuple[ClusterState, dict[str, Json], dict[str, Json]]) -> None:
    live, _, cilium_nodes = state
    data = wanted(live)
    assert all(data.values())
    assert ("ciliumInUse" in data) == ("ciliumMode" in data)
    if not any(map(holds, cilium_nodes.values())):
        # Nodes live, and nobody saw what went: the record is not cleared for that.
        kept = live.recorded if live.nodes and live.recorded.get("ciliumMode") else {}
        assert data.get("ciliumMode") == kept.get("ciliumMode")
        assert kept or bypassed(live, "netloom-system") is None
    elif (mode := live.recorded["ciliumMode"]) and data["ciliumMode"] != mode:
        assert (mode, data["ciliumMode"]) == ("cluster-pool", "multi-pool")


@pytest.mark.parametrize("resource", [NODES, CONFIG_MAPS, NETWORKS], ids=lambda resource: resource.kind)
def test_what_is_not_guarded_is_allowed(resource: Resource[Any]) -> None:
    live = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 1), ciliumMode="eni")
    obj = ask.config("other") if resource is CONFIG_MAPS else ask.network(name="other")
    assert ask.verdict(live, resource, obj, obj | {"data": {"ipam": "x"}}).allowed
    assert ask.verdict(live, resource, obj).allowed
    elsewhere = ask.config(namespace="elsewhere", ipam="kubernetes")
    assert ask.verdict(live, CONFIG_MAPS, elsewhere).allowed
