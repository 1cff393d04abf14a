"""Pods that come and go on nodes that draw on pools, while operator and agents are killed and pools edited; and an
observer that knows nothing of what was asked: it reads the API server and the kernel alone.

Nodes are network namespaces with a real agent each; pods are namespaces with the addresses that the agent's socket
gave, as the CNI plugin would make them. A pod that gets no address in time is not counted: its pool may be full.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netloom_e2e.addresses import ADDRESSES, AddressSocket
from netloom_e2e.agents import Agents
from netloom_e2e.allocations import Cluster
from netloom_e2e.client import ApiFailure
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.operators import Operator, Operators

PODS = "/api/v1/namespaces/default/pods"
POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
CIDRS = {
    "default": (["10.60.0.0/25"], ["10.63.0.0/26"]),
    "blue": (["10.61.0.0/26"], ["10.64.0.0/27"]),
    "green": (["10.62.0.0/26"], ["10.65.0.0/27"]),
}
"""Of each pool: those that stay, and those that a user appends and takes out."""
MOST_PODS = 24
"""Of one node."""
HEALED_SECONDS = 30.0
"""How long a pod's address may be in no block of its node: who edits by hand is answered by then."""
LAUNCH_SECONDS = 5.0
GIVE_BACK_SECONDS = 3


@dataclass(frozen=True)
class Running:
    """A pod."""

    node: str
    name: str
    container: str
    addresses: tuple[str, ...]


@dataclass
class Observer:
    """What is wrong, by what the API server and the kernel say at the same moment."""

    cluster: Cluster
    lab: Lab
    duplicates: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    looks: int = 0
    _homeless: dict[tuple[str, str], float] = field(default_factory=dict)

    def look(self) -> None:
        """Once."""
        self.looks += 1
        blocks: dict[str, list[ipaddress.IPv4Network]] = {}
        with contextlib.suppress(ApiFailure, OSError):
            held = self.cluster.held()
            flat = sorted((cidr, name) for name, cidrs in held.items() for cidr in cidrs if cidr.version == 4)
            for (one, name), (other, another) in itertools.pairwise(flat):
                if one.overlaps(other):
                    self.duplicates.add(f"{name} holds {one}, {another} {other}")
            blocks = {name: [each for each in cidrs if each.version == 4] for name, cidrs in held.items()}
        who: dict[str, str] = {}
        homeless: dict[tuple[str, str], float] = {}
        for node, machine in self.lab.nodes.items():
            for pod, address in pods_of(machine):
                if address in who:
                    self.duplicates.add(f"{address} is of {who[address]} and {pod}")
                who[address] = pod
                if blocks and not any(ipaddress.ip_address(address) in cidr for cidr in blocks.get(node, ())):
                    homeless[pod, address] = self._homeless.get((pod, address), time.monotonic())
        self._homeless = homeless
        for (pod, address), since in homeless.items():
            if time.monotonic() - since > HEALED_SECONDS:
                self.lost.add(f"{address} of {pod} is in no block of its node")


def pods_of(machine: Machine) -> Iterator[tuple[str, str]]:
    """Pods with their IPv4 addresses, as the kernel has them."""
    for name in list(machine.pods):
        with contextlib.suppress(RuntimeError):
            for device in json.loads(machine.pods[name].ip("-j", "-4", "addr", "show", "dev", "eth0")):
                yield from ((machine.pods[name].name, each["local"]) for each in device["addr_info"])


@dataclass
class Soak:
    """See the module. `did`: how often what was done."""

    cluster: Cluster
    operators: Operators
    agents: Agents
    rng: random.Random
    operator: Operator
    observer: Observer
    running: dict[str, Running] = field(default_factory=dict)
    gone: list[Running] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _number: int = 0

    # What happens

    def step(self) -> None:
        """One of the things that can happen."""
        chances: list[tuple[int, Callable[[], None]]] = [
            (40, self.launch),
            (30, self.end),
            (8, self.ask_again),
            (8, self.release_again),
            (2, self.kill_agent),
            (2, self.kill_operator),
            (3, self.edit_pool),
            (1, self.edit_by_hand),
        ]
        weights = [weight for weight, _ in chances]
        (_, what) = self.rng.choices(chances, weights)[0]
        what()

    def launch(self) -> None:
        """A pod is scheduled, and gets addresses."""
        machine = self.rng.choice(list(self.agents.lab.nodes.values()))
        if len(machine.pods) >= MOST_PODS:
            return
        self._number += 1
        name, pool = f"p{self._number}", self.rng.choice(["", "", "blue", "green"])
        annotations = {"netloom.dev/ip-pool": pool} if pool else {}
        spec = {"nodeName": machine.node, "containers": [{"name": "c", "image": "none"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": spec}
        self.cluster.client.request("POST", PODS, body)
        container = f"c{self._number}"
        status, said = self._socket(
            machine,
            "POST",
            ADDRESSES,
            {"name": f"default/{name}", "container": container, "waitSeconds": LAUNCH_SECONDS},
        )
        if status != 200:
            self.did[f"not launched: {said.get('reason', status)}"] += 1
            self._socket(machine, "DELETE", f"{ADDRESSES}?name=default/{name}&container={container}")
            self._delete(name)
            return
        addresses = tuple(each["address"] for each in said["addresses"])
        machine.add_pod(name, *addresses, mtu=1400)
        ips = [{"ip": address} for address in addresses]
        phase = {"phase": "Running", "podIP": addresses[0], "podIPs": ips}
        self.cluster.client.request("PATCH", f"{PODS}/{name}/status", {"status": phase})
        self.running[name] = Running(machine.node, name, container, addresses)
        self.did["launched"] += 1

    def end(self) -> None:
        """A pod ends, as a kubelet ends it: first its sandbox, then its object."""
        if not self.running:
            return
        pod = self.running.pop(self.rng.choice(sorted(self.running)))
        machine = self.agents.lab.nodes[pod.node]
        machine.remove_pod(pod.name)
        for _ in range(120):
            if self._release(pod) == 200:
                break
            time.sleep(0.5)
        else:
            self.wrong.append(f"{pod.name} cannot be released")
        self._delete(pod.name)
        self.gone = [*self.gone[-30:], pod]
        self.did["ended"] += 1

    def ask_again(self) -> None:
        """A CNI ADD that is repeated gives the same."""
        if not self.running:
            return
        pod = self.running[self.rng.choice(sorted(self.running))]
        body = {"name": f"default/{pod.name}", "container": pod.container, "waitSeconds": 1.0}
        status, said = self._socket(self.agents.lab.nodes[pod.node], "POST", ADDRESSES, body)
        if status == 200 and {each["address"] for each in said["addresses"]} != set(pod.addresses):
            self.wrong.append(f"{pod.name} had {pod.addresses}, and was given {said['addresses']}")
        self.did["asked again"] += status == 200

    def release_again(self) -> None:
        """A CNI DEL that comes twice takes nothing from anybody: the observer would see it."""
        if self.gone and self._release(self.rng.choice(self.gone)) == 200:
            self.did["released again"] += 1

    def kill_agent(self) -> None:
        """SIGKILL, and another one after a moment."""
        name = self.rng.choice(list(self.agents.lab.nodes))
        agent = self.agents.agents[name]
        agent.kill()
        agent.wait()
        time.sleep(self.rng.choice([0.0, 0.5]))
        start_agent(self.agents, self.agents.lab.nodes[name])
        self.did["agents killed"] += 1

    def kill_operator(self) -> None:
        """The same of the operator; sometimes the old one is only frozen, and runs on beside its successor."""
        former = self.operator
        if frozen := self.rng.random() < 0.3:
            former.freeze()
        else:
            former.kill()
        self.operator = self.operators.start()
        if frozen:
            time.sleep(1.0)
            former.thaw()
            time.sleep(1.0)
            former.kill()
        self.did["operators killed"] += 1

    def edit_pool(self) -> None:
        """A CIDR more or less, draining, or the pool made anew."""
        name = self.rng.choice(list(CIDRS))
        base, more = CIDRS[name]
        how = self.rng.choice(["append", "take out", "drain", "run", "anew"])
        ipv4 = {"cidrs": base if how == "take out" else [*base, *more], "maskSize": 29}
        spec: dict[str, Any] = {"ipv4": ipv4, "draining": how == "drain", "preAllocation": 2}
        if how == "anew" and name != "default":
            self.cluster.client.request("DELETE", f"{POOLS}/{name}")
            make_pool(self.cluster, name)
        else:
            self.cluster.client.request("PATCH", f"{POOLS}/{name}", {"spec": spec})
        self.did[f"pool: {how}"] += 1

    def edit_by_hand(self) -> None:
        """Somebody takes a block out of a NetloomNode that is in use."""
        name = self.rng.choice(list(self.agents.lab.nodes))
        path = f"/apis/netloom.dev/v1alpha1/netloomnodes/{name}"
        allocated = self.cluster.netloom_node(name)["spec"]["ipam"].get("pools", {}).get("allocated", [])
        others = [each for each in allocated if each["pool"] != "default"]
        if others:
            fewer = [each for each in allocated if each is not self.rng.choice(others)]
            with contextlib.suppress(ApiFailure):
                self.cluster.client.request("PATCH", path, {"spec": {"ipam": {"pools": {"allocated": fewer}}}})
            self.did["edited by hand"] += 1

    # The end

    def leaks(self, *, whole: bool = True) -> list[str]:
        """When all pods have ended: what did not come back. whole: also blocks, and entries in ledgers. That takes
        minutes, as addresses rest, and the marks of an operator that was killed are waited out."""
        for name in CIDRS:
            base, more = CIDRS[name]
            spec = {"ipv4": {"cidrs": [*base, *more], "maskSize": 29}, "draining": False}
            self.cluster.client.request("PATCH", f"{POOLS}/{name}", {"spec": spec})
        while self.running:
            self.end()
        found: list[str] = []

        def at_rest() -> bool:
            found[:] = self._left(whole)
            return not found

        with contextlib.suppress(TimeoutError):
            wait_for("all is given back", at_rest, deadline=240, every=1.0)
        return found

    def _left(self, whole: bool) -> list[str]:
        found: list[str] = []
        for machine in self.agents.lab.nodes.values():
            status, said = self._socket(machine, "GET", ADDRESSES)
            if status != 200:
                return [f"{machine.node}: its agent answers {status}"]
            found += [f"{machine.node}: {each['name']} has {each['addresses']}" for each in said["assignments"]]
            blocks = self.cluster.of_pools(machine.node) if whole else {}
            found += [f"{machine.node} holds {cidrs} of {pool}" for pool, cidrs in blocks.items() if pool != "default"]
            if len(blocks.get("default", ())) > 1:
                found.append(f"{machine.node} holds {blocks['default']} of the default pool")
        if not whole:
            return found
        entered = {str(cidr): entry.node for cidr, entry in self.cluster.ledger().items()}
        held = {str(cidr): name for name, cidrs in self.cluster.held().items() for cidr in cidrs}
        if entered != held:
            found.append(f"ledgers say {entered}, NetloomNodes {held}")
        return found

    # The socket

    def _release(self, pod: Running) -> int:
        path = f"{ADDRESSES}?name=default/{pod.name}&container={pod.container}"
        path += "".join(f"&address={address}" for address in pod.addresses)
        return self._socket(self.agents.lab.nodes[pod.node], "DELETE", path)[0]

    def _socket(self, machine: Machine, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status 0 where nobody answers."""
        try:
            return AddressSocket(Path(self.agents.run_dir(machine)) / "agent.sock").ask(method, path, body)
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}

    def _delete(self, name: str) -> None:
        self.cluster.client.request("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0})


def start_agent(agents: Agents, machine: Machine) -> None:
    """With blocks that are given back soon."""
    agents.start(machine, flags=["--give-back-after", str(GIVE_BACK_SECONDS)])


def make_pool(cluster: Cluster, name: str) -> None:
    """With all its CIDRs."""
    base, more = CIDRS[name]
    cluster.create_pool(name, *base, *more, mask=29, preAllocation=2)


@contextlib.contextmanager
def soak(
    cluster: Cluster, operators: Operators, folder: Path, prefix: str, seed: int, nodes: int = 3
) -> Iterator[Soak]:
    """A cluster of so many nodes with all that a soak needs, taken away at the end."""
    plane = cluster.plane
    with Lab(prefix) as lab, gateway(lab, plane.port):
        agents = Agents(lab, plane, folder, user="netloom-agent")
        cluster.create_network(mode="multi-pool")
        for name in CIDRS:
            make_pool(cluster, name)
        operator = operators.start()
        for number in range(nodes):
            machine = lab.add_node(f"n{number + 1}")
            cluster.add_node(machine.node, address=machine.underlay[0])
        wait_for("each node to have a block", cluster.served, deadline=30)
        for machine in lab.nodes.values():
            start_agent(agents, machine)
        try:
            agents.in_sync(*lab.nodes.values(), peers=nodes - 1)
            yield Soak(cluster, operators, agents, random.Random(seed), operator, Observer(cluster, lab))
        finally:
            agents.stop()
            for pod in plane.client.request("GET", PODS)["items"]:
                plane.client.request("DELETE", f"{PODS}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})


def live(soaked: Soak, seconds: float, every: float = 0.1) -> None:
    """Things happen for so long, and are watched."""
    until = time.monotonic() + seconds
    look_at = time.monotonic()
    while time.monotonic() < until:
        soaked.step()
        if time.monotonic() >= look_at:
            soaked.observer.look()
            look_at = time.monotonic() + 1.0
        time.sleep(every)
    soaked.observer.look()
