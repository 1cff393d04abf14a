"""Filters at the forward hook, on a real kernel: what is opened in iptables of both variants, what is said of others.

Whether a filter lets pods pass is shown by pings through it, not by what the product says.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from netloom.kernel.forwarding import iptables, legacy_part
from netloom.kernel.keeper.report import PlannedChange
from tests.kernel.faults import FOR_EVER
from tests.kernel.forwards import (
    ALL,
    DESIRED,
    DOCKER,
    NONE,
    PROGRAMS,
    REPORTED,
    Crossing,
    count_readings,
    keeping,
    locked,
)
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import SOON, Lab
from tests.kernel.nft import FaultyNftables

VARIANTS = pytest.mark.parametrize("programs", [pytest.param(each, id=name) for name, each in PROGRAMS.items()])
Programs = tuple[str, str]

JUMP = "-A FORWARD -j NETLOOM-FORWARD"


@pytest.fixture
def crossing(lab: Lab) -> Iterator[Crossing]:
    made = Crossing(lab)
    with made.node.entered():
        yield made


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_part, "LOOK_SECONDS", 0.05)


def in_place(crossing: Crossing, programs: Programs) -> bool:
    """Whether both families have the chain, whole, and one jump to it."""
    for program, pods in zip(programs, ("10.42.1.0/24", "fd00:42:1::/64"), strict=True):
        saved = crossing.node.exec(f"{program}-save -t filter").splitlines()
        ours = [f"-A NETLOOM-FORWARD {side} {pods} -j ACCEPT" for side in ("-s", "-d")]
        if saved.count(JUMP) != 1 or [line for line in saved if line.startswith("-A NETLOOM-FORWARD ")] != ours:
            return False
    return True


@VARIANTS
async def test_a_filter_as_docker_leaves_it_is_opened_and_left_as_it_was(
    crossing: Crossing, programs: Programs
) -> None:
    for program in programs:
        crossing.feed(f"{program}-restore", DOCKER)
    before = crossing.tables()
    assert crossing.passes(SOON) == NONE
    async with keeping() as keeper:
        planned = await keeper.plan(DESIRED)
        assert planned[:4] == [
            PlannedChange(f"{programs[0]} -t filter {line}", "its FORWARD chain drops packets of pods")
            for line in (
                "-N NETLOOM-FORWARD",
                "-A NETLOOM-FORWARD -s 10.42.1.0/24 -j ACCEPT",
                "-A NETLOOM-FORWARD -d 10.42.1.0/24 -j ACCEPT",
                "-I FORWARD 3 -j NETLOOM-FORWARD",
            )
        ]
        assert crossing.tables() == before, "a plan writes nothing"
        report = await keeper.apply(DESIRED)
        assert report.in_sync, report
        assert (report.open, report.blocked) == (programs, ())
        assert crossing.passes() == ALL
        assert in_place(crossing, programs)
        after = crossing.tables()
    async with keeping() as keeper:
        report = await keeper.apply(DESIRED)
        assert (report.written, report.repaired) == ({}, 0), "a restart writes nothing"
        assert crossing.tables() == after
        assert await keeper.plan(DESIRED) == []
        assert (await keeper.cleanup()).in_sync
        assert await keeper.plan_cleanup() == []
    assert crossing.tables() == before
    assert crossing.passes(SOON) == NONE


@VARIANTS
async def test_what_is_planned_can_be_typed(crossing: Crossing, programs: Programs) -> None:
    for program in programs:
        crossing.feed(f"{program}-restore", DOCKER)
    async with keeping() as keeper:
        for change in await keeper.plan(DESIRED):
            crossing.node.exec(change.text)
        assert crossing.passes() == ALL
        assert await keeper.plan(DESIRED) == []


@VARIANTS
async def test_what_closes_the_filter_later_is_met(crossing: Crossing, programs: Programs) -> None:
    """Docker starts after the agent; and what the filter becomes without it, when it lets pods pass by itself."""
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        await keeper.apply(DESIRED)
        for program in programs:
            crossing.node.exec(f"{program} -P FORWARD DROP")
        await eventually(lambda: in_place(crossing, programs), lambda: str(keeper.report))
        assert crossing.passes() == ALL
        assert keeper.report.repaired == 0, "nobody has changed anything of ours"
        for program in programs:
            crossing.node.exec(f"{program} -P FORWARD ACCEPT")
        await eventually(lambda: "NETLOOM" not in crossing.tables(), lambda: str(keeper.report))
        assert crossing.passes() == ALL


DAMAGE = {
    "the jump is deleted": "-D FORWARD -j NETLOOM-FORWARD",
    "there is another jump": "-I FORWARD -j NETLOOM-FORWARD",
    "the chain is flushed": "-F NETLOOM-FORWARD",
    "a rule is deleted": "-D NETLOOM-FORWARD 1",
    "a rule is added in front": "-I NETLOOM-FORWARD -j DROP",
    "FORWARD is flushed": "-F FORWARD",
    "everything rejects first": "-I FORWARD -j REJECT",
    "a chain that rejects is jumped to first": "-N late\n-A late -p tcp -j RETURN\n-A late -j DROP\n-I FORWARD -j late",
    "the table is emptied": "-F\n-X",
}


@VARIANTS
async def test_drift_is_repaired(crossing: Crossing, programs: Programs) -> None:
    for program in programs:
        crossing.node.exec(f"{program} -P FORWARD DROP")
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        await keeper.apply(DESIRED)
        for count, (what, damage) in enumerate(DAMAGE.items(), 1):
            crossing.feed(f"{programs[0]}-restore --noflush", f"*filter\n{damage}\nCOMMIT\n")
            await eventually(
                lambda count=count: in_place(crossing, programs) and keeper.report.repaired == count,  # type: ignore[misc]
                lambda what=what: f"{what}: {keeper.report}\n{crossing.tables()}",  # type: ignore[misc]
            )
            assert crossing.passes() == ALL, what
        assert not keeper.report.contended


@VARIANTS
async def test_a_restore_that_knows_nothing_of_us(crossing: Crossing, programs: Programs) -> None:
    """iptables-restore without --noflush: kube-proxy, Docker and boot scripts write back what they had read before."""
    for program in programs:
        crossing.feed(f"{program}-restore", DOCKER)
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        await keeper.apply(DESIRED)
        for count in range(1, 4):
            for program in programs:
                crossing.feed(f"{program}-restore", DOCKER)
            await eventually(
                lambda count=count: in_place(crossing, programs) and keeper.report.repaired >= count,  # type: ignore[misc]
                lambda: str(keeper.report),
            )
        assert crossing.passes() == ALL


async def test_both_variants_on_one_host(crossing: Crossing) -> None:
    for programs in PROGRAMS.values():
        for program in programs:
            crossing.feed(f"{program}-restore", DOCKER)
    before = crossing.tables()
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        report = await keeper.apply(DESIRED)
        assert report.open == (*PROGRAMS["nft"], *PROGRAMS["legacy"])
        assert crossing.passes() == ALL
        await keeper.cleanup()
    assert crossing.tables() == before


@VARIANTS
async def test_what_others_decide_about_certain_packets_stays_decided(crossing: Crossing, programs: Programs) -> None:
    """A network policy for a pod, a Service without endpoints; then everything is rejected, with policy accept."""
    rules = [
        ":POLICY - [0:0]",
        ":KUBE-FORWARD - [0:0]",
        "-A FORWARD -m conntrack --ctstate NEW -j POLICY",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -j KUBE-FORWARD",
        "-A FORWARD -j REJECT",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    ]
    for program, pod in zip(programs, ("10.42.1.9", "fd00:42:1::9"), strict=True):
        text = "\n".join(["*filter", *rules, f"-A POLICY -d {pod} -j DROP", "COMMIT", ""])
        crossing.feed(f"{program}-restore", text)
    crossing.a.batch(["address add 10.42.1.9/24 dev eth0", "address add fd00:42:1::9/64 dev eth0 nodad"])
    async with keeping() as keeper:
        await keeper.apply(DESIRED)
        saved = crossing.node.exec(f"{programs[0]} -S FORWARD").splitlines()
        assert saved[-2:] == [JUMP, saved[-1]]
        assert "REJECT" in saved[-1]
        assert crossing.passes() == ALL
        assert not crossing.b.pings("10.42.1.9", seconds=SOON)


async def test_nothing_is_made_where_nothing_drops(crossing: Crossing) -> None:
    """No table of iptables, and no module: asking for tables of the legacy variant makes them."""
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        report = await keeper.apply(DESIRED)
        assert report.in_sync
        assert crossing.tables() == ""
        await eventually(lambda: keeper._legacy._filter._look_at > 0)
        for programs in PROGRAMS.values():
            for program, source in zip(programs, ("192.0.2.1", "2001:db8::1"), strict=True):
                crossing.node.exec(f"{program} -A FORWARD -s {source} -j DROP")
        before = crossing.tables()
        await keeper.apply(msgspec.structs.replace(DESIRED, peer=""))
        assert await keeper.plan(DESIRED) == []
        assert keeper.report.written == {}
        assert crossing.tables() == before
        assert await keeper.plan_cleanup() == []


@VARIANTS
async def test_it_can_be_told_to_report_only(crossing: Crossing, programs: Programs) -> None:
    for program in programs:
        crossing.feed(f"{program}-restore", DOCKER)
    before = crossing.tables()
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        report = await keeper.apply(REPORTED)
        assert crossing.tables() == before
        assert [(each.base.family, each.base.name, each.sure, each.policy) for each in report.blocked] == [
            ("ip", "FORWARD", True, True),
            ("ip6", "FORWARD", True, True),
        ]
        assert all(each.is_iptables for each in report.blocked)
        await keeper.apply(DESIRED)
        assert not keeper.report.blocked
        assert crossing.passes() == ALL
        await keeper.apply(REPORTED)
        assert crossing.tables() == before


async def test_without_the_programs_it_is_said(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it stays said when they are there again, or the table is gone."""
    crossing.node.exec("iptables-legacy -P FORWARD DROP")
    with monkeypatch.context() as without:
        without.setattr(iptables, "PROGRAMS", {"ip": "xtables-absent", "ip6": "xtables-absent"})
        async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
            report = await keeper.apply(DESIRED)
            assert report.in_sync
            assert report.unread == (
                "the kernel holds a filter table of iptables-legacy, and whether it drops packets of pods cannot be "
                "told: there is no program xtables-absent-save beside the agent (Debian: package iptables)",
            )
            without.undo()
            await eventually(lambda: keeper.report.open == ("iptables-legacy",), lambda: str(keeper.report))
            assert keeper.report.unread == ()


async def test_who_holds_the_lock_is_waited_for_and_named(
    crossing: Crossing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(iptables, "LOCK_SECONDS", 1)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    crossing.node.exec("iptables-legacy -P FORWARD DROP")
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        with locked(tmp_path / "lock"):
            await keeper.apply(DESIRED)
            await eventually(lambda: bool(keeper.report.failures), lambda: str(keeper.report))
            assert "lock" in keeper.report.failures[0].error
            assert keeper.report.failures[0].key == "NETLOOM-FORWARD of iptables-legacy"
        await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
    assert crossing.passes()["4 out"]


async def test_a_program_that_hangs_holds_up_nothing_of_nftables(
    crossing: Crossing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(iptables, "LOCK_SECONDS", 60)
    crossing.node.exec("iptables-nft -P FORWARD DROP")
    crossing.node.exec("iptables-legacy -P FORWARD DROP")
    hangs, program = tmp_path / "hangs", tmp_path / "iptables-legacy-save"
    real = shutil.which("iptables-legacy-save")
    waits = f"touch {hangs}.now; while [ -e {hangs} ]; do sleep 0.05; done"
    program.write_text(f'#!/bin/sh\n{waits}\nexec {real} "$@"\n')
    program.chmod(0o755)
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        report = await keeper.apply(DESIRED)
        assert report.open == ("iptables-nft", "iptables-legacy")
        before = crossing.tables()
        hangs.touch()
        try:
            monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
            await eventually(hangs.with_suffix(".now").exists)
            crossing.node.exec("iptables-nft -D NETLOOM-FORWARD 1")
            await eventually(lambda: keeper.report.repaired == 1, lambda: str(keeper.report))
        finally:
            hangs.unlink()
        await becomes(crossing.tables, before)
    hangs.touch()
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        try:
            report = await keeper.hand_over(DESIRED)
            assert (report.open, report.unread) == (("iptables-nft",), ()), "a restart waits for none either"
        finally:
            hangs.unlink()
        await eventually(lambda: keeper.report.open == ("iptables-nft", "iptables-legacy"), lambda: str(keeper.report))


async def test_what_the_kernel_refuses_is_named_and_tried_again(crossing: Crossing) -> None:
    crossing.node.exec("iptables-nft -P FORWARD DROP")
    faulty = FaultyNftables()
    faulty.refuse("newchain", 1, FOR_EVER)
    async with keeping(commands=lambda: faulty) as keeper, running(keeper):  # type: ignore[arg-type]
        report = await keeper.apply(DESIRED)
        (failure,) = report.failures
        assert str(failure) == "chain NETLOOM-FORWARD of iptables-nft: make the chain: EPERM: injected"
        faulty.heal()
        await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
    assert crossing.passes()["4 out"]


async def test_rules_of_others_cost_nothing(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of what no forwarded packet sees lead to no reading."""
    crossing.node.exec("iptables-nft -P FORWARD DROP")
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        await keeper.apply(DESIRED)
        await eventually(lambda: in_place(crossing, ("iptables-nft", "iptables-nft")) or True)
        read = count_readings(keeper, monkeypatch)
        crossing.feed("nft -f -", "add table ip other { chain one { }; set s { type ipv4_addr; }; }\n")
        tables = len(read)
        for number in range(20):
            crossing.node.exec(f"nft add rule ip other one ip saddr 192.0.2.{number} drop")
            crossing.node.exec(f"nft add element ip other s {{ 192.0.2.{number} }}")
        crossing.node.exec("iptables-nft -A INPUT -s 192.0.2.1 -j DROP")
        crossing.node.exec("iptables-nft -I FORWARD -s 192.0.2.1 -j DROP")
        await eventually(lambda: len(read) > tables, lambda: str(read))
        assert len(read) <= tables + 2
