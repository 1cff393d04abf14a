"""Delays: the first repairs are immediate, failures and fights wait longer each time, quiet is forgiven."""

import errno
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from structlog.testing import capture_logs

from netloom.kernel import sysctl
from netloom.kernel.keeper import retries
from netloom.kernel.keeper.retries import FIRST_SECONDS, FREE_REPAIRS, LONGEST_SECONDS, QUIET_SECONDS, Retries
from netloom.kernel.sysctl import Sysctl, SysctlRecord

ROUTE = ("route", "10.2.0.0/24")


class Clocked:
    """Retries, at a time that the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.retries = Retries()

    def refused(self) -> None:
        self.retries.refused(ROUTE, "busy", "")

    def repaired(self, times: int = 1) -> None:
        for _ in range(times):
            self.retries.drifted(ROUTE)
            self.retries.written(ROUTE[0], [ROUTE[1]])

    def delayed(self, now: float) -> bool:
        """Whether the entry has to wait, in passes that begin now."""
        self.now = now
        self.retries.begin()
        return self.retries.delayed() == {ROUTE}

    @property
    def contended(self) -> bool:
        return self.retries.contended == (ROUTE,)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    result = Clocked()
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: result.now))
    return result


def test_failures_double_their_delay_up_to_a_limit(clocked: Clocked) -> None:
    delays = []
    for _ in range(12):
        clocked.refused()
        assert clocked.delayed(clocked.now)
        tried = clocked.retries.next() or clocked.now
        delays.append(round(tried - clocked.now, 3))
        assert not clocked.delayed(tried)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == LONGEST_SECONDS


def test_what_was_delayed_is_waited_for_even_if_its_time_came_meanwhile(clocked: Clocked) -> None:
    entries = clocked.retries
    entries.begin()
    clocked.refused()
    clocked.now = 100.0 + FIRST_SECONDS - 0.0005  # the timer ended early
    entries.begin()
    assert entries.delayed() == {ROUTE}
    clocked.now += 0.001
    assert entries.delayed() == {ROUTE}
    assert entries.next() == 100.0 + FIRST_SECONDS
    entries.begin()
    assert entries.delayed() == set()
    assert entries.next() is None


def test_the_first_repairs_are_immediate_and_a_fight_is_not(clocked: Clocked) -> None:
    clocked.repaired(FREE_REPAIRS)
    assert not clocked.delayed(100.0)
    assert not clocked.contended
    clocked.repaired()
    assert clocked.delayed(100.0)
    assert clocked.contended


def test_an_entry_that_was_written_is_forgotten_unless_it_is_fought_over(clocked: Clocked) -> None:
    clocked.refused()
    clocked.retries.written(ROUTE[0], [ROUTE[1]])
    assert not clocked.delayed(100.0)
    assert clocked.retries.next() is None
    clocked.repaired()
    clocked.repaired(FREE_REPAIRS)
    assert clocked.contended, "the first repair counts"


def test_quiet_is_forgiven(clocked: Clocked) -> None:
    clocked.repaired(FREE_REPAIRS + 1)
    clocked.delayed(100.0 + QUIET_SECONDS)
    assert clocked.contended
    clocked.delayed(101.0 + QUIET_SECONDS)
    assert not clocked.contended
    assert clocked.retries.next() is None


def test_quiet_is_forgiven_by_the_event_that_ends_it(clocked: Clocked) -> None:
    """Events come before anything expires: the first repair after a long peace is as immediate as the very first."""
    clocked.repaired(FREE_REPAIRS + 20)
    assert clocked.delayed(100.0)
    clocked.now = 100.0 + LONGEST_SECONDS + QUIET_SECONDS
    clocked.repaired()
    assert not clocked.delayed(clocked.now)
    assert not clocked.contended


def test_the_end_of_a_fight_is_waited_for(clocked: Clocked) -> None:
    clocked.repaired(FREE_REPAIRS + 1)
    clocked.delayed(100.0)
    tried = clocked.retries.next()
    assert tried == 100.0 + FIRST_SECONDS
    clocked.delayed(tried)
    assert clocked.retries.next() == tried + QUIET_SECONDS
    clocked.now = tried + QUIET_SECONDS
    assert not clocked.contended


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


def test_what_cannot_be_remembered_is_not_set_and_the_file_is_named(switches: Path, tmp_path: Path) -> None:
    """A full disk says only that there is no space left, and /proc/sys is never full."""
    path = tmp_path / "sysctl.json"
    path.with_suffix(".new").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{path}, which .* No space left on device. Make room there") as raised:
        SysctlRecord(path).set(Sysctl("net/a", "1"))
    assert raised.value.errno == errno.ENOSPC
    assert (switches / "a").read_text() == "0\n"
    assert not path.with_suffix(".new").is_symlink(), "what was begun is gone"


def test_of_devices_that_are_gone_nothing_is_remembered(switches: Path, tmp_path: Path) -> None:
    """On a machine that gives each new device a switch that is off, there would be one more with each pod."""
    path = tmp_path / "sysctl.json"
    record = SysctlRecord(path)
    record.set(Sysctl("net/a", "1"))
    for number in range(50):
        (switches / f"pod{number}").write_text("0\n")
        assert record.set(Sysctl(f"net/pod{number}", "1"))
        (switches / f"pod{number}").unlink()
    remembered = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, str]])
    assert list(remembered) == ["net/a", "net/pod49"]
    (switches / "pod7").write_text("2\n")
    record.set(Sysctl("net/pod7", "1"))
    assert record.before("net/pod7") == "2", "a device of a name that there was before begins anew"


def test_a_switch_of_our_own_device_is_not_remembered(switches: Path, tmp_path: Path) -> None:
    record = SysctlRecord(tmp_path / "sysctl.json")
    record.set(Sysctl("net/a", "1", ours=True))
    assert not (tmp_path / "sysctl.json").exists()


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (("neighbour", (1, bytes([172, 31, 1, 3]))), "172.31.1.3 dev lo"),
        (("neighbour", (1 << 30, bytes.fromhex("fd00" + 13 * "00" + "07"))), "fd00::7 dev #1073741824"),
        (("nexthop", 0x6E000007), "1845493767"),
        (("address", "10.1.0.0/32 dev netloom_vxlan"), "10.1.0.0/32 dev netloom_vxlan"),
        (("element", bytes([10, 0, 0, 1])), "10.0.0.1"),
    ],
)
def test_entries_are_named_as_people_write_them(item: retries.Item, text: str) -> None:
    assert retries.item_text(item) == text
    failing = Retries()
    failing.refused(item, "EINVAL: Invalid argument", "node-7")
    assert [str(each) for each in failing.failures] == [f"{item[0]} {text} of node-7: EINVAL: Invalid argument"]


def test_the_log_says_whose_an_entry_is() -> None:
    fresh = Retries(lambda item: "node-7")
    with capture_logs() as logs:
        fresh.drifted(ROUTE)
        fresh.written(ROUTE[0], [ROUTE[1]])
        fresh.refused(ROUTE, "busy", "node-7")
        fresh.written(ROUTE[0], [ROUTE[1]])
        fresh.refused(ROUTE, "busy", "node-7")
        fresh.keep(())
    assert [(each["event"], each["key"], each["peer"]) for each in logs] == [
        (event, ROUTE[1], "node-7")
        for event in ("repaired", "the kernel refused", "done after a failure", "the kernel refused", "failure is over")
    ]
