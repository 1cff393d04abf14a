"""The caches that features ask for: each kind once, whoever asks, from a cluster or from a directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS, NetloomNode
from netloom.roles.agent_sources import AgentOptions, cluster_sources
from netloom.roles.sources import Sources
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError
from netloom.runtime.manager import Manager
from tests.roles.test_crashes import NODE_PATH, running
from tests.runtime.scripted import ScriptedApi, until


def write(folder: Path, kind: str, name: str, **spec: Any) -> None:
    made = {"apiVersion": "netloom.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    (folder / f"{name}.json").write_text(json.dumps(made))


async def test_two_that_ask_for_a_kind_share_a_store_and_hear_what_either_wants(server: ScriptedApi, api: Api) -> None:
    server.put(NODE_PATH, {"metadata": {"name": "a", "generation": 1}, "spec": {}})
    sources = Sources(api)
    store = sources.store(NETLOOM_NODES, lambda old, new: old.spec.ipam != new.spec.ipam)
    assert sources.store(NETLOOM_NODES, lambda old, new: old.spec.addresses != new.spec.addresses) is store
    heard: list[NetloomNode | None] = []
    store.subscribe(lambda key, old, new: heard.append(new))
    manager = Manager()
    sources.add_to(manager)
    async with running(manager):
        await until(lambda: len(heard) == 1)
        assert server.count("list") == 1
        server.put(NODE_PATH, {"metadata": {"name": "a"}, "spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}})
        await until(lambda: len(heard) == 2)
        server.put(NODE_PATH, {"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": _spec()})
        server.put(
            NODE_PATH,
            {"metadata": {"name": "a"}, "spec": _spec() | {"addresses": [{"type": "InternalIP", "ip": "10.9.9.9"}]}},
        )
        await until(lambda: len(heard) == 3)
        assert heard[-1] is not None
        assert heard[-1].spec.addresses, "the label was nobody's concern"


def _spec() -> dict[str, Any]:
    return {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}


async def test_a_directory_is_read_for_what_was_asked_and_holds_the_rest_as_well(tmp_path: Path) -> None:
    write(tmp_path, "NetloomNetwork", "default", ipam={"mode": "kubernetes"})
    write(tmp_path, "NetloomIPPool", "blue", ipv4={"cidrs": ["10.50.0.0/16"], "maskSize": 24})
    write(tmp_path, "NetloomNode", "a")
    sources = Sources(None, tmp_path)
    networks, pools = sources.store(NETWORKS), sources.store(POOLS)
    await sources.fill()
    assert (list(networks), list(pools)) == (["default"], ["blue"])
    assert sources.watch(NETWORKS) is None
    assert sources.fault(NETWORKS) == ""


async def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    sources = Sources(None, tmp_path)
    sources.store(NETWORKS)
    with pytest.raises(ConfigError, match=r"^bad\.json"):
        await sources.fill()


async def test_of_other_nodes_single_addresses_are_not_kept(server: ScriptedApi, api: Api, tmp_path: Path) -> None:
    """There may be a hundred thousand, and nothing is sent to them from here."""
    ipam = {"mode": "crd", "pool": {f"10.7.0.{n}": {"resource": "eni"} for n in range(9)}}
    for name in ("own", "other"):
        server.put(NODE_PATH, {"metadata": {"name": name}, "spec": {"ipam": ipam}})
    sources = cluster_sources(AgentOptions(node_name="own", run_dir=tmp_path), api)
    store = sources.store(NETLOOM_NODES)
    manager = Manager()
    sources.add_to(manager)
    async with running(manager):
        await until(lambda: len(store) == 2)
        own, other = store.get("own"), store.get("other")
        assert own is not None
        assert other is not None
        assert (len(own.spec.ipam.pool), len(other.spec.ipam.pool)) == (9, 0)
        assert other.spec.ipam.mode == "crd"
