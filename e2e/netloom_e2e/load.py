"""Creates many objects as fast as a minimal asyncio client can: the yardstick of benches, and their load.

A process of its own: `python -m netloom_e2e.load --kind netloomnodes ...` encodes all bodies, says `ready`, waits for a
line on its standard input, sends them and prints what it saw as one line of JSON. Nothing is done per object but one
POST with uvloop and aiohttp and the reading of its answer, so nothing in Python creates objects much faster with as
many connections. The bodies are the product's own, byte for byte but for names and addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
import uvloop
import yaml

from netloom.api.core import NODES, Node, NodeAddress, NodeStatus
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedEncapsulation
from netloom.cidr import Cidr
from netloom.ipam.plan import Block
from netloom.runtime.wire import encode
from netloom_reconcilers.cluster.allocation import node_objects

PATHS = {"nodes": NODES.path(), "netloomnodes": NETLOOM_NODES.path(), "peers": NETLOOM_NODES.path()}
"""By kind; `peers` are NetloomNodes whose agents have announced themselves."""
ANNOUNCED = (AcceptedEncapsulation(protocol="vxlan", port=8472, sending=True),)
UNDERLAY = int(ipaddress.IPv4Address("172.16.0.1"))
PODS = int(ipaddress.IPv4Address("10.0.0.0"))
CLUSTER_POOL = "cluster-pool"
_POOLS = {CLUSTER_POOL: "", "multi-pool": "default"}
"""By IPAM mode, the pool of a node's first block."""
_MASK = 24
_REQUEST_SECONDS = 60.0
_END_SECONDS = 300.0
_FAILURES_SHOWN = 3


class Burst(NamedTuple):
    """What a client saw: `began` and `ended` in seconds of the wall clock, which other processes share."""

    sent: int
    failures: int
    began: float
    ended: float
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def per_second(self) -> float:
        return self.sent / self.seconds


class Load:
    """A client process that is ready and waits for `go`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._say()  # "ready"

    def go(self) -> None:
        """Sends all, in the background."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Burst:
        """Waits until all are sent. Raises RuntimeError if any was refused."""
        burst = Burst(**json.loads(self._say()))
        if burst.failures:
            raise RuntimeError(f"{burst.failures} of {burst.sent} objects could not be created")
        return burst

    def _say(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with status {self._process.wait(_END_SECONDS)}")
        return line


@contextmanager
def prepared(
    kubeconfig: Path, kind: str, count: int, prefix: str, connections: int, mode: str = CLUSTER_POOL
) -> Iterator[Load]:
    """A client that will create `count` objects named `prefix`00000 and up, NetloomNodes as of the IPAM mode; killed if
    it is not done at the end."""
    command = [sys.executable, "-m", "netloom_e2e.load", f"--kubeconfig={kubeconfig}", f"--kind={kind}"]
    command += [f"--count={count}", f"--prefix={prefix}", f"--connections={connections}", f"--mode={mode}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Load(process)
        finally:
            process.kill()


def node(prefix: str, number: int) -> Node:
    """The Node as a kubelet would register it, as far as Netloom looks at it."""
    name = f"{prefix}{number:05}"
    address = NodeAddress(type="InternalIP", address=str(ipaddress.IPv4Address(UNDERLAY + number)))
    uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return Node(metadata=ObjectMeta(name=name, uid=uid), status=NodeStatus(addresses=(address,)))


def body(kind: str, prefix: str, number: int, mode: str = CLUSTER_POOL) -> bytes:
    """What is sent for one object. A NetloomNode is what the operator would make of the Node of that name in an IPAM
    mode; of kind `peers`, with what its agent would have added."""
    made = node(prefix, number)
    if kind == "nodes":
        bare = Node(metadata=ObjectMeta(name=made.metadata.name), status=made.status)
        return encode(NODES, bare)
    cidr = Cidr(4, PODS + (number << (32 - _MASK)), _MASK)
    block = Block(_POOLS[mode], cidr)
    built = node_objects.built(made, mode, (block,), node_objects.addresses_of(made))
    if kind == "peers":
        built = msgspec.structs.replace(built, spec=msgspec.structs.replace(built.spec, encapsulations=ANNOUNCED))
    return encode(NETLOOM_NODES, built)


async def _create(kubeconfig: Path, path: str, bodies: Sequence[bytes], connections: int) -> Burst:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
    tls.load_cert_chain(user["client-certificate"], user["client-key"])
    waiting = iter(bodies)
    failures = 0
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        timeout=timeout,
    ) as session:
        url = cluster["server"] + path

        async def send() -> None:
            nonlocal failures
            for each in waiting:
                async with session.post(url, data=each) as response:
                    text = await response.read()
                    if response.status != 201:
                        failures += 1
                        if failures <= _FAILURES_SHOWN:
                            print(f"HTTP {response.status}: {text[:300]!r}", file=sys.stderr)

        began, cpu = time.time(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(send())
        return Burst(len(bodies), failures, began, time.time(), time.process_time() - cpu)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Creates many objects as fast as possible.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--kind", choices=sorted(PATHS), required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--mode", choices=sorted(_POOLS), default=CLUSTER_POOL)
    options = parser.parse_args()
    bodies = [body(options.kind, options.prefix, number, options.mode) for number in range(options.count)]
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    creating = _create(options.kubeconfig, PATHS[options.kind], bodies, options.connections)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(creating)._asdict()), flush=True)


if __name__ == "__main__":
    main()
