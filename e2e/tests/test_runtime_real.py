"""The runtime against a real API server: what the scripted one in operator/tests/runtime cannot vouch for."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec
import pytest

from netloom.api.cilium import CILIUM_NODES
from netloom.api.coordination import LEASES
from netloom.api.core import NODES, Node
from netloom.api.events import ObjectReference
from netloom.api.meta import ObjectMeta, Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, Address, NetloomNetwork, NetloomNode, NetloomNodeSpec
from netloom.runtime.client import Api
from netloom.runtime.errors import (
    AlreadyExists,
    ApiError,
    ConfigError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)
from netloom.runtime.events import EventRecorder
from netloom.runtime.leader import LeaderElector
from netloom.runtime.optional import OptionalWatch
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import install_cilium, uninstall_cilium
from netloom_e2e.namespaces import until


@pytest.fixture
def plane(crds_installed: ControlPlane) -> Iterator[ControlPlane]:
    yield crds_installed
    crds_installed.delete_all("nodes", "netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")
    crds_installed.delete_all("leases.v1.coordination.k8s.io", namespace="default")


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[Api]:
    async with await Api.connect(str(plane.kubeconfig())) as client:
        yield client


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def served_again(api: Api) -> None:
    """Leaves the shared control plane as it was found: of a new process, custom resources come last."""
    async with asyncio.timeout(30):
        for resource in (NODES, NETLOOM_NODES, NETWORKS):
            while True:
                try:
                    await api.list(resource)
                    break
                except ApiError as error:
                    await asyncio.sleep(error.retry_after or 0.1)


def node(name: str, **labels: str) -> Node:
    return Node(metadata=ObjectMeta(name=name, labels=labels))


async def test_objects_live_their_life(api: Api):
    assert (await api.check()).startswith("v1.")
    made = await api.create(NODES, node("a", x="1"))
    assert made.metadata.uid
    with pytest.raises(AlreadyExists):
        await api.create(NODES, node("a"))

    merged = await api.patch(NODES, "a", {"metadata": {"labels": {"x": None, "y": "2"}}})
    assert merged.metadata.labels == {"y": "2"}
    applied = await api.patch(
        NODES, "b", {"metadata": {"name": "b", "labels": {"by": "apply"}}}, kind="apply", field_manager="netloom"
    )
    assert applied.metadata.labels == {"by": "apply"}

    with pytest.raises(Conflict):
        await api.delete(NODES, "a", uid="00000000-0000-0000-0000-000000000000")
    await api.delete(NODES, "a", uid=made.metadata.uid)
    with pytest.raises(NotFound):
        await api.get(NODES, "a")


@pytest.mark.parametrize("resource", [NODES, NETLOOM_NODES])
@pytest.mark.parametrize("kind", ["merge", "apply"])
async def test_a_patch_of_a_predecessor_is_a_conflict(
    api: Api, resource: Resource[Node] | Resource[NetloomNode], kind: Literal["merge", "apply"]
):
    def new() -> Any:
        return resource.type(metadata=ObjectMeta(name="a"))

    async def patch(labels: dict[str, str]) -> None:
        meta = {"name": "a", "uid": made.metadata.uid, "labels": labels}
        await api.patch(resource, "a", {"metadata": meta}, kind=kind, field_manager="me")

    made = await api.create(resource, new())
    await patch({"x": "1"})
    await api.delete(resource, "a")
    await api.create(resource, new())
    with pytest.raises(Conflict):
        await patch({"x": "2"})
    assert not (await api.get(resource, "a")).metadata.labels


async def test_a_replacement_is_a_compare_and_swap(api: Api):
    made = await api.create(NETLOOM_NODES, NetloomNode(metadata=ObjectMeta(name="a")))
    spec = NetloomNodeSpec(addresses=(Address(type="InternalIP", ip="10.0.0.1"),))
    replaced = await api.replace(NETLOOM_NODES, msgspec.structs.replace(made, spec=spec))
    assert replaced.spec == spec
    with pytest.raises(Conflict):
        await api.replace(NETLOOM_NODES, made)


async def test_the_servers_reason_is_in_the_error(api: Api):
    with pytest.raises(Invalid, match="default"):
        await api.create(NETWORKS, NetloomNetwork(metadata=ObjectMeta(name="second")))


async def test_rights_and_certificates(plane: ControlPlane):
    async with await Api.connect(str(plane.kubeconfig("nobody-in-particular"))) as stranger:
        await stranger.check()
        with pytest.raises(Forbidden, match='User "nobody-in-particular" cannot list resource "nodes"'):
            await stranger.list(NODES)


async def test_a_long_list_comes_in_chunks(plane: ControlPlane, api: Api):
    await asyncio.gather(*(api.create(NODES, node(f"n{number:04}")) for number in range(120)))
    listing = await api.list(NODES, limit=50)
    assert len(listing.objects) == 120
    assert listing.resource_version


async def test_the_cache_survives_every_outage(plane: ControlPlane, api: Api):
    """A frozen API server (half-open connections), then a killed one, with changes that are missed."""
    store = Store(NODES)
    watch = ListWatch(api, store, timing=WatchTiming(inactivity=1.0, base=0.05, cap=0.5))
    task = asyncio.create_task(watch.run())
    await store.wait_synced(10)

    async def equal() -> None:
        there = {obj.metadata.name: obj.metadata.resource_version for obj in (await api.list(NODES)).objects}
        await until(
            lambda: {key: obj.metadata.resource_version for key, obj in store.items()} == there, "cache = truth"
        )

    for number in range(5):
        await api.create(NODES, node(f"n{number}"))
    await equal()

    plane.pause_apiserver()
    try:
        await until(lambda: "nothing came" in watch.fault or "no answer" in watch.fault, "the silence is noticed")
    finally:
        plane.resume_apiserver()
    await api.delete(NODES, "n0")
    await api.patch(NODES, "n1", {"metadata": {"labels": {"x": "1"}}})
    await equal()

    plane.kill_apiserver()
    await until(lambda: watch.fault, "the loss is noticed")
    with pytest.raises(Unavailable):
        await api.get(NODES, "n1")
    with pytest.raises(ConfigError, match="cannot be reached: Connection refused"):
        await api.check()
    await asyncio.to_thread(plane.start_apiserver)
    await api.delete(NODES, "n1")
    await api.create(NODES, node("new"))
    await equal()
    assert sorted(store) == ["n2", "n3", "n4", "new"]
    await until(lambda: not watch.fault)
    await end(task)
    await served_again(api)


async def test_bookmarks_and_filters(plane: ControlPlane, api: Api):
    store, heard = Store(NODES), []
    store.subscribe(lambda key, _old, _new: heard.append(key))
    watch = ListWatch(api, store, label_selector="role=edge", changed=lambda old, new: old.spec != new.spec)
    task = asyncio.create_task(watch.run())
    await store.wait_synced(10)
    await api.create(NODES, node("edge", role="edge"))
    await api.create(NODES, node("core", role="core"))
    await until(lambda: "edge" in store)
    await api.patch(NODES, "edge", {"metadata": {"labels": {"beat": "1"}}})
    latest = (await api.get(NODES, "edge")).metadata.resource_version
    await until(lambda: (held := store.get("edge")) and held.metadata.resource_version == latest)
    await api.patch(NODES, "edge", {"metadata": {"labels": {"role": "core"}}})  # leaves the selection
    await until(lambda: "edge" not in store)
    assert heard == ["edge", "edge"]
    await end(task)


async def test_kubectl_shows_events_of_a_cluster_scoped_object(plane: ControlPlane, api: Api):
    made = await api.create(NETLOOM_NODES, NetloomNode(metadata=ObjectMeta(name="a")))
    recorder = EventRecorder(api, "netloom-operator")
    kind, version = NETLOOM_NODES.kind, NETLOOM_NODES.api_version
    about = ObjectReference(api_version=version, kind=kind, name="a", uid=made.metadata.uid)
    task = asyncio.create_task(recorder.run())
    for _ in range(3):
        recorder.event(about, "Warning", "PoolExhausted", "no CIDR is left in 10.0.0.0/16")

    def described() -> bool:
        text = plane.kubectl("describe", "netloomnode", "a").stdout
        return "PoolExhausted" in text and "no CIDR is left in 10.0.0.0/16" in text

    await until(described, "kubectl describe shows it")
    listed = plane.kubectl("get", "events", "--field-selector=reason=PoolExhausted", "--no-headers").stdout
    assert listed.count("netloomnode/a") == 1
    await end(task)
    plane.delete_all("events", namespace="default")


async def test_kubectl_shows_who_leads(plane: ControlPlane, api: Api):
    one = LeaderElector(api, "operator", "default", "one", lease_seconds=3, renew_deadline=2, retry=0.2)
    two = LeaderElector(api, "operator", "default", "two", lease_seconds=3, renew_deadline=2, retry=0.2)
    led: list[str] = []

    async def lead(who: LeaderElector) -> None:
        led.append(who.identity)
        await asyncio.Event().wait()

    first = asyncio.create_task(one.run(lambda: lead(one)))
    await until(lambda: led == [one.identity])
    second = asyncio.create_task(two.run(lambda: lead(two)))
    assert one.identity in plane.kubectl("get", "lease", "operator").stdout
    await end(first)
    await until(lambda: led == [one.identity, two.identity])
    lease = await api.get(LEASES, "operator", "default")
    assert (lease.spec.holder_identity, lease.spec.lease_transitions) == (two.identity, 1)
    await end(second)


async def test_a_frozen_api_server_ends_the_leader_in_time(plane: ControlPlane, api: Api):
    one = LeaderElector(api, "operator", "default", "one", lease_seconds=3, renew_deadline=1, retry=0.2)
    leading: list[bool] = []

    async def lead() -> None:
        leading.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            leading.append(False)

    task = asyncio.create_task(one.run(lead))
    await until(lambda: leading == [True])
    plane.pause_apiserver()
    try:
        await until(lambda: leading == [True, False], "the work has ended", seconds=3)
    finally:
        plane.resume_apiserver()
    await asyncio.wait([task])
    assert "could not be renewed in time" in str(task.exception())
    await served_again(api)


async def test_a_kind_comes_goes_and_comes_again_as_another(plane: ControlPlane, api: Api) -> None:
    store = Store(CILIUM_NODES)
    watch = OptionalWatch(api, store, timing=WatchTiming(base=0.01, cap=0.1))
    assert "whether there is a ciliumnodes.cilium.io is not known" in watch.fault
    running = asyncio.create_task(watch.run())

    def add(name: str) -> None:
        body = {"apiVersion": CILIUM_NODES.api_version, "kind": CILIUM_NODES.kind, "metadata": {"name": name}}
        plane.client.request("POST", CILIUM_NODES.path(), body | {"spec": {}})

    try:
        await until(lambda: watch.fault == "", "no such kind, which is an answer")
        assert not watch.served
        for name in ("a", "b"):
            await asyncio.to_thread(install_cilium, plane)
            await until(lambda: watch.served and watch.fault == "", "the kind is there")
            assert len(store) == 0
            add(name)
            await until(lambda name=name: list(store) == [name], "its objects are there")  # type: ignore[misc]
            await asyncio.to_thread(uninstall_cilium, plane)
            await until(lambda: not watch.served and len(store) == 0, "the kind is gone")
            assert watch.fault == ""
    finally:
        await end(running)
        await asyncio.to_thread(uninstall_cilium, plane)


async def test_a_kind_that_may_not_be_watched_is_not_taken_for_missing(plane: ControlPlane) -> None:
    async with await Api.connect(str(plane.kubeconfig("nobody"))) as stranger:
        watch = OptionalWatch(stranger, Store(CILIUM_NODES), timing=WatchTiming(base=0.01, cap=0.1))
        running = asyncio.create_task(watch.run())
        try:
            await until(lambda: "is forbidden" in watch.fault, "it says why")
        finally:
            await end(running)
