"""What the prefilter can do with few capabilities, and what it says with fewer."""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.kernel.netns import Lab
from tests.kernel.prefilters import IPV4, Filtered, Receiver, ethernet, ipv4

BAD = ethernet(ipv4("198.51.100.1"), IPV4)
PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from msgspec import to_builtins
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Prefiltering
from tests.kernel.prefilters import rules, wanted

async def main(verb, cache, bpffs):
    keeper = PrefilterKeeper(Path(cache), bpffs=Path(bpffs))
    await keeper.open()
    wishes = [wanted(rules({"198.51.100.0/24": "a"}), "wire0"), wanted(rules({"192.0.2.0/24": "a"}), "wire0")]
    for desired in wishes[::-1] if verb == "apply" else [Prefiltering()]:
        report = await keeper.apply(desired)
    print(json.dumps({"report": to_builtins(report), "in_sync": report.in_sync}))
    await keeper.close()

asyncio.run(main(*sys.argv[1:]))
"""


def run_with(filtered: Filtered, verb: str, *capabilities: str) -> dict[str, Any]:
    """An agent as root with these alone; what it reports."""
    drop = [
        "setpriv",
        "--bounding-set",
        ",".join(["-all", *(f"+{each}" for each in capabilities)]),
        "--inh-caps",
        "-all",
    ]
    program = [sys.executable, "-c", PROGRAM, verb, str(filtered.cache), str(filtered.bpffs)]
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
    if fewer == ("net_admin",):
        assert error == "cannot make a map: Operation not permitted: it takes the capabilities BPF and NET_ADMIN"
    else:
        assert "it takes the capabilities BPF, NET_ADMIN and PERFMON" in error
    assert done["report"]["devices"][0]["error"] == error
    with contextlib.closing(Receiver(filtered.place, "wire0", far, "wire1")):
        assert not done["in_sync"]
