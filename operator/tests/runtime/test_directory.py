"""Manifest files as the source of the desired objects, on a real file system."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from netloom.api.core import NODES
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, NetloomNetwork, NetloomNode
from netloom.runtime import metrics
from netloom.runtime.directory import DirectorySource, DirectoryTiming
from netloom.runtime.errors import ConfigError
from netloom.runtime.manifests import InvalidManifests, parse
from netloom.runtime.store import Store
from tests.runtime.scripted import until

NETWORK = """\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata:
  name: default
spec:
  mtu: {mtu}
"""


def node(*names: str, ip: str = "10.0.0.1") -> str:
    return "".join(
        f"---\napiVersion: netloom.dev/v1alpha1\nkind: NetloomNode\nmetadata: {{name: {name}}}\n"
        f"spec:\n  addresses: [{{type: InternalIP, ip: {ip}}}]\n"
        for name in names
    )


class Scene:
    """A directory, a running source, and what it put into the stores."""

    def __init__(self, path: Path, **timing: float) -> None:
        self.path = path
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.heard: list[tuple[str, str]] = []
        self.nodes.subscribe(self._hear)
        stores: list[Store[Any]] = [self.networks, self.nodes]
        settings = DirectoryTiming(**{"settle": 0.01, "compare": 30.0, **timing})
        self.source = DirectorySource(path, stores, ignored=[NODES], timing=settings)

    def _hear(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        self.heard.append((key, "gone" if new is None else "new" if old is None else "changed"))

    def write(self, name: str, content: str) -> None:
        (self.path / name).write_text(content)

    def names(self) -> list[str]:
        return sorted(self.nodes)

    def problems(self) -> list[str]:
        return [str(problem) for problem in self.source.problems]

    async def holds(self, *names: str) -> None:
        await until(lambda: self.names() == sorted(names), f"{names} instead of {self.names()} ({self.problems()})")


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Scene]]]:
    tasks: list[asyncio.Task[None]] = []

    async def start(files: dict[str, str] | None = None, **timing: float) -> Scene:
        path = tmp_path / "manifests"
        path.mkdir(exist_ok=True)
        scene = Scene(path, **timing)
        for name, content in (files or {}).items():
            scene.write(name, content)
        tasks.append(asyncio.create_task(scene.source.run()))
        await until(lambda: scene.nodes.synced.is_set() or scene.source.problems)
        return scene

    yield start
    for task in tasks:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


Begin = Callable[..., Awaitable[Scene]]


async def test_files_come_change_and_go(begin: Begin):
    scene = await begin({"network.yaml": NETWORK.format(mtu=1500), "nodes.yml": node("a", "b")})
    assert scene.names() == ["a", "b"]
    network = scene.networks.get("default")
    assert network is not None
    assert network.spec.mtu == 1500

    scene.write("c.json", '{"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "c"}}')
    await scene.holds("a", "b", "c")
    scene.write("nodes.yml", node("a", ip="10.0.0.2"))
    await scene.holds("a", "c")
    (scene.path / "c.json").unlink()
    await scene.holds("a")
    (scene.path / "nodes.yml").rename(scene.path / "nodes.yml.off")
    await scene.holds()
    assert scene.heard == [
        ("a", "new"), ("b", "new"), ("c", "new"), ("b", "gone"), ("a", "changed"), ("c", "gone"), ("a", "gone"),
    ]  # fmt: skip


async def test_an_empty_directory_is_a_complete_answer(begin: Begin):
    scene = await begin()
    assert scene.networks.synced.is_set()
    assert not scene.source.problems


async def test_other_files_are_no_concern(begin: Begin):
    scene = await begin(
        {"README.md": "no", ".hidden.yaml": "a: [", "#x.yaml#": "a: [", "a.yaml~": "a: [", "a.yaml": ""}
    )
    (scene.path / "sub.yaml").mkdir()
    os.mkfifo(scene.path / "pipe.yaml")
    scene.write("b.yaml", node("b"))
    await scene.holds("b")
    assert not scene.source.problems


async def test_a_file_is_not_read_while_it_is_written(begin: Begin):
    scene = await begin({"nodes.yaml": node("a", "b")})
    with (scene.path / "nodes.yaml").open("w") as file:  # truncated: no object is in it now
        file.write(node("a"))
        file.flush()
        scene.write("other.yaml", node("other"))
        await scene.holds("a", "b", "other")
        file.write(node("b", "c"))
    await scene.holds("a", "b", "c", "other")
    assert ("b", "gone") not in scene.heard


async def test_a_new_file_is_not_read_while_it_is_written(begin: Begin):
    scene = await begin()
    with (scene.path / "nodes.yaml").open("w") as file:
        file.write("apiVersion: [")
        file.flush()
        scene.write("other.yaml", node("other"))
        await scene.holds("other")
        assert not scene.source.problems
        file.seek(0)
        file.write(node("a"))
    await scene.holds("a", "other")


async def test_an_editor_that_moves_the_file_away_removes_nothing(begin: Begin):
    scene = await begin({"nodes.yaml": node("a", "b")}, settle=0.2)
    (scene.path / "nodes.yaml").rename(scene.path / "nodes.yaml~")  # as vim does
    scene.write("4913", "")
    scene.write("nodes.yaml", node("a", "b", "c"))
    (scene.path / "nodes.yaml~").unlink()
    await scene.holds("a", "b", "c")
    assert scene.heard == [("a", "new"), ("b", "new"), ("c", "new")]


async def test_a_file_renamed_into_place_is_one_change(begin: Begin):
    scene = await begin({"nodes.yaml": node("a")})
    scene.write("nodes.yaml.tmp", node("a", "b"))
    (scene.path / "nodes.yaml.tmp").rename(scene.path / "nodes.yaml")
    await scene.holds("a", "b")
    assert scene.heard == [("a", "new"), ("b", "new")]


async def test_links_appear_like_files(begin: Begin, tmp_path: Path):
    scene = await begin()
    (tmp_path / "one").write_text(node("one"))
    (tmp_path / "two").write_text(node("two"))
    (scene.path / "one.yaml").symlink_to(tmp_path / "one")
    (scene.path / "two.yaml").hardlink_to(tmp_path / "two")
    await scene.holds("one", "two")
    (scene.path / "one.yaml").unlink()
    await scene.holds("two")


async def test_a_configmap_is_swapped_as_a_whole(begin: Begin, tmp_path: Path):
    """As the kubelet does it: files are links through `..data`, which is replaced."""
    path = tmp_path / "manifests"
    for version, names in (("..v1", ("a", "b")), ("..v2", ("b", "c"))):
        (path / version).mkdir(parents=True)
        (path / version / "nodes.yaml").write_text(node(*names))
    (path / "..data").symlink_to("..v1")
    (path / "nodes.yaml").symlink_to("..data/nodes.yaml")
    scene = await begin()
    assert scene.names() == ["a", "b"]
    (path / "..data_tmp").symlink_to("..v2")
    (path / "..data_tmp").rename(path / "..data")
    shutil.rmtree(path / "..v1")
    await scene.holds("b", "c")
    assert ("b", "gone") not in scene.heard


async def test_a_change_that_no_event_tells_is_found(begin: Begin, tmp_path: Path):
    (tmp_path / "elsewhere").write_text(node("a"))
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "nodes.yaml").symlink_to(tmp_path / "elsewhere")
    scene = await begin(compare=0.05)
    await scene.holds("a")
    (tmp_path / "elsewhere").write_text(node("a", "b"))
    await scene.holds("a", "b")


async def test_a_broken_file_keeps_its_last_good_objects(begin: Begin):
    scene = await begin({"nodes.yaml": node("a", "b"), "other.yaml": node("other")})
    scene.write("nodes.yaml", node("a", "new") + "---\n" + NETWORK.format(mtu="large"))
    scene.write("other.yaml", node("other", "another"))
    await scene.holds("a", "b", "other", "another")
    assert scene.problems() == ["nodes.yaml, document 3, spec.mtu: Expected `int`, got `str`"]
    assert scene.source.fault() == scene.problems()[0]
    assert metrics.REGISTRY.get_sample_value("netloom_manifest_problems") == 1
    scene.write("nodes.yaml", node("a", "new"))
    await scene.holds("a", "new", "other", "another")
    assert not scene.source.fault()


async def test_a_file_broken_from_the_start_holds_back_the_sync(begin: Begin):
    """After a restart a typo must not look like the deletion of all peers."""
    scene = await begin({"bad.yaml": "spec: [", "good.yaml": node("a")})
    assert scene.problems()[0].startswith("bad.yaml: ")
    assert not scene.nodes.synced.is_set()
    assert len(scene.nodes) == 0
    scene.write("bad.yaml", node("b"))
    await scene.holds("a", "b")
    assert scene.nodes.synced.is_set()


async def test_an_object_in_two_files_is_taken_from_the_first(begin: Begin):
    scene = await begin({"1.yaml": node("a", ip="10.0.0.1"), "2.yaml": node("a", "b", ip="10.0.0.2")})
    assert scene.problems() == ["2.yaml, document 1: NetloomNode a is taken from 1.yaml"]

    def ip() -> str:
        held = scene.nodes.get("a")
        return held.spec.addresses[0].ip if held else ""

    assert ip() == "10.0.0.1"
    (scene.path / "1.yaml").unlink()
    await until(lambda: ip() == "10.0.0.2")
    assert not scene.source.problems
    assert scene.names() == ["a", "b"]
    assert ("a", "gone") not in scene.heard


async def test_a_lost_directory_keeps_its_objects_and_is_found_again(begin: Begin):
    scene = await begin({"nodes.yaml": node("a")}, compare=0.05)
    shutil.rmtree(scene.path)
    await until(lambda: "last objects are kept" in scene.source.fault())
    assert scene.names() == ["a"]
    scene.path.mkdir()
    scene.write("nodes.yaml", node("a", "b"))
    await scene.holds("a", "b")
    await until(lambda: not scene.source.fault())


async def test_a_directory_that_comes_back_as_it_was_is_found_again(begin: Begin):
    scene = await begin({"nodes.yaml": node("a")}, compare=0.05)
    away = scene.path.rename(scene.path.with_name("away"))
    await until(lambda: "last objects are kept" in scene.source.fault())
    away.rename(scene.path)
    await until(lambda: not scene.source.fault())
    assert scene.names() == ["a"]


async def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path):
    source = DirectorySource(tmp_path / "nowhere", [Store(NODES)])
    with pytest.raises(ConfigError) as caught:
        await source.run()
    assert str(caught.value) == f"the directory of manifests {tmp_path}/nowhere does not exist or is no directory"


async def test_a_single_look_finds_all_or_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "nodes.yaml").write_text(node("a", "b"))
    store = Store(NETLOOM_NODES)
    DirectorySource(tmp_path, [store]).load()
    assert sorted(store) == ["a", "b"]
    (tmp_path / "bad.yaml").write_text("just text")
    (tmp_path / "worse.json").write_text("{")
    with pytest.raises(
        ConfigError, match=r"^bad\.yaml, document 1: is no object\nworse\.json: Input data was truncated$"
    ):
        DirectorySource(tmp_path, [Store(NETLOOM_NODES)]).load()


async def test_many_files_at_once_are_few_changes(begin: Begin):
    scene = await begin()
    changes = 0
    publish = scene.source._publish

    def counted() -> None:
        nonlocal changes
        changes += 1
        publish()

    scene.source._publish = counted  # type: ignore[method-assign]
    # By the shell alone: with a process for each file it takes seconds on a busy machine, and is not at once.
    script = f'for i in $(seq 300); do printf -- "$CONTENT" $i > {scene.path}/n$i.yaml; done'
    process = await asyncio.create_subprocess_exec("sh", "-c", script, env={**os.environ, "CONTENT": node("n%s")})
    assert await process.wait() == 0
    await until(lambda: len(scene.nodes) == 300)
    assert changes <= 30


# Parsing

RESOURCES = {(resource.api_version, resource.kind): resource for resource in (NETWORKS, NETLOOM_NODES)}


def refused(content: str, file: str = "x.yaml") -> list[str]:
    with pytest.raises(InvalidManifests) as caught:
        parse(file, content.encode(), RESOURCES)
    return [str(problem) for problem in caught.value.problems]


HEAD = "apiVersion: netloom.dev/v1alpha1\nkind: NetloomNetwork\nmetadata: {name: default}\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HEAD + "spec: {routing: {mode: tunel}}", "x.yaml, document 1, spec.routing.mode: Invalid enum value 'tunel'"),
        (HEAD + "spec: {devices: eth0}", "x.yaml, document 1, spec.devices: Expected `array`, got `str`"),
        (HEAD + "spec: {devices: [eth0, 7]}", "x.yaml, document 1, spec.devices[1]: Expected `str`, got `int`"),
        (HEAD + "spec: {mtus: 1}", "x.yaml, document 1, spec.mtus: there is no such field"),
        (HEAD + "spec: {ipam: {clusterPool: {x: 1}}}",
         "x.yaml, document 1, spec.ipam.clusterPool.x: there is no such field"),
        (HEAD + "sepc: {}", "x.yaml, document 1, sepc: there is no such field"),
        (node("a").replace("ip:", "adress:"), "x.yaml, document 1, spec.addresses[0].adress: there is no such field"),
        (HEAD.replace("default", "A_b"), "x.yaml, document 1, metadata.name: 'A_b' is not the name of an object"),
        (HEAD.replace("name: default", ""), "x.yaml, document 1, metadata.name: '' is not the name of an object"),
        ("just text", "x.yaml, document 1: is no object"),
        (
            "apiVersion: v1\nkind: Pod",
            "x.yaml, document 1, kind: Pod (v1) is not read here, "
            "only NetloomNetwork (netloom.dev/v1alpha1), NetloomNode (netloom.dev/v1alpha1)",
        ),
        (node("a", "b", "a"), "x.yaml, document 3: NetloomNode a is in document 1 already"),
        ("a: b: c", "x.yaml: mapping values are not allowed in this context line 1, column 5"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(content: str, problem: str):
    assert refused(content) == [problem]


def test_json_is_named_with_its_place():
    assert refused('{"kind": }', "x.json") == ["x.json: JSON is malformed: invalid character (byte 9)"]


def test_bytes_that_are_no_text_are_named():
    with pytest.raises(InvalidManifests, match=r"x\.yaml: .*invalid leading UTF-8 octet"):
        parse("x.yaml", b"a: \xff\xff", RESOURCES)


def test_all_mistakes_of_a_file_are_told():
    content = HEAD + "spec: {mtu: a}\n---\n" + HEAD + "spec: {x: 1}\n---\n"
    assert len(refused(content)) == 2


def test_text_stays_text():
    """YAML 1.1 has dates, and numbers in base 60; `kubectl` has neither."""
    content = HEAD + "spec: {devices: [10:20:30:40:50, 2024-01-01]}"
    assert parse("x.yaml", content.encode(), RESOURCES)[0].object.spec.devices == ("10:20:30:40:50", "2024-01-01")


def test_numbers_stay_numbers():
    for text, value in (("9000", 9000), ("0", 0), ("0x10", 16)):
        assert parse("x.yaml", (HEAD + f"spec: {{mtu: {text}}}").encode(), RESOURCES)[0].object.spec.mtu == value


def test_what_kubectl_prints_is_taken():
    exported = """\
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: netloom.dev/v1alpha1
  kind: NetloomNode
  metadata:
    annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
    creationTimestamp: null
    generation: 2
    managedFields: [{manager: kubectl}]
    name: a
    resourceVersion: "123"
    uid: 0b7a42c0-0000-0000-0000-000000000000
  spec: {}
  status: {}
- apiVersion: netloom.dev/v1alpha1
  kind: NetloomNode
  metadata: {name: b}
"""
    assert [manifest.key for manifest in parse("x.yaml", exported.encode(), RESOURCES)] == ["a", "b"]


def test_ignored_kinds_are_passed_over():
    content = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n" + node("a")
    assert [manifest.key for manifest in parse("x.yaml", content.encode(), RESOURCES, {("v1", "Pod")})] == ["a"]
