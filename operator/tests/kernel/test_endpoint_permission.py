"""With NET_ADMIN alone pods are wired, checked and unwired; without it, it is said."""

import subprocess
import sys

import pytest

from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import forwarding_node, pod, shown

PROGRAM = """
import asyncio, sys
from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, WiringFailed
from netloom.kernel.endpoints.keeper import EndpointsKeeper

async def main():
    netns, inside = map(int, sys.argv[1:3])
    addresses = tuple(map(parse_address, ("10.1.0.2", "fd00:1::2")))
    endpoint = Endpoint(container="c1", interface="eth0", addresses=addresses, pod="default/one")
    keeper = EndpointsKeeper()
    await keeper.open()
    try:
        await keeper.wire(endpoint, netns, inside)
        print(await keeper.differences(endpoint, inside))
        print(await keeper.unwire("c1", "eth0"))
    except WiringFailed as failed:
        print(f"{failed.reason}: {failed.sentence}")
    finally:
        await keeper.close()

asyncio.run(main())
"""


def alone(
    node: Namespace, capabilities: str, given: tuple[int, int], program: str, *words: str
) -> "subprocess.CompletedProcess[str]":
    """Run a program on the node with these capabilities and descriptors."""
    drop = ["setpriv", "--bounding-set", capabilities, "--inh-caps", "-all"]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    command = ["nsenter", f"--net=/run/netns/{node.name}", "--", *drop]
    command += [sys.executable, "-c", program, *map(str, given), *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, pass_fds=given
    )


@pytest.mark.parametrize(
    ("capabilities", "says"),
    [
        ("-all,+net_admin", "[]\nTrue\n"),
        (
            "-all",
            "not-permitted: eth0 of default/one: making the pair of devices: EPERM: Operation not permitted: the agent "
            "needs the capability NET_ADMIN, in the pod's user namespace, too\n",
        ),
    ],
)
def test_it_takes_one_capability(lab: Lab, capabilities: str, says: str) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    with one.handed_over() as given:
        done = alone(node, capabilities, given, PROGRAM)
    assert (done.stdout, done.returncode) == (says, 0), done.stderr
    assert shown(node) == ""
    assert "eth0" not in one.place.ip("link")


REPAIRED = """
import asyncio, os, subprocess, sys
from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper

async def main():
    netns, inside = map(int, sys.argv[1:3])
    addresses = tuple(map(parse_address, ("10.1.0.2", "fd00:1::2")))
    endpoint = Endpoint(container="c1", interface="eth0", addresses=addresses, pod="default/one", netns=sys.argv[3])
    keeper = EndpointsKeeper(resync_seconds=None)
    await keeper.open()
    keeping = asyncio.create_task(keeper.run())
    try:
        await keeper.apply(Endpoints())
        await keeper.wire(endpoint, netns, inside)
        subprocess.run(["ip", "link", "delete", endpoint.device], check=True)
        async with asyncio.timeout(30):
            while not keeper.report.repaired or not keeper.report.in_sync:
                if keeper.report.failures:
                    break
                await asyncio.sleep(0.01)
        print(*(failure.error for failure in keeper.report.failures))
        print(await keeper.differences(endpoint, inside))
        before = len(os.listdir("/proc/self/fd"))
        await keeper.unwire("c1", "eth0")
        print(before - len(os.listdir("/proc/self/fd")))
    finally:
        keeping.cancel()
        await keeper.close()

asyncio.run(main())
"""


def test_a_pair_that_somebody_deletes_is_made_anew_with_that_one_capability(lab: Lab) -> None:
    """By the way into the pod that was kept, which its end closes."""
    node, one = forwarding_node(lab), pod(lab, 1)
    with one.handed_over() as given:
        done = alone(node, "-all,+net_admin", given, REPAIRED, one.endpoint.netns)
    said = [line for line in done.stdout.splitlines() if "repaired" not in line]
    assert (said, done.returncode) == (["", "[]", "1"], 0), done.stdout + done.stderr
    assert shown(node) == ""
