"""Deletions that were written down: made up for, kept until they can be, set aside where they are none."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from netloom_reconcilers.node.endpoints import deletions as module
from netloom_reconcilers.node.endpoints import folders
from netloom_reconcilers.node.endpoints.deletions import (
    AGAIN_SECONDS,
    REFUSED,
    TOLD_SECONDS,
    Deletions,
    NotYet,
    files,
    name_of,
)
from netloom_reconcilers.node.endpoints.errors import CniError
from netloom_reconcilers.node.endpoints.framing import Call
from tests.runtime.scripted import until
from tests.runtime.virtual import on_both_loops, run

A, B = (
    Call(command="DEL", containerid=name, ifname="eth0", args="x=y", stdin=b'{"cniVersion": "1.0.0", "name": "n"}')
    for name in "ab"
)


class Node:
    """Makes deletions, or says why not."""

    def __init__(self, folder: Path) -> None:
        self.made: list[Call] = []
        self.why: Exception | None = None
        self.told = 0
        self.now = 0.0
        self.deletions = Deletions(folder / "deletions", self.delete, self._tell, lambda: self.now)
        self.looks = 0
        replay = self.deletions.replay

        async def replay_counted() -> None:
            await replay()
            self.looks += 1

        self.deletions.replay = replay_counted  # type: ignore[method-assign]

    def _tell(self) -> None:
        self.told += 1

    async def delete(self, call: Call) -> None:
        await asyncio.sleep(0)
        if self.why is not None:
            raise self.why
        self.made.append(call)

    def put(self, name: str, data: bytes) -> Path:
        self.deletions.directory.mkdir(exist_ok=True)
        path = self.deletions.directory / name
        path.write_bytes(data)
        return path

    def left(self) -> list[str]:
        return sorted(str(each.relative_to(self.deletions.directory)) for each in self.deletions.directory.rglob("*"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@contextlib.asynccontextmanager
async def following(node: Node) -> AsyncIterator[None]:
    task = asyncio.create_task(node.deletions.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_what_is_written_is_read(node: Node) -> None:
    await node.deletions.write(A)
    await node.deletions.write(A)
    await node.deletions.write(B)
    assert sorted(node.left()) == sorted([name_of(A), name_of(B)]), "one for each interface"
    assert (node.deletions.directory.stat().st_mode & 0o777) == 0o700
    assert parse_mode(node.deletions.directory / name_of(A)) == 0o600
    await node.deletions.replay()
    assert sorted(call.containerid for call in node.made) == ["a", "b"]
    assert node.left() == []
    await node.deletions.replay()
    assert node.deletions.done == 2


def parse_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_a_directory_that_is_not_there_has_nothing(node: Node) -> None:
    await node.deletions.replay()
    assert node.deletions.errors() == []
    assert files(node.deletions.directory) == []


async def test_what_is_no_deletion_is_set_aside_and_keeps_nobody_waiting(node: Node) -> None:
    node.put("0", b"nonsense")
    node.put("1", A.encode()[:-5])
    node.put("2", Call(command="ADD", containerid="c", ifname="eth0").encode())
    node.put("3", b"")
    node.put("4", B.encode())
    node.put(".half", b"somebody still writes this")
    (node.deletions.directory / "folder").mkdir()
    (node.deletions.directory / "link").symlink_to("/etc/passwd")
    await node.deletions.replay()
    assert node.made == [B]
    kept = [f"{REFUSED}/{number}" for number in range(4)]
    assert node.left() == sorted([".half", "folder", "link", REFUSED, *kept])
    errors = node.deletions.errors()
    assert len(errors) == node.deletions.refused == 4
    assert "no request of its plugin" in errors[0]
    assert f"It is kept as {node.deletions.directory / REFUSED / '0'}" in errors[0]
    assert node.told
    node.now = 301
    assert node.deletions.errors() == []
    assert (node.deletions.directory / REFUSED / "0").read_bytes() == b"nonsense"


def timers() -> int:
    """That the loop keeps, in virtual time."""
    return len(asyncio.get_running_loop().timers())  # type: ignore[attr-defined]


@on_both_loops
def test_it_is_told_for_a_while_by_one_timer(loop: Callable[[], Any], tmp_path: Path) -> None:
    """Of what cannot be set aside, too, which each ADD looks at again."""

    async def scene() -> None:
        clock = asyncio.get_running_loop().time
        node = Node(tmp_path)
        node.deletions = Deletions(tmp_path / "deletions", node.delete, node._tell, clock)
        node.put("0", b"nonsense")
        await node.deletions.replay()
        await asyncio.sleep(100)
        for name in "123":
            node.put(name, b"nonsense")
        shutil.rmtree(node.deletions.directory / REFUSED)
        (node.deletions.directory / REFUSED).symlink_to("/dev/null")
        for _ in range(50):
            await node.deletions.replay()
        assert timers() == 1
        for left, at in ((3, TOLD_SECONDS), (0, 100 + TOLD_SECONDS)):
            told = node.told
            await asyncio.sleep(at + 0.01 - clock())
            assert (node.told - told, len(node.deletions.errors())) == (1, left)
        assert timers() == 0

    run(scene(), loop)


async def test_what_the_agent_can_never_do_is_set_aside(node: Node) -> None:
    node.why = CniError(1, "cniVersion is '9'.")
    await node.deletions.write(A)
    await node.deletions.replay()
    assert node.left() == [REFUSED, f"{REFUSED}/{name_of(A)}"]
    assert "cniVersion is '9'" in node.deletions.errors()[0]


async def test_what_has_to_wait_stays_and_is_told(node: Node) -> None:
    node.why = NotYet("the agent has just begun.")
    await node.deletions.write(A)
    await node.deletions.replay()
    assert node.left() == [name_of(A)]
    assert "has to wait: the agent has just begun." in node.deletions.errors()[0]
    node.why = None
    await node.deletions.replay()
    assert node.deletions.errors() == []


async def test_it_is_followed(node: Node) -> None:
    """A plugin writes beside and renames; nobody else says anything."""
    async with following(node):
        await until(lambda: node.deletions.directory.is_dir())
        await asyncio.sleep(0.02)
        node.put(".1", A.encode()).rename(node.deletions.directory / "1")
        await until(lambda: node.made == [A])
        node.put("2", B.encode())
        await until(lambda: node.made == [A, B])
        assert node.left() == []


async def test_what_had_to_wait_is_tried_again_without_an_event(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AGAIN_SECONDS <= 5
    monkeypatch.setattr("netloom_reconcilers.node.endpoints.deletions.AGAIN_SECONDS", 0.01)
    node.why = NotYet("no.")
    await node.deletions.write(A)
    async with following(node):
        await until(node.deletions.errors)
        node.why = None
        await until(lambda: node.made == [A])


async def test_the_directory_may_be_removed_and_come_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom_reconcilers.node.endpoints.deletions.AGAIN_SECONDS", 0.01)
    async with following(node):
        await until(lambda: node.deletions.directory.is_dir())
        node.deletions.directory.rename(node.deletions.directory.with_name("elsewhere"))
        await until(lambda: node.deletions.directory.is_dir())
        await node.deletions.write(A)
        await until(lambda: node.made == [A])


async def test_what_was_never_finished_goes_after_an_hour(node: Node) -> None:
    old, new = node.put(".1.2.3", b"half"), node.put(".2.3.4", b"half")
    os.utime(old, (1, 1))
    async with following(node):
        await until(lambda: not old.exists())
    assert new.exists()


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom_reconcilers.node.endpoints.deletions.AGAIN_SECONDS", 0.01)
    (tmp_path / "file").write_text("")
    node = Node(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        await node.deletions.write(A)
    async with following(node):
        await until(node.deletions.errors)
        assert "--cni-deletions" in node.deletions.errors()[0]
        await node.deletions.replay()
        assert node.deletions.errors()
        told = node.told
        (tmp_path / "file").unlink()
        await until(lambda: node.deletions.errors() == [])
        assert node.told > told


async def test_what_had_to_wait_and_is_gone_waits_no_more(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.why = NotYet("no.")
    await node.deletions.write(A)
    await node.deletions.replay()
    assert node.deletions.errors()
    (node.deletions.directory / name_of(A)).unlink()
    await node.deletions.replay()
    assert node.deletions.errors() == []
    with monkeypatch.context() as patch:
        patch.setattr(node.deletions, "names", refusing(errno.EMFILE))
        await node.deletions.replay()
        assert "cannot be read: Too many open files" in node.deletions.errors()[0]
    await node.deletions.replay()
    assert node.deletions.errors() == []


def refusing(number: int) -> Callable[..., Any]:
    """As where the system says so."""

    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.EIO, "Input/output error"), "has to wait: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "has to wait: No such file or directory"),
        (RecursionError("too deep"), "has to wait: the agent failed (RecursionError: too deep)"),
    ],
)
async def test_a_fault_with_one_deletion_keeps_it_and_no_other(node: Node, fault: Exception, said: str) -> None:
    await node.deletions.write(A)
    node.why = fault
    await node.deletions.replay()
    assert node.left() == [name_of(A)]
    assert said in node.deletions.errors()[0]
    node.why = None
    await node.deletions.write(B)
    await node.deletions.replay()
    assert (node.left(), node.deletions.errors(), node.deletions.refused) == ([], [], 0)


async def test_one_that_cannot_be_read_now_waits(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.deletions.write(A)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", refusing(errno.EMFILE))
        await node.deletions.replay()
    assert (node.left(), node.deletions.refused) == ([name_of(A)], 0)
    await node.deletions.replay()
    assert node.made == [A]


async def test_it_is_told_when_it_is_told_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_SECONDS", 0.02)
    said: list[list[str]] = []
    deletions = Deletions(tmp_path, Node(tmp_path).delete, lambda: said.append(deletions.errors()))
    (tmp_path / "0").write_bytes(b"nonsense")
    await deletions.replay()
    assert len(said[-1]) == 1
    await until(lambda: said[-1] == [])


async def test_a_directory_that_was_made_anew_is_followed(node: Node) -> None:
    """Between two looks, so that there is one all the time."""
    async with following(node):
        node.put("1", A.encode())
        await until(lambda: node.made == [A])
        await until(lambda: node.left() == [])
        looks = node.looks
        node.deletions.directory.rmdir()
        node.deletions.directory.mkdir()
        await until(lambda: node.looks > looks)
        node.put(".2", B.encode()).rename(node.deletions.directory / "2")
        await until(lambda: node.made == [A, B])


async def test_whatever_fails_of_following_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_pump", refusing(errno.EIO))
        patch.setattr(node.deletions, "_look", lambda: asyncio.sleep(0.01))
        async with following(node):
            await until(node.deletions.errors)
            assert "cannot be followed: Input/output error" in node.deletions.errors()[0]
            patch.undo()
            await until(lambda: node.deletions.errors() == [])


async def test_two_may_write_the_same_one_down_at_once(node: Node) -> None:
    await asyncio.gather(*(node.deletions.write(A) for _ in range(20)))
    assert node.left() == [name_of(A)]


async def test_who_asks_while_it_is_made_up_for_waits(node: Node) -> None:
    await node.deletions.write(A)
    await asyncio.gather(*(node.deletions.replay() for _ in range(5)))
    assert node.made == [A]
