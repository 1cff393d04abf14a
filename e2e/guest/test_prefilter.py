"""The prefilter on this kernel: its verifier takes the program, which decides and counts as it does elsewhere.

Bonds and VLANs are here, as Debian's kernels have them, and those that tests run on may not.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Prefiltering
from tests.kernel.netns import Lab, prepare
from tests.kernel.prefilters import (
    IPV4,
    VLAN,
    Receiver,
    counted,
    ethernet,
    eventually,
    ipv4,
    mounted_bpffs,
    wanted,
)
from tests.kernel.test_prefilter import other_version
from tests.kernel.test_prefilter_frames import BAD, DROPPED, FINE, PASSED, RULES, four

DROP, PASS = 1, 2


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """Namespaces of the kernel's tests."""
    prepare()
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


async def test_the_prefilter_runs_on_this_kernel(own_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, far = own_lab.namespace("node"), own_lab.namespace("far")
    own_lab.wire(node, "wire0", far, "wire1")
    for namespace, device in ((node, "wire0"), (far, "wire1")):
        namespace.ip(f"link set {device} mtu 9000")
    node.ip("link add bridge0 type bridge")
    with mounted_bpffs(tmp_path / "bpf") as bpffs, node.entered():
        keeper = PrefilterKeeper(tmp_path / "cache", bpffs=bpffs, resync_seconds=None)
        await keeper.open()
        report = await keeper.apply(wanted(RULES, "wire0", "bridge0"))
        assert report.in_sync, (report.error, report.verifier)
        assert [device.mode for device in report.devices] == ["native", "generic"]
        (path,) = bpffs.glob("netloom/*/program_*")
        program = bpf.open_pin(str(path))
        for name, (_prefilter, frame) in DROPPED.items():
            assert bpf.run_program(program, frame)[0] == DROP, name
        for name, frame in PASSED.items():
            assert bpf.run_program(program, frame)[0] == PASS, name
        os.close(program)
        before = counted(keeper)
        with contextlib.closing(Receiver(node, "wire0", far, "wire1")) as receiver:
            assert not await receiver.passes(DROPPED["IPv6 in stacked VLANs"][1], 120)
            assert await receiver.passes(four(FINE), 120)
            assert counted(keeper)["six"][0] == before["six"][0] + 1
            await keeper.close()
            other_version(monkeypatch)
            keeper = PrefilterKeeper(tmp_path / "cache", bpffs=bpffs, resync_seconds=None)
            await keeper.open()
            replaced = await keeper.apply(wanted(RULES, "wire0", "bridge0"))
            assert (replaced.in_sync, dict(replaced.written)) == (True, {"newlink": 2, "program": 1})
            assert replaced.program != report.program
            assert not await receiver.passes(four(), 120)
        await keeper.apply(Prefiltering())
        assert list(bpffs.glob("netloom")) == []
        await keeper.close()


async def test_bonds_and_vlans_are_filtered_with_jumbo_frames(own_lab: Lab, tmp_path: Path) -> None:
    node, far = own_lab.namespace("node"), own_lab.namespace("far")
    own_lab.wire(node, "wire0", far, "wire1")
    far.ip("link set wire1 mtu 9000")
    node.batch(
        [
            "link add bond0 mtu 9000 type bond mode active-backup",
            "link set wire0 down mtu 9000",
            "link set wire0 master bond0",
            "link set bond0 up",
            "link add link bond0 name bond0.7 type vlan id 7",
            "link set bond0.7 up",
        ]
    )
    large = ethernet(ipv4(BAD, payload=b"x" * 8000), IPV4, VLAN)
    with mounted_bpffs(tmp_path / "bpf") as bpffs, node.entered():
        keeper = PrefilterKeeper(tmp_path / "cache", bpffs=bpffs, resync_seconds=None)
        await keeper.open()
        report = await keeper.apply(wanted(RULES, "bond0", "bond0.7"))
        assert report.in_sync, (report.error, report.devices)
        assert [device.mode for device in report.devices] == ["native", "generic"]
        with contextlib.closing(Receiver(node, "bond0", far, "wire1")) as receiver:
            assert not await receiver.passes(large, 120)
            assert counted(keeper)["four"] == (1, len(large))
            assert await receiver.passes(ethernet(ipv4(FINE, payload=b"x" * 8000), IPV4, VLAN), 120)
            assert (await keeper.apply(wanted(RULES, "bond0.7"))).in_sync
            assert await receiver.passes(large, 120), "what comes to the bond is let be"
            await eventually(lambda: counted(keeper)["four"][0] == 2, 120)
        await keeper.apply(Prefiltering())
        await keeper.close()
