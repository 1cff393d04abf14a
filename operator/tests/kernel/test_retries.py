"""Delays: the first repairs are immediate, failures and fights wait longer each time, quiet is forgiven."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from netloom.kernel import sysctl
from netloom.kernel.keeper import retries
from netloom.kernel.keeper.backoff import FIRST_SECONDS, FREE_REPAIRS, LONGEST_SECONDS, QUIET_SECONDS, Backoff
from netloom.kernel.keeper.retries import Retries
from netloom.kernel.sysctl import Sysctl, SysctlRecord


def test_failures_double_their_delay_up_to_a_limit() -> None:
    backoff, now, delays = Backoff(), 100.0, []
    for _ in range(12):
        delays.append(round(backoff.failed("route", now).until - now, 3))
        assert backoff.held(now) == {"route"}
        now = backoff.next(now) or now
        assert backoff.held(now) == set()
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == LONGEST_SECONDS


def test_what_was_held_is_waited_for_even_if_its_time_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: now))
    entries = Retries()
    entries.begin()
    entries.refused(("route", "10.2.0.0/24"), "busy", "")
    now = 100.0 + FIRST_SECONDS - 0.0005  # the timer ended early
    entries.begin()
    assert entries.held() == {("route", "10.2.0.0/24")}
    now += 0.001
    assert entries.held() == {("route", "10.2.0.0/24")}
    assert entries.next() == 100.0 + FIRST_SECONDS
    entries.begin()
    assert entries.held() == set()
    assert entries.next() is None


def test_the_first_repairs_are_immediate_and_a_fight_is_not() -> None:
    backoff = Backoff()
    for _ in range(FREE_REPAIRS):
        backoff.repaired("route", 100.0)
        backoff.written("route")
    assert backoff.held(100.0) == set()
    assert backoff.contended(100.0) == []
    backoff.repaired("route", 100.0)
    assert backoff.held(100.0) == {"route"}
    assert backoff.contended(100.0) == ["route"]


def test_an_entry_that_was_written_is_forgotten_unless_it_is_fought_over() -> None:
    backoff = Backoff()
    backoff.failed("route", 100.0)
    backoff.written("route")
    assert len(backoff) == 0
    backoff.repaired("route", 100.0)
    backoff.written("route")
    assert len(backoff) == 1


def test_quiet_is_forgiven() -> None:
    backoff = Backoff()
    for _ in range(FREE_REPAIRS + 1):
        backoff.repaired("route", 100.0)
    backoff.expire(100.0 + QUIET_SECONDS)
    assert backoff.contended(100.0 + QUIET_SECONDS) == ["route"]
    backoff.expire(101.0 + QUIET_SECONDS)
    assert len(backoff) == 0


def test_quiet_is_forgiven_by_the_event_that_ends_it() -> None:
    """Events come before anything expires: the first repair after a long peace is as immediate as the very first."""
    backoff = Backoff()
    for _ in range(FREE_REPAIRS + 20):
        backoff.repaired("route", 100.0)
    assert backoff.held(100.0) == {"route"}
    peace = 100.0 + LONGEST_SECONDS + QUIET_SECONDS
    backoff.repaired("route", peace)
    assert backoff.held(peace) == set()
    assert backoff.contended(peace) == []


def test_the_end_of_a_fight_is_waited_for() -> None:
    backoff = Backoff()
    for _ in range(FREE_REPAIRS + 1):
        backoff.repaired("route", 100.0)
    tried = backoff.next(100.0)
    assert tried == 100.0 + FIRST_SECONDS
    assert backoff.next(tried) == tried + QUIET_SECONDS
    assert backoff.contended(tried + QUIET_SECONDS) == []


@pytest.fixture
def switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the place of /proc/sys."""
    root = tmp_path / "sys"
    (root / "net").mkdir(parents=True)
    for name in ("a", "b"):
        (root / "net" / name).write_text("0\n")
    monkeypatch.setattr(sysctl, "ROOT", root)
    return root / "net"


def test_a_switch_is_restored_unless_somebody_changed_it_since(switches: Path, tmp_path: Path) -> None:
    record = SysctlRecord(tmp_path / "run" / "sysctl.json")
    assert record.set(Sysctl("net/a", "1"))
    assert not record.set(Sysctl("net/a", "1"))
    assert record.set(Sysctl("net/b", "1"))
    (switches / "b").write_text("2\n")
    restarted = SysctlRecord(tmp_path / "run" / "sysctl.json")
    assert restarted.restore() == [Sysctl("net/a", "0")]
    assert ((switches / "a").read_text(), (switches / "b").read_text()) == ("0", "2\n")
    assert restarted.restore() == []


def test_what_was_first_is_what_is_restored(switches: Path, tmp_path: Path) -> None:
    """Set, changed by somebody, set again: the value to go back to is the one from before the first time."""
    record = SysctlRecord(tmp_path / "run" / "sysctl.json")
    (switches / "a").write_text("7\n")
    record.set(Sysctl("net/a", "1"))
    (switches / "a").write_text("0\n")
    record.set(Sysctl("net/a", "1"))
    record.restore()
    assert (switches / "a").read_text() == "7"


@pytest.mark.parametrize("content", ["", "{", '{"net/a": "1"}', "[]"])
def test_a_record_that_is_no_record_does_not_stop_the_agent(switches: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "sysctl.json"
    path.write_text(content)
    assert SysctlRecord(path).set(Sysctl("net/a", "1"))
    assert SysctlRecord(path).restore() == [Sysctl("net/a", "0")]


def test_a_switch_of_our_own_device_is_not_remembered(switches: Path, tmp_path: Path) -> None:
    record = SysctlRecord(tmp_path / "sysctl.json")
    record.set(Sysctl("net/a", "1", ours=True))
    assert not (tmp_path / "sysctl.json").exists()
