"""A control plane whose etcd is given back a backup, under all roles: nobody stays in the world that was lost.

The agents, the operator and the guard run as their users run them. What each of them holds must become what the API
server holds, whether they saw the history go back or it had overtaken them meanwhile; and a guard that does not know
this world yet refuses.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import crds
from netloom_e2e.agents import Agents
from netloom_e2e.allocations import Cluster
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.guard import Guard, Guards, guarding
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.mesh import facts, routes
from netloom_e2e.operators import RBAC, USER, Operator, Operators, running
from netloom_e2e.processes import Process

NODES = 100
SECONDS = 180.0
"""Within which all caches must be the server's truth. It takes some seconds; what is slow here is the machine."""
POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
NETLOOM_NODES = "/apis/netloom.dev/v1alpha1/netloomnodes"
LISTS, PROOFS, STARTS = "netloom_watch_lists_total", "netloom_watch_proofs_total", "netloom_watch_starts_total"
ERRORS = "netloom_watch_errors_total"
WATCHES = 12
"""Of a guard for all kinds, with the definitions of those that may be missing, and its certificates' objects."""


@dataclass
class World:
    """One control plane, and all roles on it."""

    cluster: Cluster
    agents: Agents
    operators: Operators
    guards: Guards
    operator: Operator
    guard: Guard

    @property
    def plane(self) -> ControlPlane:
        return self.cluster.plane

    def register(self, names: list[str]) -> None:
        """As kubelets do."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._register, names))

    def _register(self, name: str) -> None:
        machine = self.agents.lab.nodes.get(name)
        index = int(name.partition("-")[2] or 0)
        address = machine.address if machine else f"192.0.{2 + index // 250}.{1 + index % 250}"
        self.cluster.add_node(name, address=address)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for agent in self.agents.agents.values():
            agent.send_signal(number)
        for process in self._processes():
            process.send(number)

    def _processes(self) -> list[Process]:
        return [self.operator.process, self.guard.process]

    def restart(self) -> None:
        """All roles are killed and started again."""
        self.operator.kill()
        self.guards.kill()
        self.start()
        for name, machine in self.agents.lab.nodes.items():
            if name in self.agents.agents:
                self.agents.agents[name].kill()
                self.agents.agents[name].wait()
            self.agents.start(machine)

    def start(self) -> None:
        self.operator = self.operators.start()
        self.guard = self.guards.start()

    def whole(self) -> None:
        """Waits until every role's cache is what the API server holds."""
        wait_for("every Node has its NetloomNode, and no other", self.cluster.served, deadline=SECONDS)
        wait_for("nodes and ledgers agree", self.cluster.agrees, deadline=SECONDS)
        held = self.cluster.check()
        for name, machine in self.agents.lab.nodes.items():
            wanted = {str(cidr) for other, cidrs in held.items() if other != name for cidr in cidrs}

            def same(machine: Any = machine, wanted: set[str] = wanted) -> bool:
                said = facts(machine)
                return bool(said.get("inSync")) and {line.split()[0] for line in routes(machine)} == wanted

            wait_for(f"{name} has routes to all nodes and no others", same, deadline=SECONDS)
        for role in (self.operator, self.guard):
            wait_for(f"{role.process.name} is ready", lambda role=role: role.approves("/readyz"), deadline=SECONDS)  # type: ignore[misc]

    def refusal(self) -> str:
        """What is said to the removal of a CIDR that a node holds; "" where it is allowed."""
        try:
            spec = {"spec": {"ipv4": {"cidrs": ["10.65.0.0/16"]}}}
            self.plane.client.request("PATCH", f"{POOLS}/p?dryRun=All", spec)
        except ApiFailure as failure:
            return str(failure)
        return ""

    def delete_pool(self) -> None:
        """Once the guard has heard that nobody holds a block of it: until then it refuses, as it must."""

        def gone() -> bool:
            try:
                self.plane.client.request("DELETE", f"{POOLS}/p")
            except ApiFailure as failure:
                return failure.status == HTTPStatus.NOT_FOUND
            return True

        wait_for("the guard lets the pool go", gone, deadline=60)


@pytest.fixture
def world(roles_running: World) -> Iterator[World]:
    """With the nodes of two agents, which have their NetloomNodes; emptied afterwards."""
    roles_running.register(["n1", "n2"])
    wait_for("n1 and n2 have their NetloomNodes", roles_running.cluster.served, deadline=60)
    yield roles_running
    hold(roles_running)
    roles_running.delete_pool()
    roles_running.cluster.remove_nodes(*roles_running.cluster.nodes())
    wait_for("the nodes are gone", lambda: not roles_running.cluster.held(), deadline=60)


@pytest.fixture(scope="module")
def roles_running(control_plane_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ControlPlane(hosts=[Lab.address]) as plane:
        crds.install(plane)
        plane.kubectl("apply", "--server-side", "--filename", RBAC)
        with (
            Lab(f"nlr{os.getpid() % 10000}") as lab,
            gateway(lab, plane.port),
            guarding(plane, operator_users=(USER,)) as guards,
            running(plane) as operators,
        ):
            agents = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
            cluster = Cluster(plane)
            cluster.create_network(ipv4PodCIDRList=["10.42.0.0/16"], ipv4MaskSize=24)
            made = World(cluster, agents, operators, guards, operators.start(), guards.running[0])
            for name in ("n1", "n2"):
                agents.start(lab.add_node(name))
            try:
                yield made
            finally:
                agents.stop()


def pool(*cidrs: str) -> dict[str, Any]:
    return {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomIPPool",
        "metadata": {"name": "p"},
        "spec": {"ipv4": {"cidrs": list(cidrs), "maskSize": 27}},
    }


def test_every_restart_of_the_api_server_costs_the_same(world: World) -> None:
    """Five in a row: none of them finds the roles waiting for what the ones before it cost."""
    world.whole()
    errors: dict[Operator, list[float]] = {role: [] for role in roles(world)}
    for _ in range(5):
        before = {role: (role.metric(ERRORS), asked(role)) for role in roles(world)}
        world.plane.kill_apiserver()
        for role in roles(world):
            wait_for(f"{role.process.name} misses the API server", lambda role=role: not role.approves("/readyz"))  # type: ignore[misc]
        world.plane.start_apiserver()
        for role in roles(world):
            ready = lambda role=role: role.approves("/readyz")  # noqa: E731
            wait_for(f"{role.process.name} is ready again", ready, deadline=20)
            errors[role].append(role.metric(ERRORS) - before[role][0])
            assert asked(role) - before[role][1] <= WATCHES * 12
    for role, counts in errors.items():
        assert max(counts) <= WATCHES * 10, f"{role.process.name}: {counts}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("overtaken", [False, True], ids=["older", "overtaken"])
def test_nobody_stays_in_the_world_that_was_lost(world: World, overtaken: bool) -> None:
    client = world.plane.client
    world.register(["ghost"])
    client.request("POST", POOLS, pool("10.64.0.0/16", "10.65.0.0/16"))
    hold(world, {"pool": "p", "cidrs": ["10.64.0.0/27"]})
    world.whole()
    backup = world.plane.backup()
    hold(world)
    world.cluster.remove_nodes("ghost")
    joined = [f"joined-{number}" for number in range(NODES)]
    world.register(joined)
    world.delete_pool()
    world.whole()
    requests = {role: asked(role) for role in roles(world)}
    before = version(world)

    world.plane.stop_for_restore(backup)
    for role in roles(world):
        wait_for(f"{role.process.name} misses the API server", lambda role=role: not role.approves("/readyz"))  # type: ignore[misc]
    if overtaken:
        world.freeze()
    world.plane.start_restored()
    assert version(world) < before
    # The kubelets that are in no backup register again, and one that is in it left long ago.
    world.register(joined)
    world.cluster.remove_nodes("ghost")
    if overtaken:
        push(world, before)
        world.thaw()
    assert world.refusal(), "by what the guard knew of the lost world, nobody holds it"
    world.whole()
    assert "10.64.0.0/16 cannot be removed" in world.refusal()
    for role in roles(world):
        assert asked(role) - requests[role] <= WATCHES * 8, f"{role.process.name} asked too much"

    world.restart()
    world.whole()
    assert "10.64.0.0/16 cannot be removed" in world.refusal()


def hold(world: World, *allocated: dict[str, Any]) -> None:
    """Node n2 is given these by the operator."""
    operator = world.plane.client_of(USER, ("system:masters",))
    operator.request("PATCH", f"{NETLOOM_NODES}/n2", {"spec": {"ipam": {"pools": {"allocated": allocated}}}})


def roles(world: World) -> tuple[Operator, Guard]:
    return world.operator, world.guard


def asked(role: Operator) -> float:
    """The requests of its watches."""
    return sum(role.metric(each) for each in (LISTS, PROOFS, STARTS))


def version(world: World) -> int:
    return int(world.plane.client.request("GET", "/api/v1/nodes?limit=1")["metadata"]["resourceVersion"])


def push(world: World, beyond: int) -> None:
    """Writes until the restored history has passed the version that the lost one had come to."""
    client = world.plane.client
    while (now := version(world)) <= beyond:
        for number in range(beyond - now + 1):
            client.request("PATCH", "/api/v1/namespaces/default", {"metadata": {"labels": {"pushed": str(number)}}})
