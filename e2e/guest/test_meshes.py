"""A mesh over each tunnel: every pod reaches every pod, a restart writes nothing, drift is repaired."""

import asyncio
import hashlib
import random
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from guest.conftest import MTU, Joined
from guest.server import Agent, Server
from netloom.kernel.endpoints.endpoint import device_of
from netloom.kernel.mesh.encapsulation import GENEVE, VXLAN, Encapsulation
from netloom_e2e.lab import Lab
from netloom_e2e.sandboxes import Runtime
from tests.kernel.meshes import becomes, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAYS = {"VXLAN": VXLAN, "Geneve": GENEVE}
"""Another port is another name of the device: `test_changes` sends by one."""

OWNED = """\
link {device} up mtu 1450 address 72:d7:7b:37:5c:ee {protocol} external dstport {port}
address 10.1.0.0/32
address 10.101.0.0/32
address fd00:101::/128
address fd00:1::/128
address fe80::70d7:7bff:fe37:5cee/64
neighbour 172.31.1.2 lladdr 06:ae:f7:41:e8:0b PERMANENT
neighbour 172.31.1.3 lladdr 8a:de:68:9b:aa:0a PERMANENT
neighbour fe80::4ae:f7ff:fe41:e80b lladdr 06:ae:f7:41:e8:0b PERMANENT
neighbour fe80::88de:68ff:fe9b:aa0a lladdr 8a:de:68:9b:aa:0a PERMANENT
nexthop id 1847324868 encap ip id 1 dst 172.31.1.3 ttl 64 via 172.31.1.3 dev {device} scope link proto 158 onlink
nexthop id 1847378002 encap ip id 1 dst 172.31.1.2 ttl 64 via 172.31.1.2 dev {device} scope link proto 158 onlink
nexthop id 1857165063 encap ip id 1 dst 172.31.1.2 ttl 64 via fe80::4ae:f7ff:fe41:e80b dev {device} \
scope link proto 158 onlink
nexthop id 1857365905 encap ip id 1 dst 172.31.1.3 ttl 64 via fe80::88de:68ff:fe9b:aa0a dev {device} \
scope link proto 158 onlink
route 10.2.0.0/24 nhid 1847378002
route 10.3.0.0/24 nhid 1847324868
route 10.102.0.0/25 nhid 1847378002
route 10.103.0.0/25 nhid 1847324868
route fd00:2::/64 nhid 1857165063
route fd00:3::/64 nhid 1857365905
route fd00:102::/72 nhid 1857165063
route fd00:103::/72 nhid 1857365905"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS.values(), ids=WAYS.keys())
async def encapsulation(request: pytest.FixtureRequest) -> Encapsulation:
    found: Encapsulation = request.param
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(joined: Joined, encapsulation: Encapsulation) -> AsyncIterator[Server]:
    async with joined(encapsulation) as server:
        await server.settled(encapsulation)
        yield server


async def test_what_is_owned_in_the_kernel(mesh: Server, encapsulation: Encapsulation) -> None:
    own = ("link netloom_p", "10.1.0.2 ", "fd00:1::2 ")  # of the pod
    owned = [line for line in mesh.agents["n1"].namespace.owned().splitlines() if not any(each in line for each in own)]
    leading = "\n".join(line for line in owned if "unreachable" not in line)
    holes = [line.split()[2] for line in owned if "unreachable" in line]
    assert leading == OWNED.format(
        device=encapsulation.device, protocol=encapsulation.protocol, port=encapsulation.port
    )
    assert holes == ["10.1.0.0/24", "10.101.0.0/25", "fd00:1::/64", "fd00:101::/72"]


async def test_every_pod_reaches_every_pod_with_full_packets(mesh: Server, lab: Lab) -> None:
    pods = [(node, pod) for node, machine in lab.nodes.items() for pod in machine.pods.values()]
    for node, source in pods:
        for other, target in pods:
            for version, headers in ((4, 28), (6, 48)):
                if other != node:
                    ping = source.ping(target.of(version), payload=MTU - headers, wait=5)
                    assert ping.received == 1, f"{source.name} -> {target.name}, IPv{version}"
    too_large = lab.nodes["n1"].pods["a"].ping("10.2.0.2", payload=MTU - 27, wait=1)
    assert too_large.received == 0


async def test_a_restart_writes_nothing(mesh: Server) -> None:
    running = mesh.agents["n1"]
    said = dict(mesh.objects)
    again = Agent("n1", running.machine, mesh, running.folder)
    mesh.fill(again)
    async with again.running():
        await eventually(lambda: again.tunnels.applied and again.senders.applied)
        assert again.in_sync
        assert again.plane.stats == {}
    assert mesh.objects == said


DRIFT = {
    "details": (
        "route delete 10.103.0.0/25",
        "neighbour flush dev {device} nud permanent",
        "link set {device} mtu 1300",
    ),
    "nexthops": ("nexthop flush proto 158",),
    "device": ("link delete {device}",),
}


async def test_drift_is_repaired(mesh: Server, encapsulation: Encapsulation) -> None:
    agent = mesh.agents["n1"]
    before = agent.namespace.owned()
    for commands in DRIFT.values():
        for command in commands:
            agent.namespace.ip(command.format(device=encapsulation.device))
        await eventually(lambda: agent.plane.report.repaired > 0 and agent.in_sync)
        await becomes(agent.namespace.owned, before)


async def test_pods_that_a_runtime_adds_meanwhile(mesh: Server, lab: Lab, runtimes: dict[str, Runtime]) -> None:
    """They are reached through the tunnel at once, and leave nothing when they are deleted."""
    runtime, node = runtimes["n3"], mesh.agents["n3"].namespace
    before = node.owned()
    late = await asyncio.to_thread(runtime.run, "late")
    assert f"dev {device_of(late.container, 'eth0')}" in node.ip(f"route show {late.addresses[0]}")
    for version, headers in ((4, 28), (6, 48)):
        ping = lab.nodes["n1"].pods["a"].ping(late.pod.of(version), payload=MTU - headers, wait=5)
        assert ping.received == 1, f"IPv{version}"
    await asyncio.to_thread(runtime.end, late)
    await becomes(node.owned, before)


_RECEIVE = """
import hashlib, socket
listener = socket.create_server(("10.3.0.2", 7000))
print("ready", flush=True)
connection, _ = listener.accept()
digest, count = hashlib.sha256(), 0
while chunk := connection.recv(1 << 16):
    digest.update(chunk)
    count += len(chunk)
print(count, digest.hexdigest(), flush=True)
"""
_SEND = """
import random, socket
with socket.create_connection(("10.3.0.2", 7000)) as connection:
    connection.sendall(random.Random(7).randbytes(2 << 20))
"""


async def test_megabytes_of_tcp_arrive_as_they_were_sent(mesh: Server, lab: Lab) -> None:
    content = random.Random(7).randbytes(2 << 20)
    receiver = lab.nodes["n3"].pods["a"].popen([sys.executable, "-SEc", _RECEIVE], stdout=subprocess.PIPE)
    try:
        assert receiver.stdout
        assert receiver.stdout.readline() == "ready\n"
        lab.nodes["n1"].pods["a"].run(sys.executable, "-SEc", _SEND, timeout=60)
        assert receiver.stdout.readline() == f"{len(content)} {hashlib.sha256(content).hexdigest()}\n"
    finally:
        receiver.kill()
        receiver.communicate()
