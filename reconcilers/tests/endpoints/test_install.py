"""The plugin and its configuration on the host."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netloom_reconcilers.node.endpoints import folders
from netloom_reconcilers.node.endpoints import install as module
from netloom_reconcilers.node.endpoints.install import (
    CONFLIST,
    PLUGIN,
    UPGRADE_SECONDS,
    Installer,
    binary_of,
    conflist_of,
    installed,
)
from netloom_reconcilers.node.endpoints.options import Places, on_host
from tests.runtime.scripted import until


class Host:
    """Directories of a host, with portmap and somebody else's configuration."""

    def __init__(self, folder: Path, chain: tuple[str, ...] = ("portmap",)) -> None:
        self.bin, self.conf, self.source = folder / "bin", folder / "conf", folder / "netloom-cni"
        self.bin.mkdir(exist_ok=True)
        self.conf.mkdir(exist_ok=True)
        (self.bin / "portmap").write_text("#!")
        (self.conf / "10-flannel.conflist").write_text("{}")
        self.source.write_bytes(b"\x7fELF one")
        self.ready = True
        self.now = 1000.0
        self.told: list[tuple[str, str]] = []
        self.places = Places(self.source, self.bin, self.conf, chain)
        self.installer = self.start()

    def start(self) -> Installer:
        """Another life of the agent."""
        self.installer = Installer(
            self.places,
            lambda: self.ready,
            lambda path, what: self.told.append((path.name, what)),
            clock=lambda: self.now,
        )
        return self.installer

    @property
    def binary(self) -> Path:
        return binary_of(self.places)

    @property
    def conflist(self) -> Path:
        return conflist_of(self.places)

    def files(self) -> list[str]:
        return sorted(each.name for folder in (self.bin, self.conf) for each in folder.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@contextlib.asynccontextmanager
async def kept(host: Host) -> AsyncIterator[None]:
    task = asyncio.create_task(host.installer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_both_are_put_there_as_runtimes_want_them(host: Host) -> None:
    host.installer.look()
    assert host.installer.installed
    assert host.files() == sorted(["portmap", PLUGIN, "10-flannel.conflist", CONFLIST])
    assert min(each.name for each in host.conf.iterdir()) == CONFLIST, "the first is the one that counts"
    assert host.binary.read_bytes() == host.source.read_bytes()
    assert host.binary.stat().st_mode & 0o777 == 0o755
    assert host.conflist.stat().st_mode & 0o777 == 0o644
    assert json.loads(host.conflist.read_text()) == {
        "cniVersion": "1.0.0",
        "name": "netloom",
        "plugins": [
            {"type": "netloom-cni", "capabilities": {"mac": True, "dns": True}},
            {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        ],
    }
    assert host.installer.errors() == host.installer.warnings() == host.told == []


def test_nothing_is_written_again_by_the_next_life(host: Host) -> None:
    host.installer.look()
    before = [each.stat().st_mtime_ns for each in (host.binary, host.conflist)]
    host.ready = False
    host.start().look()
    assert host.installer.installed, "a restart takes nothing away"
    assert [each.stat().st_mtime_ns for each in (host.binary, host.conflist)] == before


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("/host/etc/cni/net.d/00-a.conf", "/etc/cni/net.d/00-a.conf"),
        ("/host", "/"),
        ("/hosts/a", "/hosts/a"),
        ("/etc/cni/net.d", "/etc/cni/net.d"),
    ],
)
def test_files_are_told_of_by_the_names_that_the_host_has_for_them(seen: str, said: str) -> None:
    assert on_host(Path(seen)) == Path(said)


def test_no_configuration_before_pods_can_be_added(host: Host) -> None:
    """Kubelets say that a node is ready by it."""
    host.ready = False
    host.installer.look()
    assert not host.installer.installed
    assert host.files() == sorted(["portmap", PLUGIN, "10-flannel.conflist"])
    host.ready = True
    host.installer.look()
    assert host.conflist.exists()


def test_an_upgrade_replaces_both_at_once(host: Host) -> None:
    host.installer.look()
    old = host.binary.open("rb")
    host.source.write_bytes(b"\x7fELF two")
    host.places = host.places._replace(version="1.1.0")
    host.ready = False
    host.start().look()
    assert host.binary.read_bytes() == b"\x7fELF two"
    assert json.loads(host.conflist.read_text())["cniVersion"] == "1.1.0"
    assert old.read() == b"\x7fELF one", "who runs it goes on"
    old.close()
    assert host.told == [], "that is nobody's doing"


async def test_what_somebody_does_is_undone_on_the_event(host: Host) -> None:
    flannel = (host.conf / "10-flannel.conflist").stat().st_mtime_ns
    async with kept(host):
        await until(lambda: host.installer.installed)
        await asyncio.sleep(0.1)
        for what, deed in {
            "edited": lambda: host.conflist.write_text("{}"),
            "gone": lambda: host.binary.unlink(),
            "of another mode": lambda: host.conflist.chmod(0o600),
            "no file": lambda: (host.binary.unlink(), host.binary.symlink_to("/bin/true")),
        }.items():
            host.now += 1000
            told = len(host.told)
            deed()
            await until(lambda told=told: len(host.told) > told)  # type: ignore[misc]
            assert host.told[-1][1] in (what, "gone"), what
            assert json.loads(host.conflist.read_text())["name"] == "netloom"
            assert host.binary.read_bytes() == host.source.read_bytes()
            assert not host.binary.is_symlink()
        assert sum(host.installer.repairs.values()) == len(host.told)
        assert (host.conf / "10-flannel.conflist").stat().st_mtime_ns == flannel
    assert Path("/bin/true").stat().st_size > 100, "what the link led to was not written"


async def test_a_directory_that_was_made_anew_is_followed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks, so that there is one all the time."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    async with kept(host):
        await until(lambda: host.installer.installed)
        old = host.conf.rename(host.conf.with_name("old"))
        host.conf.mkdir()
        shutil.rmtree(old)
        await until(host.conflist.exists)
        for _ in range(3):
            host.now += 1000
            host.conflist.unlink()
            await until(host.conflist.exists)


async def test_whatever_fails_of_following_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)

    async def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_pump", fails)
        async with kept(host):
            await until(lambda: "cannot be kept: Input/output error" in str(host.installer.errors()))
            patch.undo()
            await until(lambda: host.installer.installed and not host.installer.errors())


def test_who_keeps_changing_it_is_told_of_and_waited_for(host: Host) -> None:
    host.installer.look()
    waits = []
    for _ in range(12):
        host.conflist.write_text("{}")
        again = host.installer.look()
        if again is not None:
            assert host.conflist.read_text() == "{}"
            assert "somebody else keeps changing it" in host.installer.errors()[0]
            waits.append(again)
            host.now += again
            assert host.installer.look() is None
    assert waits == sorted(waits)
    assert waits[-1] == 60
    assert host.installer.errors() == []
    host.now += 200
    host.conflist.write_text("{}")
    assert host.installer.look() is None, "it was left alone for long enough"


MESH = {"type": "istio-cni", "log_level": "info", "kubernetes": {"cni_bin_dir": "/opt/cni/bin", "exclude": ["a"]}}


def put_behind(host: Host, *entries: object) -> bytes:
    """As the installer of a service mesh does: at the end of what is there, laid out and with a mode as it likes."""
    said = json.loads(host.conflist.read_text())
    said["plugins"] += entries
    host.conflist.write_text(json.dumps(said, sort_keys=True, indent=4))
    return host.conflist.read_bytes()


def plugins(host: Host) -> list[str]:
    return [each["type"] for each in json.loads(host.conflist.read_text())["plugins"]]


def test_what_others_put_behind_ours_stays(host: Host) -> None:
    """Their installers put it there again, and pods in between would go around the mesh."""
    (host.bin / "istio-cni").write_text("#!")
    host.installer.look()
    theirs = put_behind(host, MESH)
    for _ in range(2):
        host.installer.look()
        assert host.conflist.read_bytes() == theirs, "not even laid out anew: they would take it for a change"
        host.start()
    assert host.installer.look() is None
    assert (host.told, host.installer.errors(), host.installer.warnings()) == ([], [], [])

    host.conflist.chmod(0o600)
    host.installer.look()
    assert host.conflist.read_bytes() == theirs
    assert host.conflist.stat().st_mode & 0o777 == 0o644

    for damage in ("{}", "", json.dumps({"name": "netloom", "plugins": [MESH]}), None):
        host.now += 1000
        host.conflist.unlink()
        if damage is not None:
            host.conflist.write_text(damage)
        host.installer.look()
        assert plugins(host) == [PLUGIN, "portmap", "istio-cni"], damage
        assert json.loads(host.conflist.read_text())["plugins"][-1] == MESH
    host.places = host.places._replace(version="1.1.0", chain=())
    host.start().look()
    assert plugins(host) == [PLUGIN, "istio-cni"], "of ours nothing stays that is not wanted any more"

    host.conflist.write_text(json.dumps({**json.loads(theirs), "plugins": json.loads(theirs)["plugins"][:1]}))
    host.installer.look()
    assert plugins(host) == [PLUGIN], "they took it out again"


def test_what_others_put_behind_ours_and_did_not_install_is_told(host: Host) -> None:
    host.installer.look()
    put_behind(host, MESH)
    host.installer.look()
    assert "somebody put istio-cni behind Netloom's plugins" in host.installer.warnings()[0]
    (host.bin / "istio-cni").write_text("#!")
    host.installer.look()
    assert host.installer.warnings() == []


def test_what_is_no_plugin_of_anybody_does_not_stay(host: Host) -> None:
    host.installer.look()
    before = host.conflist.read_bytes()
    for entry in ({"type": PLUGIN, "more": 1}, {"type": "portmap", "snat": False}, {"type": 7}, {}, {"type": "tuning"}):
        host.now += 1000
        put_behind(host, entry)
        host.installer.look()
        assert host.conflist.read_bytes() == before, entry
    put_behind(host, "no object")
    host.now += 1000
    host.installer.look()
    assert host.conflist.read_bytes() == before


async def test_plugins_that_come_later_join_the_chain(tmp_path: Path) -> None:
    host = Host(tmp_path, ("portmap", "bandwidth", "mine"))
    async with kept(host):
        await until(lambda: host.conflist.exists())
        await until(host.installer.warnings)
        assert "has no bandwidth, mine, so pods go without" in host.installer.warnings()[0]
        assert [each["type"] for each in json.loads(host.conflist.read_text())["plugins"]] == [PLUGIN, "portmap"]
        (host.bin / "bandwidth").write_text("#!")
        (host.bin / "mine").write_text("#!")
        await until(lambda: len(json.loads(host.conflist.read_text())["plugins"]) == 4)
        await until(lambda: not host.installer.warnings())
    assert json.loads(host.conflist.read_text())["plugins"][2:] == [
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "mine"},
    ]
    assert host.told == []


def test_a_plugin_that_is_being_upgraded_stays_in_the_chain(host: Host) -> None:
    """A package removes the old file before the new one is there: a pod of that moment would never have its ports."""

    def chain() -> list[str]:
        return [each["type"] for each in json.loads(host.conflist.read_text())["plugins"]]

    host.installer.look()
    (host.bin / "portmap").unlink()
    again = host.start().look()
    assert again == UPGRADE_SECONDS
    assert (chain(), host.installer.warnings()) == ([PLUGIN, "portmap"], [])
    (host.bin / "portmap").write_text("#!")
    host.now += again
    assert host.installer.look() is None
    (host.bin / "portmap").unlink()
    again = host.installer.look()
    assert again == UPGRADE_SECONDS, "another time"
    host.now += again
    assert host.installer.look() is None
    assert chain() == [PLUGIN]
    assert "has no portmap, so pods go without" in host.installer.warnings()[0]
    assert host.told == []


@pytest.mark.parametrize(
    "content", ['{"type": "multus-shim"}', '{"plugins": [{"type": "x", "delegate": {"type": "netloom-cni"}}]}']
)
def test_a_file_that_comes_first_and_may_call_ours_is_told(host: Host, content: str) -> None:
    (host.conf / "00-multus.conf").write_text(content)
    (host.conf / "00-a.bak").write_text("{}")
    host.installer.look()
    assert host.installer.installed
    assert "00-multus.conf comes before 00-netloom.conflist" in host.installer.warnings()[0]
    assert (host.installer.errors(), host.installer.overruled) == ([], "")
    assert (host.conf / "00-multus.conf").read_text() == content


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("00-bridge.conf", '{"type": "bridge"}', "wired by bridge, and not by Netloom"),
        ("00-a.conflist", '{"plugins": [{"type": "ptp"}, {"type": "portmap"}]}', "wired by ptp, portmap, and not"),
        ("00-a.conflist", "{", "wired not at all, as it cannot be read"),
    ],
)
def test_another_cni_whose_file_comes_first_is_an_error_until_it_is_gone(
    host: Host, name: str, content: str, words: str
) -> None:
    (host.conf / name).write_text(content)
    host.installer.look()
    (said,) = host.installer.errors()
    assert said == host.installer.overruled
    assert f"{host.conf / name} comes before 00-netloom.conflist" in said
    assert words in said
    assert host.installer.installed, "ours is there, and taken when that one is gone"
    assert (host.conf / name).read_text() == content, "what is another's stays"
    (host.conf / name).rename(host.conf / "99-late.conflist")
    host.installer.look()
    assert (host.installer.errors(), host.installer.overruled) == ([], "")


def test_what_stands_in_the_way_is_told_with_its_option(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.source.unlink()
    host.installer.look()
    assert "--cni-plugin" in host.installer.errors()[0]
    host.source.write_bytes(b"x")
    host.binary.mkdir()
    host.installer.look()
    assert not host.installer.installed
    assert str(host.binary) in host.installer.errors()[0]
    assert not host.conflist.exists(), "a configuration without its plugin would stop all pods"


def test_what_an_interrupted_write_left_is_no_obstacle(host: Host) -> None:
    (host.bin / f".{PLUGIN}.new").write_text("half")
    (host.conf / f".{CONFLIST}.new").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").read_bytes() if Path("/etc/hostname").exists() else None
    host.installer.look()
    assert host.installer.installed
    assert host.files() == sorted(["portmap", PLUGIN, "10-flannel.conflist", CONFLIST])
    assert before is None or Path("/etc/hostname").read_bytes() == before


def test_taking_away_names_the_configuration_first(host: Host) -> None:
    host.installer.look()
    (host.bin / f".{PLUGIN}.new").write_text("half")
    found = installed((host.conflist, host.binary))
    assert found == [host.conflist, host.binary, host.bin / f".{PLUGIN}.new"]
    for each in found:
        each.unlink()
    assert host.files() == sorted(["portmap", "10-flannel.conflist"])
    assert os.listdir(host.conf) == ["10-flannel.conflist"]  # noqa: PTH208


def test_where_the_plugin_asks_elsewhere_it_is_said(host: Host) -> None:
    """Runtimes give it no environment of ours: its paths are compiled in."""
    host.source.write_bytes(b"\x7fELF/run/netloom/cni.sock\0/var/lib/netloom/deletions\0")

    def warnings(socket: str, deletions: str) -> list[str]:
        meeting = {"--cni-socket": Path(socket), "--cni-deletions": Path(deletions)}
        installer = Installer(host.places, lambda: True, meeting=meeting)
        installer.look()
        return installer.warnings()

    assert warnings("/run/netloom/cni.sock", "/var/lib/netloom/deletions") == []
    (said,) = warnings("/run/x/cni.sock", "/var/lib/netloom/deletions")
    assert "does not know /run/x/cni.sock (--cni-socket)" in said
    (said,) = warnings("/run/netloom/cni.sock", "/x")
    assert "does not know /x (--cni-deletions)" in said


async def test_a_slow_disk_stops_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing may take seconds, in which pods come and go."""
    going_on, threads = asyncio.Event(), list[int]()
    loop, fsync = asyncio.get_running_loop(), os.fsync

    def slow(descriptor: int) -> None:
        threads.append(threading.get_ident())
        if threads[-1] != threading.main_thread().ident:
            asyncio.run_coroutine_threadsafe(going_on.wait(), loop).result(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    async with kept(host):
        await until(lambda: threads)
        assert not host.installer.installed
        going_on.set()
        await until(lambda: host.installer.installed)
    assert threading.main_thread().ident not in threads
