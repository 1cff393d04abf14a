"""The prefilter on this kernel: its verifier takes the program, which decides and counts as it does elsewhere."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Prefiltering
from tests.kernel.netns import Lab, prepare
from tests.kernel.prefilters import Receiver, counted, mounted_bpffs, wanted
from tests.kernel.test_prefilter_frames import DROPPED, FINE, PASSED, RULES, four

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


async def test_the_prefilter_runs_on_this_kernel(own_lab: Lab, tmp_path: Path) -> None:
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
        await keeper.apply(Prefiltering())
        assert list(bpffs.glob("netloom")) == []
        await keeper.close()
