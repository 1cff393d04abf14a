"""What the prefilter can do with few capabilities, and what it says with fewer."""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.kernel.netns import Lab
from tests.kernel.prefilters import Filtered, Receiver
from tests.kernel.test_prefilter import foreign

PROGRAM = """
import asyncio, ctypes, json, platform, struct, sys
from pathlib import Path
from msgspec import to_builtins
from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Prefiltering
from tests.kernel.prefilters import rules, wanted

class Filter(ctypes.Structure):  # struct sock_fprog
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

def no_bpf():  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP: of all system calls that one is refused
    number = bpf._NUMBER[platform.machine()]
    code = (0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
    packed = b"".join(struct.pack("=HBBI", *each) for each in code)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == libc.prctl(22, 2, ctypes.byref(Filter(4, packed))) == 0

async def main(verb, by_seccomp, cache, bpffs):
    if by_seccomp == "True":
        no_bpf()
    keeper = PrefilterKeeper(Path(cache), bpffs=Path(bpffs))
    await keeper.open()
    wishes = [wanted(rules({"198.51.100.0/24": "a"}), "wire0"), wanted(rules({"192.0.2.0/24": "a"}), "wire0")]
    for desired in wishes[::-1] if verb == "apply" else [Prefiltering()]:
        report = await keeper.apply(desired)
    print(json.dumps({"report": to_builtins(report), "in_sync": report.in_sync}))
    await keeper.close()

asyncio.run(main(*sys.argv[1:]))
"""


def run_with(filtered: Filtered, verb: str, *capabilities: str, by_seccomp: bool = False) -> dict[str, Any]:
    """An agent as root with these alone; what it reports. by_seccomp: it may not call bpf(2)."""
    drop = [
        "setpriv",
        "--bounding-set",
        ",".join(["-all", *(f"+{each}" for each in capabilities)]),
        "--inh-caps",
        "-all",
    ]
    program = [sys.executable, "-c", PROGRAM, verb, str(by_seccomp), str(filtered.cache), str(filtered.bpffs)]
    command = ["nsenter", f"--net=/run/netns/{filtered.place.name}", *drop, *program]
    place = {"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_three_capabilities_are_enough(filtered: Filtered, lab: Lab) -> None:
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    for _ in range(2):  # the second agent finds what the first one left
        done = run_with(filtered, "apply", "bpf", "net_admin", "perfmon")
        assert done["in_sync"], done
        assert filtered.programs() == {"wire0": "native netloom_"}
    assert done["report"]["written"] == {"entry": 4}
    done = run_with(filtered, "cleanup", "bpf", "net_admin", "perfmon")
    assert done["in_sync"], done
    assert (filtered.programs(), filtered.pins()) == ({}, ["maps.debug", "progs.debug"])


@pytest.mark.parametrize("fewer", [("net_admin",), ("net_admin", "bpf")])
def test_with_fewer_it_says_which_are_missing(filtered: Filtered, lab: Lab, fewer: tuple[str, ...]) -> None:
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    done = run_with(filtered, "apply", *fewer)
    assert filtered.programs() == {}
    error = done["report"]["error"]
    what, lacking = (
        ("cannot make a map: Operation not permitted", "capabilities BPF and PERFMON")
        if fewer == ("net_admin",)
        else ("cannot load the prefilter", "capability PERFMON")
    )
    assert error == (
        f"{what}: the agent lacks the {lacking}. With the chart, set agent.prefilter=true; else add them to its "
        "container's securityContext.capabilities, or to what its service may have"
    )
    assert done["report"]["devices"][0]["error"] == error
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")):
        assert not done["in_sync"]


@pytest.mark.slow
def test_what_others_left_is_kept_and_removed_without_the_rights_to_make_it(filtered: Filtered, lab: Lab) -> None:
    """As after a rollback to agents without them: the seccomp profile of containers refuses all of bpf(2) without the
    capability BPF. (The kernel asks for it where something is made.) Somebody else's program stays."""
    far = lab.namespace("far")
    lab.wire(filtered.place, "wire0", far, "wire1")
    assert run_with(filtered, "apply", "bpf", "net_admin", "perfmon")["in_sync"]
    foreign(filtered, "lo", "xdpgeneric")
    programs, pins = filtered.programs(), filtered.pins()
    done = run_with(filtered, "apply", "net_admin", by_seccomp=True)
    assert (filtered.programs(), filtered.pins()) == (programs, pins)
    assert not done["in_sync"]
    (device,) = done["report"]["devices"]
    assert (device["mode"], device["error"]) == ("native", "")
    assert "the agent lacks the capabilities BPF and PERFMON" in done["report"]["error"]
    done = run_with(filtered, "cleanup", "net_admin", by_seccomp=True)
    assert done["in_sync"], done
    assert filtered.programs() == {"lo": "generic somebody"}
    assert filtered.pins() == ["maps.debug", "progs.debug", "somebody"]
