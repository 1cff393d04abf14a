"""The checkpoint on a real file: what fails is taken back, what is swapped is noticed."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from netloom.ipam.address_records import Gave, Header, Record, whole
from netloom_reconcilers.node.addresses import checkpoint
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint, Unwritable, files

ONE, TWO, THREE = (Gave(f"default/{name}", "c", "eth0", "", ()) for name in "abc")


class Life:
    """An agent's: what it knows is what is written anew."""

    def __init__(self, folder: Path, node: str = "n1") -> None:
        self.known: list[Record] = []
        self.file = Checkpoint(folder, node, lambda: self.known)
        self.found = self.file.open()
        self.known += self.found.records

    def append(self, *records: Record) -> None:
        self.known += records
        self.file.append(records)


def left(folder: Path) -> Sequence[Record]:
    """What the next life finds."""
    life = Life(folder)
    life.file.close()
    return life.found.records


def test_the_next_life_finds_what_was_appended(tmp_path: Path) -> None:
    life = Life(tmp_path / "new" / "folder")
    assert (life.found.records, life.found.cause) == ((), "none")
    life.append()
    life.append(ONE)
    life.append(TWO, THREE)
    life.file.close()
    before = life.file.path.read_bytes()
    again = Life(tmp_path / "new" / "folder")
    again.append()
    assert (again.found.records, again.found.cause) == ((ONE, TWO, THREE), "whole")
    assert life.file.path.read_bytes() == before
    assert life.file.path.stat().st_mode & 0o777 == 0o600


def test_two_agents_do_not_write_one_file(tmp_path: Path) -> None:
    life = Life(tmp_path)
    with pytest.raises(Unwritable, match="another agent uses it"):
        Life(tmp_path)
    life.file.close()
    Life(tmp_path).file.close()


def test_of_a_torn_file_the_rest_is_kept_and_written_anew(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.append(ONE)
    life.append(TWO)
    life.file.close()
    torn = life.file.path.read_bytes()[:-5]
    life.file.path.write_bytes(torn)
    again = Life(tmp_path)
    assert (again.found.records, again.found.cause) == ((ONE,), "damage")
    assert again.found.lost == "the last record was written in part"
    again.append(THREE)
    again.file.close()
    assert left(tmp_path) == (ONE, THREE)
    assert (tmp_path / "addresses.refused").read_bytes() == torn


@pytest.mark.parametrize(
    ("header", "cause", "lost"),
    [
        (Header("n2", "here", ""), "node", "it is that of node n2"),
        (Header("n1", "an earlier one", ""), "boot", "the machine was started again since, and no pod outlives that"),
        (Header("n1", "here", "", 2), "damage", "it is of format 2, and this version writes 1"),
    ],
)
def test_what_another_node_or_boot_or_version_wrote_counts_for_nothing(
    tmp_path: Path, header: Header, cause: str, lost: str
) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    header = Header(header.node, header.boot.replace("here", boot), "x", header.format)
    (tmp_path / checkpoint.NAME).write_bytes(whole(header, [ONE])[0])
    life = Life(tmp_path)
    assert (life.found.records, life.found.cause, life.found.lost) == ((), cause, lost)
    life.append(TWO)
    life.file.close()
    assert left(tmp_path) == (TWO,)
    assert (tmp_path / "addresses.refused").exists() == (cause != "boot")
    assert len(files(tmp_path)) == 2 + (cause != "boot")


def test_a_write_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(tmp_path)
    life.append(ONE)
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    with pytest.raises(Unwritable, match="No space left on device"):
        life.file.append([TWO])
    monkeypatch.setattr(os, "write", real)
    life.append(THREE)
    life.file.close()
    assert left(tmp_path) == (ONE, THREE)


def test_a_file_written_anew_comes_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "GROWS", 0)
    life = Life(tmp_path)
    life.append(ONE)
    before, real = life.file.path.read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    life.file.path.write_bytes(before + b"somebody else's")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unwritable):
        life.append(TWO)
    assert life.file.path.read_bytes() == before + b"somebody else's"
    assert not life.file.path.with_suffix(".new").exists()
    monkeypatch.setattr(os, "write", real)
    life.append(THREE)
    life.file.close()
    assert left(tmp_path) == (ONE, TWO, THREE)


@pytest.mark.parametrize("what", ["removed", "cut", "swapped", "written by another"])
def test_what_is_done_to_the_file_meanwhile_is_noticed(tmp_path: Path, what: str) -> None:
    life = Life(tmp_path)
    life.append(ONE)
    life.append(TWO)
    path = life.file.path
    if what == "removed":
        path.unlink()
    elif what == "cut":
        os.truncate(path, 30)
    elif what == "swapped":
        path.with_suffix(".other").write_bytes(b"x" * path.stat().st_size)
        path.with_suffix(".other").rename(path)
    else:
        with path.open("ab") as file:
            file.write(b"more\n")
    life.append(THREE)
    life.file.close()
    assert left(tmp_path) == (ONE, TWO, THREE)


def test_it_is_written_anew_when_it_has_grown_much(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for _ in range(25_000):
        life.file.append([ONE])
    assert life.file.rewritten == 3, "once to begin with, and each half megabyte"
    assert life.file.path.stat().st_size < 2 * checkpoint.GROWS
    life.file.close()


def test_it_does_not_grow_from_life_to_life(tmp_path: Path) -> None:
    """As each is restarted before the file has grown by half a megabyte."""
    for _ in range(12):
        life = Life(tmp_path)
        before = life.file.path.read_bytes() if life.file.path.exists() else b""
        life.file.append([])
        assert not before or life.file.path.read_bytes() == before, "a start without changes writes nothing"
        life.known = [ONE]
        for _ in range(4000):
            life.file.append([ONE])
        life.file.close()
        assert life.file.path.stat().st_size < 2 * checkpoint.GROWS
