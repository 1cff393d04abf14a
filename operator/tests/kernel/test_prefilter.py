"""The prefilter's life on a node: it comes, is changed, outlives its agents, is put back, and leaves nothing."""

import contextlib
import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.sockets import KernelRefusal
from netloom.kernel.prefilter import bpf, compiler, drivers
from netloom.kernel.prefilter.attachments import obstacle, steps_to
from netloom.kernel.prefilter.compiler import Compiled
from netloom.kernel.prefilter.links import BONDING, FEATURES, XdpLink, read_xdp_link
from netloom.kernel.prefilter.prefiltering import DeviceReport, DeviceWish, Mode, Prefiltering
from tests.kernel.netns import Lab, Namespace
from tests.kernel.prefilters import (
    IPV4,
    Filtered,
    Receiver,
    counted,
    descriptors,
    ethernet,
    eventually,
    ipv4,
    rules,
    wanted,
)

RULES = rules({"198.51.100.0/24": "a"})
BAD = ethernet(ipv4("198.51.100.1"), IPV4)
EMPTY = ["maps.debug", "progs.debug"]
"""What a bpffs has by itself."""
NATIVE, GENERIC = "native netloom_", "generic netloom_"


def foreign(filtered: Filtered, device: str, hook: str = "xdp") -> None:
    """Somebody else's program, that lets everything pass."""
    path = filtered.bpffs / "somebody"
    if not path.exists():
        pass_all = bytes.fromhex("b700000002000000 9500000000000000")
        with contextlib.closing(Loaded(pass_all)) as loaded:
            bpf.pin(loaded.descriptor, str(path))
    filtered.place.ip(f"-force link set {device} {hook} pinned {path}")


class Loaded:
    """A program that is not the prefilter's."""

    def __init__(self, instructions: bytes) -> None:
        self.descriptor = bpf.load_program("somebodys", instructions)

    def close(self) -> None:
        os.close(self.descriptor)


def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on agents have another program: of the same effect, and one instruction more."""
    now = compiler.instructions

    def then(cache: Path) -> Compiled:
        compiled = now(cache)
        return replace(compiled, multi_buffer="b700000000000000" + compiled.multi_buffer)

    monkeypatch.setattr(compiler, "instructions", then)


async def test_without_a_prefilter_nothing_is_done(filtered: Filtered) -> None:
    keeper = await filtered.agent(running=True)
    report = await keeper.apply(Prefiltering())
    assert (report.in_sync, dict(report.written), filtered.pins()) == (True, {}, EMPTY)
    assert await keeper.plan(Prefiltering()) == []
    assert keeper.dropped() == {}
    assert keeper.port == 0, "it has no socket"


def test_without_a_prefilter_nothing_is_loaded_for_one() -> None:
    program = """
import asyncio, sys
from pathlib import Path
from netloom.kernel.prefilter.keeper import PrefilterKeeper, Prefiltering

async def main():
    keeper = PrefilterKeeper(Path("/nowhere"))
    await keeper.open()
    await keeper.apply(Prefiltering())
    await keeper.close()

asyncio.run(main())
print(*sorted(name for name in sys.modules if name.startswith("netloom.kernel.prefilter.")), sep="\\n")
"""
    place = {"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", program], env=place, capture_output=True, text=True, check=True)
    prefix = "netloom.kernel.prefilter"
    loaded = ("attachments", "devices_part", "drivers", "filter_part", "keeper", "links", "prefiltering")
    assert done.stdout.split() == [f"{prefix}.{name}" for name in loaded]


async def test_it_is_attached_and_removed_whole(filtered: Filtered) -> None:
    await eventually(lambda: "NO-CARRIER" not in filtered.place.state())
    before, state = descriptors(), filtered.place.state()
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(RULES, "eth0"))
    assert filtered.programs() == {"eth0": NATIVE}
    assert report.entries == {"v4": 1, "v6": 0}
    (device,) = report.devices
    assert device == DeviceReport("eth0", device.ifindex, "native", report.program)
    folder = f"netloom/{next(filtered.bpffs.glob('netloom/*')).name}"
    assert [path.removeprefix(f"{folder}/") for path in filtered.pins() if path.startswith(f"{folder}/")] == [
        "counters",
        "entries_v4_a",
        "names",
        f"program_{report.program}",
        "tries4",
        "tries6",
    ]
    report = await keeper.cleanup()
    assert (report.in_sync, report.devices, report.program) == (True, (), 0)
    assert filtered.programs() == {}
    assert filtered.pins() == EMPTY
    assert filtered.place.state() == state
    await keeper.close()
    assert descriptors() <= before


async def test_a_restarted_agent_knows_its_own_and_writes_nothing(filtered: Filtered, lab: Lab) -> None:
    receiver = wired(filtered, lab)
    with contextlib.closing(receiver):
        first = await filtered.agent()
        report = await first.apply(wanted(RULES, "wire0"))
        assert not await receiver.passes(BAD)
        await first.close()
        assert not await receiver.passes(BAD)
        second = await filtered.agent()
        again = await second.apply(wanted(RULES, "wire0"))
        assert (again.in_sync, dict(again.written), again.program) == (True, {}, report.program)
        assert counted(second) == {"a": (2, 2 * len(BAD))}


async def test_an_agent_without_a_prefilter_removes_what_an_earlier_one_left(filtered: Filtered) -> None:
    await (await filtered.agent()).apply(wanted(RULES, "eth0"))
    report = await (await filtered.agent()).apply(Prefiltering())
    assert report.in_sync
    assert (filtered.programs(), filtered.pins()) == ({}, EMPTY)


@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.GENERIC])
async def test_another_version_takes_the_place_of_the_one_that_runs(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    with contextlib.closing(wired(filtered, lab)) as receiver:
        first = await filtered.agent()
        before = await first.apply(wanted(RULES, "wire0", mode=mode))
        assert not await receiver.passes(BAD)
        await first.close()
        other_version(monkeypatch)
        second = await filtered.agent()
        after = await second.apply(wanted(RULES, "wire0", mode=mode))
        assert (after.in_sync, dict(after.written)) == (True, {"newlink": 1, "program": 1})
        assert after.program != before.program
        assert [path.rpartition("_")[2] for path in filtered.pins() if "program_" in path] == [str(after.program)]
        assert not await receiver.passes(BAD)
        assert counted(second)["a"][0] == 2


async def test_somebody_elses_program_is_left_alone_and_named(filtered: Filtered) -> None:
    foreign(filtered, "eth0")
    keeper = await filtered.agent(running=True)
    report = await keeper.apply(wanted(RULES, "eth0", "lo"))
    assert filtered.programs() == {"eth0": "native somebody", "lo": GENERIC}
    eth0, lo = report.devices
    assert (eth0.mode, lo.mode, report.failures) == ("", "generic", ())
    assert eth0.error == (
        f"the XDP program {eth0.program} (somebodys) of somebody else runs on eth0 in native mode, and is left there: "
        "have its owner detach it, or choose other devices"
    )
    await keeper.apply(Prefiltering())
    assert filtered.programs() == {"eth0": "native somebody"}
    await keeper.apply(wanted(RULES, "eth0"))
    filtered.place.ip("link set eth0 xdp off")
    await eventually(lambda: filtered.programs() == {"eth0": NATIVE} and keeper.report.in_sync)


async def test_a_program_that_takes_the_place_of_ours_is_reported_and_one_that_is_detached_put_back(
    filtered: Filtered,
) -> None:
    keeper = await filtered.agent(running=True)
    await keeper.apply(wanted(RULES, "eth0"))
    filtered.place.ip("link set eth0 xdp off")
    await eventually(lambda: keeper.report.repaired == 1)
    assert filtered.programs() == {"eth0": NATIVE}
    foreign(filtered, "eth0")
    await eventually(lambda: "somebody else" in keeper.report.devices[0].error)
    assert filtered.programs() == {"eth0": "native somebody"}


async def test_native_where_the_driver_can_and_generic_where_that_will_do(filtered: Filtered) -> None:
    node = filtered.place
    node.ip("link add bridge0 type bridge")
    keeper = await filtered.agent()
    devices = tuple(
        DeviceWish(name, mode)
        for name, mode in (("eth0", Mode.BEST_EFFORT), ("bridge0", Mode.BEST_EFFORT), ("lo", Mode.NATIVE))
    )
    report = await keeper.apply(Prefiltering(RULES, devices))
    assert filtered.programs() == {"eth0": NATIVE, "bridge0": GENERIC}
    eth0, bridge, lo = report.devices
    assert (eth0.mode, eth0.note) == ("native", "")
    assert (bridge.mode, bridge.note) == (
        "generic",
        "ENOTSUP: Underlying driver does not support XDP in native mode",
    )
    assert (lo.mode, lo.error) == (
        "",
        "the driver of lo does not take the prefilter in native mode (ENOTSUP: Underlying driver does not support XDP "
        "in native mode): choose mode best-effort or generic",
    )
    await keeper.apply(wanted(RULES, "eth0", "lo", mode=Mode.GENERIC))
    assert filtered.programs() == {"eth0": GENERIC, "lo": GENERIC}
    await keeper.apply(wanted(RULES, "eth0", mode=Mode.NATIVE))
    assert filtered.programs() == {"eth0": NATIVE}


def of_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on programs take frames of one buffer alone: a veth whose peer has larger ones refuses them."""
    now = compiler.instructions
    monkeypatch.setattr(compiler, "instructions", lambda cache: replace(now(cache), multi_buffer="00" * 8))


async def test_generic_mode_becomes_native_when_the_driver_may_take_it(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one_buffer(monkeypatch)
    node, far = filtered.place, lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1")
    far.ip("link set wire1 mtu 9000")
    keeper = await filtered.agent(running=True)
    report = await keeper.apply(wanted(RULES, "wire0"))
    assert (report.in_sync, filtered.programs()) == (True, {"wire0": GENERIC})
    assert "ERANGE" in report.devices[0].note
    with contextlib.closing(Receiver(node, "wire0", far, "wire1")) as receiver:
        assert not await receiver.passes(BAD)
        node.ip("link set wire0 mtu 1400")
        await eventually(lambda: keeper.report.written["newlink"] == 5)
        assert filtered.programs() == {"wire0": GENERIC}, "it was asked, refused, and what ran was put back"
        far.ip("link set wire1 mtu 1500")
        node.ip("link set wire0 mtu 1500")
        await eventually(lambda: filtered.programs() == {"wire0": NATIVE} and not keeper.report.devices[0].note)
        assert not await receiver.passes(BAD)
    await eventually(lambda: keeper.report.in_sync)
    assert (keeper.report.repaired, keeper.report.devices[0].mode) == (0, "native")


async def test_a_driver_is_not_asked_for_ever(filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs the frames of a moment. A bridge never takes it: the size of its frames is no reason to ask."""
    monkeypatch.setattr(drivers, "MOST_ASKED", 2)
    of_one_buffer(monkeypatch)
    node, far = filtered.place, lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1", "link add bridge0 type bridge")
    far.ip("link set wire1 mtu 9000")
    keeper = await filtered.agent(running=True)
    await keeper.apply(wanted(RULES, "bridge0", "wire0"))
    both = {"bridge0": GENERIC, "wire0": GENERIC}
    assert (filtered.programs(), keeper.report.written["newlink"]) == (both, 4)
    for turn, written in enumerate((7, 10, 10, 10)):
        node.batch([f"link set {name} mtu {1400 - turn}" for name in both])
        await eventually(lambda written=written: keeper.report.written["newlink"] == written)
    report = await keeper.apply(wanted(RULES, "bridge0", "wire0", "eth0"))  # what was told before that is done
    assert filtered.programs() == {**both, "eth0": NATIVE}
    assert (report.in_sync, report.written["newlink"]) == (True, 11)
    assert "ENOTSUP" in report.devices[0].note


def test_a_bond_may_take_what_it_refused_when_its_options_are_others() -> None:
    def told(event: int) -> XdpLink:
        attributes = (
            wire.attribute(3, b"bond0\0") + wire.attribute(43, b"") + wire.attribute(44, struct.pack("=I", event))
        )
        message = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attributes
        link = read_xdp_link(message, 0, len(message))
        assert link is not None
        return link

    known = drivers.Drivers()
    for event, code, worth_it in (
        (FEATURES, errno.EOPNOTSUPP, False),
        (BONDING, errno.EOPNOTSUPP, True),
        (FEATURES, errno.ENOSPC, True),
    ):
        known.refused(7, KernelRefusal(code))
        known.changed(told(event))
        assert known.may_take(7) == worth_it, (event, code)


async def test_what_runs_runs_on_where_the_driver_refuses_the_mode_that_is_asked_for_then(filtered: Filtered) -> None:
    node = filtered.place
    node.batch(["link add bridge0 type bridge", "link set bridge0 up"])
    keeper = await filtered.agent()
    await keeper.apply(wanted(RULES, "bridge0"))
    report = await keeper.apply(wanted(RULES, "bridge0", mode=Mode.NATIVE))
    assert filtered.programs() == {"bridge0": GENERIC}
    assert not report.in_sync
    (device,) = report.devices
    assert device.mode == "generic"
    assert "the driver of bridge0 does not take the prefilter in native mode (ENOTSUP" in device.error
    report = await keeper.apply(wanted(RULES, "bridge0", mode=Mode.GENERIC))
    assert (report.in_sync, report.devices[0].error) == (True, "")


async def test_a_device_without_ethernet_headers_is_refused_in_words(filtered: Filtered) -> None:
    filtered.place.ip("tuntap add dev tun0 mode tun")
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(RULES, "tun0", "eth0"))
    assert filtered.programs() == {"eth0": NATIVE}
    assert "frames on tun0 have no Ethernet header" in report.devices[0].error
    assert report.failures == ()


async def test_a_device_and_what_stands_on_it_are_filtered_both(
    filtered: Filtered, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to change the program of the lower one while the upper one has any."""
    node = filtered.place
    lab.wire(node, "wire0", lab.namespace("far"), "wire1")
    node.batch(["link add bridge0 type bridge", "link set wire0 master bridge0"])
    both = {"wire0": NATIVE, "bridge0": GENERIC}
    first = await filtered.agent()
    assert (await first.apply(wanted(RULES, "bridge0"))).in_sync
    report = await first.apply(wanted(RULES, "bridge0", "wire0"))
    assert (report.in_sync, filtered.programs()) == (True, both), "the upper one was there before"
    await first.close()
    other_version(monkeypatch)
    second = await filtered.agent(running=True)
    after = await second.apply(wanted(RULES, "bridge0", "wire0"))
    assert (after.in_sync, filtered.programs(), after.repaired) == (True, both, 0)
    assert after.program != report.program
    assert (await second.apply(wanted(RULES, "bridge0"))).in_sync
    await eventually(lambda: filtered.programs() == {"bridge0": GENERIC})
    await second.apply(wanted(RULES, "bridge0", "wire0"))
    assert (await second.apply(Prefiltering())).in_sync
    assert (filtered.programs(), filtered.pins()) == ({}, EMPTY)


@pytest.mark.parametrize(
    ("kind", "ethernet"),
    [(1, True), (772, True), *((kind, False) for kind in (512, 768, 769, 776, 778, 823, 65534))],
    ids=["ethernet", "loopback", "ppp", "ipip", "ip6tnl", "sit", "gre", "ip6gre", "none"],
)
def test_on_which_devices_frames_have_ethernet_headers(kind: int, ethernet: bool) -> None:
    """By ARPHRD_*: tun and wireguard are of none."""
    message = struct.pack("=BxHiII", 0, kind, 7, 0, 0) + wire.attribute(3, b"dev0\0") + wire.attribute(43, b"")
    link = read_xdp_link(message, 0, len(message))
    assert link is not None
    assert (link.name, link.ethernet) == ("dev0", ethernet)
    said = obstacle(link, (), {})
    assert ("frames on dev0 have no Ethernet header" in said) != ethernet
    assert bool(steps_to(link, DeviceWish("dev0"), (), 5)) == ethernet


async def test_devices_are_followed(filtered: Filtered, lab: Lab) -> None:
    """One that comes is filtered, one that is renamed is filtered if its new name is, one that is gone is forgotten."""
    node, far = filtered.place, lab.namespace("far")
    keeper = await filtered.agent(running=True)
    report = await keeper.apply(wanted(RULES, "wire0"))
    assert report.devices == (DeviceReport("wire0", error="there is no device wire0; it is filtered once it comes"),)
    assert report.in_sync
    lab.wire(node, "wire0", far, "wire1")
    await eventually(lambda: filtered.programs() == {"wire0": NATIVE})
    node.ip("link set wire0 mtu 1400")
    node.ip("link set wire0 down")
    node.ip("link set wire0 name other")
    await eventually(lambda: filtered.programs() == {})
    node.ip("link set other name wire0")
    await eventually(lambda: filtered.programs() == {"wire0": NATIVE})
    node.ip("link delete wire0")
    await eventually(lambda: not keeper.report.devices[0].ifindex and keeper.report.in_sync)


async def test_a_device_that_comes_and_goes_leaves_nothing(filtered: Filtered, lab: Lab) -> None:
    node, far = filtered.place, lab.namespace("far")
    keeper = await filtered.agent(running=True)
    await keeper.apply(wanted(RULES, "wire0"))
    lab.wire(node, "wire0", far, "wire1")
    await eventually(lambda: bool(keeper.report.devices[0].mode))
    opened, pins = descriptors(), filtered.pins()
    for _ in range(20):
        node.ip("link delete wire0")
        lab.wire(node, "wire0", far, "wire1")
        await eventually(lambda: filtered.programs() == {"wire0": NATIVE})
    assert (descriptors(), filtered.pins()) == (opened, pins)
    assert not keeper.report.contended


async def test_what_somebody_changed_is_found_by_a_resync(filtered: Filtered) -> None:
    keeper = await filtered.agent(running=True, resync_seconds=0.05)
    await keeper.apply(wanted(rules({"198.51.100.0/24": "a", "2001:db8::/32": "a"}), "eth0"))
    pins = filtered.pins()
    for name in ("tries4", "counters", "program_*"):
        (path,) = filtered.bpffs.glob(f"netloom/*/{name}")
        path.unlink()
    (path,) = filtered.bpffs.glob("netloom/*/entries_v6_a")
    trie = bpf.open_pin(str(path))
    with os.fdopen(trie, "rb", buffering=0):
        for keys, _values in bpf.entries(trie, 20, 4):
            bpf.delete_all(trie, keys, 20)
        await eventually(lambda: keeper.report.repaired >= 1 and filtered.pins() == pins)
        assert len(list(bpf.entries(trie, 20, 4))) == 1
    await eventually(lambda: keeper.report.in_sync)


async def test_pins_that_somebody_hides_or_removes_are_made_again(filtered: Filtered) -> None:
    """Without them an agent that comes next would take the program for somebody else's, and nobody could remove it."""
    keeper = await filtered.agent(running=True, resync_seconds=0.05)
    await keeper.apply(wanted(RULES, "eth0"))
    pins = filtered.pins()
    subprocess.run(["mount", "-t", "bpf", "bpf", filtered.bpffs], check=True)
    try:
        await eventually(lambda: filtered.pins() == pins and keeper.report.in_sync)
    finally:
        subprocess.run(["umount", filtered.bpffs], check=True)
    for path in sorted(filtered.bpffs.glob("netloom/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (filtered.bpffs / "netloom").rmdir()
    await eventually(lambda: filtered.pins() == pins and keeper.report.in_sync)
    assert filtered.programs() == {"eth0": NATIVE}


async def test_a_program_whose_pins_are_lost_is_known_by_its_name(filtered: Filtered) -> None:
    first = await filtered.agent()
    await first.apply(wanted(RULES, "eth0"))
    await first.close()
    subprocess.run(["mount", "-t", "bpf", "bpf", filtered.bpffs], check=True)
    try:
        report = await (await filtered.agent()).apply(wanted(RULES, "eth0"))
    finally:
        subprocess.run(["umount", filtered.bpffs], check=True)
    assert "is a prefilter's whose pins are not in this bpffs" in report.devices[0].error
    assert filtered.programs() == {"eth0": NATIVE}, "it drops what it dropped"


async def test_counters_stay_with_their_names(filtered: Filtered, lab: Lab) -> None:
    with contextlib.closing(wired(filtered, lab)) as receiver:
        keeper = await filtered.agent()
        await keeper.apply(wanted(rules({"198.51.100.0/24": "b"}), "wire0"))
        assert not await receiver.passes(BAD)
        # In other places of the rules, and of a restarted agent.
        await keeper.apply(wanted(rules({"203.0.113.0/24": "a", "198.51.100.0/24": "b"}), "wire0"))
        assert not await receiver.passes(BAD)
        assert counted(keeper) == {"a": (0, 0), "b": (2, 2 * len(BAD))}
        second = await filtered.agent()
        await second.apply(wanted(rules({"203.0.113.0/24": "c", "198.51.100.0/24": "b"}), "wire0"))
        assert not await receiver.passes(BAD)
        assert counted(second) == {"c": (0, 0), "b": (3, 3 * len(BAD))}


async def test_a_plan_says_what_would_be_done_and_does_nothing(filtered: Filtered) -> None:
    keeper = await filtered.agent()
    planned = [change.text for change in await keeper.plan(wanted(RULES, "eth0"))]
    assert planned == [
        "ip link set eth0 xdpdrv pinned netloom",
        "load the prefilter's program",
        "0 entries v4 become 1",
    ]
    assert (filtered.programs(), filtered.pins()) == ({}, EMPTY)
    await keeper.apply(wanted(RULES, "eth0"))
    assert await keeper.plan(wanted(RULES, "eth0")) == []
    other = await filtered.agent()
    assert [change.text.split("/")[0] for change in await other.plan_cleanup()] == [
        "ip link set eth0 xdpdrv off",
        "rm -r ",
    ]


def wired(filtered: Filtered, lab: Lab) -> Receiver:
    """The node's device wire0, and who sees what gets past its prefilter."""
    node: Namespace = filtered.place
    far = lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1")
    return Receiver(node, "wire0", far, "wire1")
