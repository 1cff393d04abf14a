"""With NET_ADMIN alone pods are wired, checked and unwired; without it, it is said."""

import subprocess
import sys

import pytest

from tests.kernel.netns import Lab
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
    drop = ["setpriv", "--bounding-set", capabilities, "--inh-caps", "-all"]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with one.handed_over() as given:
        words = [sys.executable, "-c", PROGRAM, *map(str, given)]
        command = ["nsenter", f"--net=/run/netns/{node.name}", "--", *drop, *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False, pass_fds=given
        )
    assert (done.stdout, done.returncode) == (says, 0), done.stderr
    assert shown(node) == ""
    assert "eth0" not in one.place.ip("link")
