"""Every call to the kernel fails once, at every step of loading, attaching, changing and removing: what was filtered is
filtered all the same, the report says what is wrong, and in the end all is as if nothing had failed."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from netloom.kernel.keeper import retries
from netloom.kernel.keeper.part import Attempt, Worker
from netloom.kernel.keeper.retries import Retries
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from netloom.kernel.prefilter import bpf, compiler, tries
from netloom.kernel.prefilter.compiler import Compiled
from netloom.kernel.prefilter.filter_part import FilterPart
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import DeviceWish, Mode, Prefiltering
from tests.kernel.meshes import running
from tests.kernel.netns import Lab
from tests.kernel.prefilters import (
    IPV4,
    Filtered,
    Receiver,
    descriptors,
    ethernet,
    eventually,
    ipv4,
    lives,
    rules,
    wanted,
)

BAD, WORSE = ethernet(ipv4("198.51.100.1"), IPV4), ethernet(ipv4("203.0.113.1"), IPV4)
FIRST = wanted(rules({"198.51.100.0/24": "a"}), "wire0", "lo")
NEXT = wanted(rules({"198.51.100.0/24": "a", "203.0.113.0/24": "b", "2001:db8::/32": "b"}), "wire0", "lo")
APART = Prefiltering(FIRST.rules, (DeviceWish("wire0", rules=1), DeviceWish("lo")), (NEXT.rules,))
EMPTY = ["maps.debug", "progs.debug"]
_SYSTEM_CALL = bpf.bpf


class Fault:
    """Of the calls to the kernel (bpf(2), netlink, and those that make, list and remove pins), the one of this number
    fails, and none after it. It is tried again soon."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pins: Path, number: int, code: int) -> None:
        monkeypatch.setattr(retries, "FIRST_SECONDS", 0.002)
        self.left = number
        self._code = code
        self._pins = pins
        monkeypatch.setattr(bpf, "bpf", self._failing(_SYSTEM_CALL))
        for (kind, name), call in _CALLS.items():
            monkeypatch.setattr(kind, name, self._failing(call))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            path = arguments[0]
            if not isinstance(path, Path) or self._pins in path.parents:
                self.left -= 1
                if self.left == 0:
                    raise OSError(self._code, f"cannot do it: {os.strerror(self._code)}")
            return call(*arguments, **options)

        return called

    @property
    def happened(self) -> bool:
        return self.left <= 0


_CALLS = {
    (kind, name): getattr(kind, name)
    for kind, names in ((CommandSocket, ("execute", "_ask")), (Path, ("mkdir", "iterdir", "unlink", "rmdir")))
    for name in names
}


async def settle(keeper: PrefilterKeeper, desired: Prefiltering) -> None:
    report = await keeper.apply(desired)
    if not report.in_sync:
        assert report.failures, report
    await in_sync(keeper)


async def in_sync(keeper: PrefilterKeeper) -> None:
    await eventually(lambda: keeper.report.in_sync)


@pytest.mark.slow
async def test_whichever_call_fails_it_ends_well(filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, a change of all entries, and the removal, with another call failing each time, until none is left to
    fail."""
    monkeypatch.setattr(tries, "_LEAST_REWRITTEN", 0)
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")) as receiver:
        number, happened, opened = 0, True, descriptors()
        while happened:
            number += 1
            keeper = PrefilterKeeper(filtered.cache, bpffs=filtered.bpffs, resync_seconds=None)
            await keeper.open()
            async with running(keeper):
                fault = Fault(monkeypatch, filtered.bpffs, number, errno.ENOMEM if number % 2 else errno.EPERM)
                await settle(keeper, FIRST)
                assert not await receiver.passes(BAD), number
                await settle(keeper, NEXT)
                assert not await receiver.passes(BAD), number
                assert not await receiver.passes(WORSE), number
                await settle(keeper, Prefiltering())
                happened = fault.happened
                await eventually(lambda: (filtered.programs(), filtered.pins()) == ({}, EMPTY))
            await keeper.close()
            assert descriptors() == opened, number
        assert number > 30


@pytest.mark.slow
async def test_whichever_call_fails_another_version_takes_over_and_drops_all_the_time(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of another version exchanges the program, and devices that had the same rules have others, with another
    call failing each time."""
    now = compiler.instructions
    padding = itertools.cycle(("", "b700000000000000"))

    def instructions(cache: Path) -> Compiled:
        compiled = now(cache)
        return replace(compiled, multi_buffer=version + compiled.multi_buffer)

    monkeypatch.setattr(compiler, "instructions", instructions)
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")) as receiver:
        version, number, happened, opened = "", 0, True, descriptors()
        while happened:
            number += 1
            version = next(padding)
            assert (await lives(filtered, FIRST)).in_sync
            version = next(padding)
            keeper = PrefilterKeeper(filtered.cache, bpffs=filtered.bpffs, resync_seconds=None)
            await keeper.open()
            async with running(keeper):
                fault = Fault(monkeypatch, filtered.bpffs, number, errno.ENOMEM if number % 2 else errno.EPERM)
                await keeper.apply(APART)
                assert not await receiver.passes(BAD), number
                await in_sync(keeper)
                happened = fault.happened
                assert not await receiver.passes(WORSE), number
                await eventually(lambda: len([each for each in filtered.pins() if "program_" in each]) == 2)
            await keeper.close()
            assert descriptors() == opened, number
        assert number > 30


async def test_a_change_that_fails_leaves_what_was_filtered(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")) as receiver:
        keeper = await filtered.agent()
        await keeper.apply(FIRST)

        def full(command: int, attributes: bpf.Attributes) -> int:
            if command in bpf.WRITES:
                raise OSError(errno.ENOMEM, "cannot write to a map: Cannot allocate memory")
            return _SYSTEM_CALL(command, attributes)

        monkeypatch.setattr(bpf, "bpf", full)
        report = await keeper.apply(NEXT)
        assert not report.in_sync
        assert report.error == "cannot write to a map: Cannot allocate memory"
        assert [str(failure) for failure in report.failures] == [f"prefilter entries: {report.error}"]
        assert not await receiver.passes(BAD)
        assert await receiver.passes(WORSE)
        assert [device.mode for device in report.devices] == ["native", "generic"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOMEM, errno.EEXIST, errno.EBUSY, errno.ENODEV])
async def test_a_device_that_the_kernel_refuses_stops_no_other(filtered: Filtered, code: int) -> None:
    class Refusing(CommandSocket):
        refuse = True

        def execute(self, messages: list[bytes]) -> dict[int, KernelRefusal]:  # type: ignore[override]
            ifindex = int.from_bytes(messages[0][20:24], "little")
            return {0: KernelRefusal(code)} if self.refuse and ifindex == 1 else super().execute(messages)

    keeper = await filtered.agent(running=True, commands=Refusing)
    desired = wanted(rules({"198.51.100.0/24": "a"}), "lo", "eth0")
    report = await keeper.apply(desired)
    assert filtered.programs() == {"eth0": "native netloom_"}
    if code != errno.ENODEV:
        assert errno.errorcode[code] in report.devices[0].error
        assert [failure.key for failure in report.failures] == ["lo"]
        Refusing.refuse = False
        await eventually(lambda: keeper.report.in_sync)
        assert filtered.programs() == {"eth0": "native netloom_", "lo": "generic netloom_"}


async def test_where_a_removal_is_refused_the_program_stays_pinned(filtered: Filtered) -> None:
    class Refusing(CommandSocket):
        refuse = False

        def execute(self, messages: list[bytes]) -> dict[int, KernelRefusal]:  # type: ignore[override]
            return {0: KernelRefusal(errno.EPERM)} if self.refuse else super().execute(messages)

    keeper = await filtered.agent(running=True, commands=Refusing)
    await keeper.apply(wanted(rules({"198.51.100.0/24": "a"}), "eth0"))
    pins = filtered.pins()
    Refusing.refuse = True
    report = await keeper.apply(Prefiltering())
    assert [str(failure) for failure in report.failures] == [
        "xdp eth0: the prefilter cannot be detached from eth0: EPERM: Operation not permitted"
    ]
    assert filtered.pins() == pins
    Refusing.refuse = False
    await eventually(lambda: (filtered.programs(), filtered.pins()) == ({}, EMPTY))


@pytest.mark.slow
async def test_no_frame_gets_past_while_programs_and_entries_are_replaced(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 agents of two versions, one after the other, each of which replaces program and entries, under load."""
    versions = itertools.cycle((False, True))
    now = compiler.instructions

    def of_the_next_version(cache: Path) -> Compiled:
        compiled = now(cache)
        padding = "b700000000000000" if next(versions) else ""
        return replace(compiled, multi_buffer=padding + compiled.multi_buffer)

    monkeypatch.setattr(compiler, "instructions", of_the_next_version)
    monkeypatch.setattr(tries, "_LEAST_REWRITTEN", 0)
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")) as receiver:
        desired = [
            wanted(rules({"198.51.100.0/24": "a", other: "a"}), "wire0", mode=Mode.NATIVE)
            for other in ("203.0.113.0/24", "192.0.2.128/25")
        ]
        await lives(filtered, desired[1])
        with receiver.flooded(BAD):
            for turn in range(100):
                report = await lives(filtered, desired[turn % 2])
                assert report.in_sync
                assert report.written == {"newlink": 1, "program": 1, "entry": 2}, turn
            assert receiver.received(BAD) == 0
            filtered.place.ip("link set wire0 xdp off")  # as the test has to be able to see
            await eventually(lambda: receiver.received(BAD) > 0)


@pytest.mark.slow
async def test_a_device_comes_and_goes_a_thousand_times_and_nothing_is_left_of_it(filtered: Filtered) -> None:
    """Each is filtered as soon as it is there. Afterwards there are as many descriptors, pins and requests as before
    the first, and in the end not even the program.

    After some that do so alone, ten at a time go as a group of the kernel's: it waits 30 ms for whoever still uses
    devices, however many, and lets no other namespace change its own meanwhile.
    """
    keeper = await filtered.agent(running=True)
    names = [f"come{number}" for number in range(10)]
    for devices in (["eth0"], names):
        await keeper.apply(wanted(rules({"198.51.100.0/24": "a"}), *devices))
    program, pins, opened, written = keeper.report.program, filtered.pins(), descriptors(), keeper.stats
    assert bpf.name_of_program(program)
    come = [f"link add {name} group 7 type veth peer name other-{name}" for name in names]

    def filtering() -> int:
        return [each.mode for each in keeper.report.devices].count(Mode.NATIVE)

    came = 0
    for count in [1] * 20 + [10] * 98:
        filtered.place.batch(come[:count])
        await eventually(lambda count=count: filtering() == count)
        filtered.place.ip("link delete group 7")
        await eventually(lambda: not any(each.mode for each in keeper.report.devices))
        came += count
        assert keeper.stats == written | {"newlink": written["newlink"] + came}
    assert came == 1000
    assert (keeper.report.program, filtered.pins(), descriptors()) == (program, pins, opened)
    assert not keeper.report.failures

    await keeper.apply(Prefiltering())
    await eventually(lambda: bpf.name_of_program(program) == "")
    assert filtered.pins() == EMPTY


async def test_a_driver_that_refused_is_asked_again_when_the_mtu_is_another(
    filtered: Filtered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, on the event: here nothing is tried again for its time alone."""
    for name in ("FIRST_SECONDS", "LONGEST_SECONDS"):
        monkeypatch.setattr(retries, name, 3600.0)

    class Refusing(CommandSocket):
        asked = 0
        refuse = True

        def execute(self, messages: list[bytes]) -> dict[int, KernelRefusal]:  # type: ignore[override]
            Refusing.asked += 1
            return {0: KernelRefusal(errno.ERANGE)} if self.refuse else super().execute(messages)

    keeper = await filtered.agent(running=True, commands=Refusing)
    report = await keeper.apply(wanted(rules({"198.51.100.0/24": "a"}), "eth0", mode=Mode.NATIVE))
    assert "the driver of eth0 does not take the prefilter in native mode (ERANGE" in report.devices[0].error
    asked = Refusing.asked
    filtered.place.ip("link set eth0 mtu 1400")
    await eventually(lambda: Refusing.asked == asked + 1)
    Refusing.refuse = False
    filtered.place.ip("link set eth0 mtu 1300")
    await eventually(lambda: keeper.report.in_sync)
    assert filtered.programs() == {"eth0": "native netloom_"}


async def test_what_is_pending_can_be_counted_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks how things are does it beside the thread that works on the program."""
    part = FilterPart(tmp_path / "pins", tmp_path / "cache", dict)
    counts: list[int] = []

    def impossible() -> None:
        counts.append(len(list(begun)))
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(part, "_need_programs", impossible)
    part.want(FIRST, Retries())
    thread = KernelThread("netloom-test")
    try:
        for _ in range(2):
            begun = part.pending()
            await part.update(Worker(cast(CommandSocket, None), thread), Attempt())
    finally:
        await thread.close()
    assert counts == [0, 2], "what was asked for stays as it was"
    assert (part.count_pending(), part.error) == (2, "no")
