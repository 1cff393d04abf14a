"""Three nodes, a pod each and one more, on a switch: once for all tests, as everything takes 20 times longer here.

What adds pods is real, the plugin that container runtimes call included.

Run by `e2e/tests/test_other_kernels.py`, in a virtual machine. Where the machine's own kernel has Geneve,
`pytest e2e/guest` runs them there.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from guest.reporting import result_line
from guest.server import Agent, Server, routing_of
from guest.wiring import wired
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom_e2e.lab import Lab
from netloom_e2e.sandboxes import Runtime
from tests.kernel import meshes

meshes.DEADLINE_SECONDS = 300.0
meshes.REST = 9.0  # what looks, and what is waited for, share one emulated processor
NUMBERS = (1, 2, 3)
MTU = 1450

Joined = Callable[[Encapsulation], AbstractAsyncContextManager[Server]]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if line := result_line(report):
        print(f"\n{line}", flush=True)


def cidrs_of(number: int) -> tuple[str, ...]:
    """Two per family."""
    return (f"10.{number}.0.0/24", f"fd00:{number}::/64", f"10.10{number}.0.0/25", f"fd00:10{number}::/72")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Nodes n1, n2 and n3. Where other work keeps the guest waiting, its kernel answers ARP too late, and loses
    all packets from one node to another for seconds, on paths that nobody changed."""
    with Lab(f"nlg{os.getpid() % 10000}") as lab:
        for number in NUMBERS:
            lab.add_node(f"n{number}")
        lab.introduce_nodes()
        yield lab


@pytest.fixture(scope="session")
def runtimes(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Runtime]]:
    """What adds pods on each node, by the real plugin."""
    folder = tmp_path_factory.mktemp("pods")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(wired(machine, cidrs_of(number), MTU, folder / name))
            for number, (name, machine) in enumerate(lab.nodes.items(), 1)
        }


@pytest.fixture(scope="session", autouse=True)
def pods(lab: Lab, runtimes: dict[str, Runtime]) -> None:
    """A pod `a` on each node, by the plugin; and on n3 a pod `b` in its second CIDRs, which no pod gets while the first
    have room."""
    for name, runtime in runtimes.items():
        lab.nodes[name].pods["a"] = runtime.run("a").pod
    lab.nodes["n3"].add_pod("b", "10.103.0.2", "fd00:103::2", mtu=MTU)


@pytest.fixture(scope="session")
def joined(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Joined:
    """Agents on all nodes, whose network asks for this tunnel; what they made is removed afterwards."""

    @contextlib.asynccontextmanager
    async def join(encapsulation: Encapsulation) -> AsyncIterator[Server]:
        folder = tmp_path_factory.mktemp("run")
        server = Server()
        server.edit(**routing_of(encapsulation))
        for number, (name, machine) in enumerate(lab.nodes.items(), 1):
            server.add(Agent(name, machine, server, Path(folder)), cidrs_of(number))
        server.sync()
        try:
            async with AsyncExitStack() as stack:
                for agent in server.agents.values():
                    await stack.enter_async_context(agent.running())
                yield server
        finally:
            for agent in server.agents.values():
                for device in agent.devices():
                    agent.namespace.ip(f"link delete {device}")

    return join
