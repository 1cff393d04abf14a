"""A cluster in a model: one API server, operators on it, and full control of what happens when.

Every request of an operator waits until the test lets the server execute it, and its answer until the test lets it
through. A request whose client gave up, or died, can still be executed for as long as the real one could. Caches get
their events when the test says so.
"""

import asyncio
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from netloom.api.core import NODES
from netloom.api.events import ObjectReference
from netloom.api.meta import Object, Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS, NetloomNode
from netloom.cidr import Address, Cidr
from netloom.runtime.client import Listing
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import ApiError, Unavailable
from netloom.runtime.store import Store
from netloom.runtime.wire import encode
from netloom_reconcilers.cluster.allocation import node_objects
from netloom_reconcilers.cluster.allocation.commit_queue import BatchPolicy
from netloom_reconcilers.cluster.allocation.incarnation import Stores, netloom_node_changed, node_changed, pool_changed
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange
from netloom_reconcilers.cluster.allocation.term import Allocation
from netloom_reconcilers.node.single_addresses import OutsideSupply
from tests.allocation.server import Event, Json, ModelServer, Request
from tests.allocation.virtual import VirtualClock, VirtualLoop

T = TypeVar("T", bound=Object)

CLIENT_SECONDS = 10.0
SERVER_SECONDS = 60.0
"""A request is executed before its client gave up plus this, or never."""

POLICY = BatchPolicy(workers=8, writers=3, batch=4, low_water=2, retry=(0.1, 2.0))

_RELEVANT: dict[str, Callable[[Any, Any], bool]] = {
    "netloomippools": pool_changed,
    "nodes": node_changed,
    "netloomnodes": netloom_node_changed,
}

Outcome = Literal["done", "lost", "refused", "unavailable"]


@dataclass(eq=False, repr=False)
class Pending:
    """A request on its way."""

    operator: "Process"
    request: Request
    sent: float
    answer: "asyncio.Future[Any]"
    executed: bool = False

    def __repr__(self) -> str:
        return f"<{self.operator.name}: {self.request}>"


class ModelApi:
    """What a process takes for its API client."""

    def __init__(self, operator: "Process") -> None:
        self._operator = operator
        # It stands: a condition told anew in another second is another write, and nothing could be replayed.
        self.clock = ServerClock(wall=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC))

    async def _ask(self, request: Request) -> Any:
        operator = self._operator
        if operator.dead:
            raise Unavailable(0, "Dead", "the process is gone")
        pending = Pending(operator, request, operator.world.clock.now, operator.loop.create_future())
        operator.world.pending.append(pending)
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                return await pending.answer
        except TimeoutError as error:
            raise Unavailable(0, "Timeout", f"{request}: no answer") from error

    async def get(self, res: Resource[T], name: str, namespace: str = "") -> T:
        return msgspec.convert(await self._ask(Request("get", res.plural, name)), res.type)

    async def list(self, res: Resource[T], *, field_selector: str = "") -> Listing[T]:
        answer = await self._ask(Request("list", res.plural))
        if field_selector:
            node = field_selector.removeprefix("spec.nodeName=")
            answer["items"] = [each for each in answer["items"] if each["spec"]["nodeName"] == node]
        objects = [msgspec.convert(each, res.type) for each in answer["items"]]
        return Listing(objects=objects, resource_version=answer["resourceVersion"])

    async def create(self, res: Resource[T], obj: T) -> T:
        request = Request("create", res.plural, obj.metadata.name, msgspec.json.decode(encode(res, obj)))
        return msgspec.convert(await self._ask(request), res.type)

    async def replace(self, res: Resource[T], obj: T, subresource: str = "") -> T:
        request = Request("replace", res.plural, obj.metadata.name, msgspec.json.decode(encode(res, obj)), subresource)
        return msgspec.convert(await self._ask(request), res.type)

    async def patch(
        self,
        res: Resource[T],
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        kind: Literal["merge", "apply"] = "merge",
        field_manager: str = "",
    ) -> T:
        body = msgspec.json.decode(msgspec.json.encode(patch))
        request = Request("patch", res.plural, name, body, subresource, kind, field_manager)
        return msgspec.convert(await self._ask(request), res.type)

    async def delete(
        self, res: Resource[T], name: str, *, namespace: str = "", uid: str = "", resource_version: str = ""
    ) -> None:
        await self._ask(Request("delete", res.plural, name, uid=uid, version=resource_version))


@dataclass
class Said:
    """A recorder of Events."""

    events: list[tuple[str, str, str, str]] = field(default_factory=list)

    def event(self, ref: ObjectReference, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.events.append((f"{ref.kind}/{ref.name}", type_, reason, message))

    def reasons(self, about: str) -> list[str]:
        return [reason for ref, _, reason, _ in self.events if ref == about]


class ModelServices:
    """What an operator knows of Services' addresses; see `ServiceRanges`."""

    def __init__(self, known: tuple[ServiceRange, ...]) -> None:
        self.known = known
        self.unreadable = ""
        self.on_change: Callable[[], None] = lambda: None

    async def answered(self) -> None:
        """At once."""

    async def run(self) -> None:
        await asyncio.Event().wait()


class Process:
    """With caches of its own. `frozen`: stopped by SIGSTOP; `dead`: by SIGKILL."""

    def __init__(self, world: "World", name: str, *stores: Store[Any]) -> None:
        self.world = world
        self.name = name
        self.frozen = False
        self.dead = False
        self.said = Said()
        self.loop = world.loop(world.clock)
        self._position = 0
        self._by_plural: dict[str, Store[Any]] = {store.resource.plural: store for store in stores}
        self.relist()
        self.task = self.loop.start(self.main())

    async def main(self) -> None:
        """What it does."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def runs(self) -> bool:
        return not self.dead and not self.frozen

    @property
    def behind(self) -> int:
        """Events that its caches have not seen."""
        return len(self.world.server.events) - self._position

    def run(self) -> None:
        """All it can do now."""
        if self.runs:
            self.loop.settle()
            if self.task.done():
                self.task.result()
                raise AssertionError(f"{self.name} ended")

    def see(self, count: int = 1 << 30, blind: str = "") -> None:
        """Its caches get the next events; those of the kind `blind` never learn of theirs."""
        events = self.world.server.events[self._position : self._position + count]
        self._position += len(events)
        for event in events:
            store = self._by_plural.get(event.plural)
            if store is None or event.plural == blind:
                continue
            obj = msgspec.convert(event.object, store.resource.type)
            if event.type == "DELETED":
                self.loop.call_soon(store.remove, obj.metadata.name, obj.metadata.resource_version)
            else:
                self.loop.call_soon(store.take, obj, _RELEVANT.get(event.plural))

    def relist(self) -> None:
        """Its watches broke, and begin anew with a list."""
        self._position = len(self.world.server.events)
        for plural, store in self._by_plural.items():
            listed = [msgspec.convert(each, store.resource.type) for each in self.world.server.all(plural).values()]
            self.loop.call_soon(store.replace, {each.metadata.name: each for each in listed}, _RELEVANT.get(plural))

    def bury(self) -> None:
        """Ends its tasks, after the test, without letting them do anything more."""
        self.dead = True
        self.frozen = False
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.settle()
        self.loop.close()


class Operator(Process):
    """One process of the operator."""

    def __init__(self, world: "World", name: str, policy: BatchPolicy) -> None:
        self.services = ModelServices(world.services)
        self.stores = Stores(Store(NETWORKS), Store(NODES), Store(NETLOOM_NODES), Store(POOLS))
        self._policy = policy
        super().__init__(
            world, name, self.stores.networks, self.stores.nodes, self.stores.netloom_nodes, self.stores.pools
        )

    async def main(self) -> None:
        self.allocation = Allocation(
            ModelApi(self),
            self.stores,
            self.said,
            incarnation=self.name,
            clock=self.loop.time,
            policy=self._policy,
            services=self.services,
        )
        await self.allocation.run()


class Agent(Process):
    """The agent of a node, as far as it gives single addresses to pods. These live on when it dies: `pods` is the
    machine's, address by pod."""

    def __init__(self, world: "World", name: str, node: str) -> None:
        self.node = node
        self.pods = world.pods.setdefault(node, {})
        self._networks, self._nodes = Store(NETWORKS), Store(NETLOOM_NODES)
        super().__init__(world, name, self._networks, self._nodes)

    async def main(self) -> None:
        self.singles = OutsideSupply(
            self.node,
            self._networks,
            self._nodes,
            ModelApi(self),
            used=lambda: {address: pod for pod, address in self.pods.items()},
            events=self.said,
            clock=self.loop.time,
        )
        await self.singles.controller.run()

    def begin(self, pod: str) -> bool:
        """A pod begins, with the first address that nobody uses; False where there is none."""
        free = [each for each in self.singles.supply if each not in self.pods.values()]
        if free:
            self.pods[pod] = free[0]
            self.loop.call_soon(self.singles.used_changed)
            self.world.server.written()
        return bool(free)

    def end(self, pod: str) -> None:
        """A pod ends."""
        del self.pods[pod]
        self.loop.call_soon(self.singles.used_changed)


class Server(Protocol):
    """What a world needs of its API server: `ModelServer`, or a real one in the end-to-end tests."""

    events: list[Event]
    executed: list[Request]
    written: Callable[[], None]

    def execute(self, request: Request) -> Any: ...

    def all(self, plural: str) -> dict[str, Json]: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class World:
    """See the module. `invariant` is checked after every write to the server."""

    def __init__(
        self,
        invariant: Callable[["World"], None] | None = None,
        server: Callable[[], Server] = ModelServer,
        loop: Callable[[VirtualClock], Any] = VirtualLoop,
    ) -> None:
        self.clock = VirtualClock()
        self.loop = loop
        self.server: Any = server()
        self.server.written = lambda: invariant(self) if invariant else None
        self.pending: list[Pending] = []
        self.delayed: list[Pending] = []
        self.operators: list[Operator] = []
        self.agents: list[Agent] = []
        self.pods: dict[str, dict[str, Address]] = {}
        """By node, the addresses of its pods."""
        self.services: tuple[ServiceRange, ...] = ()
        self._born = 0
        self._numbers: dict[str, int] = {}

    # Objects

    def apply_network(self, **cluster_pool: Any) -> None:
        """Creates or changes the NetloomNetwork, as a user does. Raises Invalid where a rule forbids it."""
        mode = cluster_pool.pop("mode", "cluster-pool")
        spec: Json = {"ipam": {"mode": mode, "clusterPool": cluster_pool}}
        if mode == "crd":
            spec["routing"] = {"mode": "native"}
        if "default" in self.server.all("netloomnetworks"):
            self.server.execute(Request("patch", "netloomnetworks", "default", {"spec": spec}, kind="merge"))
        else:
            body = {"metadata": {"name": "default"}, "spec": spec}
            self.server.execute(Request("create", "netloomnetworks", "default", body))

    def apply_pool(self, name: str, *cidrs: str, mask: int = 28, **spec: Any) -> None:
        """Creates or changes a NetloomIPPool, as a user does."""
        ipv4 = {"ipv4": {"cidrs": list(cidrs), "maskSize": mask}} if cidrs else {}
        if name in self.server.all("netloomippools"):
            self.edit("netloomippools", name, **ipv4, **spec)
        else:
            body = {"metadata": {"name": name}, "spec": {**ipv4, **spec}}
            self.server.execute(Request("create", "netloomippools", name, body))

    def ask(self, name: str, **needed: int) -> None:
        """The node's agent asks for so many IPv4 addresses of pools."""
        requested = [{"pool": pool, "needed": {"ipv4Addrs": count}} for pool, count in needed.items()]
        self.edit("netloomnodes", name, ipam={"pools": {"requested": requested}})

    def give_back(self, name: str, *cidrs: str) -> None:
        """The node's agent gives blocks up."""
        allocated = self.server.all("netloomnodes")[name]["spec"]["ipam"]["pools"]["allocated"]
        left = [{**each, "cidrs": [cidr for cidr in each["cidrs"] if cidr not in cidrs]} for each in allocated]
        kept = [each for each in left if each["cidrs"]]
        self.edit("netloomnodes", name, ipam={"pools": {"allocated": kept}})

    def blocks(self, name: str) -> dict[str, list[str]]:
        """What the NetloomNode holds of pools."""
        pools = self.server.all("netloomnodes")[name]["spec"].get("ipam", {}).get("pools", {})
        return {each["pool"]: each["cidrs"] for each in pools.get("allocated", ())}

    def give_services(self, *cidrs: str, source: str = "ServiceCIDR kubernetes") -> None:
        """Services get their addresses of these from now on, and all operators know."""
        self.services = tuple(ServiceRange(Cidr.parse(cidr), source) for cidr in cidrs)
        for operator in self.running:
            operator.services.known = self.services
            operator.loop.call_soon(operator.services.on_change)

    def join(
        self, name: str, *pod_cidrs: str, address: str | None = "", labels: Mapping[str, str] | None = None
    ) -> None:
        """A Node registers; `address` None: without one."""
        number = self._numbers.setdefault(name, len(self._numbers) + 256)
        ip = address or f"192.168.{number // 256}.{number % 256}"
        addresses = [{"type": "InternalIP", "address": ip}] if address is not None else []
        body = {
            "metadata": {"name": name, "labels": dict(labels or {})},
            "spec": {"podCIDRs": list(pod_cidrs)},
            "status": {"addresses": addresses},
        }
        self.server.execute(Request("create", "nodes", name, body))

    def label(self, name: str, **labels: str) -> None:
        """A user gives a Node these labels and no others; an underscore stands for the slash."""
        before = self.server.all("nodes")[name]["metadata"].get("labels", {})
        wanted = dict.fromkeys(before) | {key.replace("_", "/"): value for key, value in labels.items()}
        self.server.execute(Request("patch", "nodes", name, {"metadata": {"labels": wanted}}, kind="merge"))

    def run_pod(
        self, name: str, node: str, *addresses: str, host_network: bool = False, phase: str = "Running"
    ) -> None:
        """A pod of namespace `default` on a Node."""
        body = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "hostNetwork": host_network},
            "status": {"phase": phase, "podIPs": [{"ip": address} for address in addresses]},
        }
        self.server.execute(Request("create", "pods", name, body))

    def connect(self, name: str, *cidrs: str) -> None:
        """The node's agent writes which networks its machine is on."""
        status = {"status": {"connectedCIDRs": list(cidrs)}}
        self.server.execute(Request("patch", "netloomnodes", name, status, "status", "merge"))

    def fill(self, name: str, *addresses: str, owner: str = "") -> None:
        """Whoever gives addresses from outside writes them into a NetloomNode."""
        pool = {address: {"owner": owner} if owner else {} for address in addresses}
        self.edit("netloomnodes", name, ipam={"pool": pool})

    def withdraw(self, name: str, *addresses: str) -> None:
        """And takes them out again."""
        self.edit("netloomnodes", name, ipam={"pool": dict.fromkeys(addresses)})

    def leave(self, name: str) -> None:
        """A Node is deleted."""
        self.server.execute(Request("delete", "nodes", name))

    def collect_garbage(self) -> None:
        """The garbage collector deletes what belongs to Nodes that are gone."""
        uids = {each["metadata"]["uid"] for each in self.server.all("nodes").values()}
        for name, obj in list(self.server.all("netloomnodes").items()):
            owners = [owner["uid"] for owner in obj["metadata"].get("ownerReferences", ())]
            if owners and not uids & set(owners):
                self.server.execute(Request("delete", "netloomnodes", name, uid=obj["metadata"]["uid"]))

    @property
    def network(self) -> Json:
        return self.server.all("netloomnetworks")["default"]

    @property
    def mode_in_force(self) -> str:
        """The mode lock; "" while it is clear."""
        network = self.server.all("netloomnetworks").get("default", {})
        mode: str = network.get("status", {}).get("ipam", {}).get("mode", "")
        return mode

    def cidrs(self) -> dict[str, tuple[Cidr, ...]]:
        """What the NetloomNodes hold."""
        objects = self.server.all("netloomnodes").items()
        return {name: node_objects.held(msgspec.convert(obj, NetloomNode)) for name, obj in objects}

    def condition(self, plural: str, name: str, type_: str = "") -> tuple[str, str, str]:
        """Status, reason and message of a condition, of the first one unless told; empty where there is none."""
        for found in self.server.all(plural)[name].get("status", {}).get("conditions", []):
            if type_ in ("", found["type"]):
                return found["status"], found["reason"], found["message"]
        return "", "", ""

    def texts(self) -> dict[str, str]:
        """What the NetloomNodes hold, to read."""
        return {name: " ".join(map(str, cidrs)) for name, cidrs in sorted(self.cidrs().items())}

    def writes(self, since: int = 0) -> Counter[str]:
        """The operators' requests that are no reads, since so many were executed."""
        requests = [each for each in self.server.executed[since:] if each.verb not in ("get", "list")]
        return Counter(f"{each.verb} {each.plural}" for each in requests if each.plural != "nodes")

    def edit(self, plural: str, name: str, **spec: Any) -> None:
        """A user changes fields of an object's spec. Raises Invalid where a rule forbids it."""
        self.server.execute(Request("patch", plural, name, {"spec": spec}, kind="merge"))

    def make(self, name: str, *cidrs: str, mode: str = "cluster-pool") -> None:
        """A user creates a NetloomNode by hand."""
        spec = {"ipam": {"mode": mode, "podCIDRs": list(cidrs)}}
        self.server.execute(Request("create", "netloomnodes", name, {"metadata": {"name": name}, "spec": spec}))

    def delete(self, plural: str, name: str) -> None:
        """A user deletes an object."""
        self.server.execute(Request("delete", plural, name))

    # Operators

    def start(self, policy: BatchPolicy = POLICY) -> Operator:
        """A new process; its caches are current."""
        self._born += 1
        operator = Operator(self, f"op{self._born}", policy)
        self.operators.append(operator)
        operator.run()
        return operator

    def start_agent(self, node: str) -> Agent:
        """A new process of the agent of a node; its caches are current."""
        self._born += 1
        agent = Agent(self, f"agent{self._born}", node)
        self.agents.append(agent)
        agent.run()
        return agent

    def kill(self, operator: Process) -> None:
        """SIGKILL: nothing of it runs any more, what it sent is on its way."""
        operator.dead = True

    @property
    def running(self) -> list[Operator]:
        return [operator for operator in self.operators if operator.runs]

    @property
    def processes(self) -> list[Process]:
        """All that run, agents too."""
        return [process for process in (*self.operators, *self.agents) if process.runs]

    # Time and requests

    def wait(self, seconds: float) -> None:
        """Time passes for all; a frozen process finds out when it is thawed."""
        until = self.clock.now + seconds
        while True:
            due = [when for operator in self.processes for when in operator.loop.timers()]
            self.clock.now = min([until, *(when for when in due if when > self.clock.now)])
            self._run()
            if self.clock.now >= until:
                return

    def handle(self, pending: Pending, outcome: Outcome = "done") -> None:
        """What becomes of a request.

        done: executed and answered. lost: executed, but the answer is lost and the client times out. refused: 429,
        not executed. unavailable: 503, not executed now, but still on its way.
        """
        if outcome in ("done", "lost"):
            self._execute(pending, answer=outcome == "done")
        else:
            error = {
                "refused": ApiError(429, "TooManyRequests", "slow down"),
                "unavailable": Unavailable(503, "ServiceUnavailable", "who knows"),
            }[outcome]
            if outcome == "refused":
                self.pending.remove(pending)
            else:
                self.delay(pending)
            if not pending.answer.done():
                pending.answer.set_exception(error)
        self._run()

    def _execute(self, pending: Pending, answer: bool) -> None:
        self.pending.remove(pending)
        if pending in self.delayed:
            self.delayed.remove(pending)
        pending.executed = True
        result: Any = None
        error: ApiError | None = None
        if self.clock.now <= pending.sent + CLIENT_SECONDS + SERVER_SECONDS:
            try:
                result = self.server.execute(pending.request)
            except ApiError as problem:
                error = problem
        else:
            error = Unavailable(504, "Timeout", "too late")
        if pending.answer.done() or pending.operator.dead or not answer:
            return
        if error is not None:
            pending.answer.set_exception(error)
        else:
            pending.answer.set_result(result)

    def _run(self) -> None:
        for operator in self.processes:
            operator.run()

    def see_all(self) -> None:
        """All caches become current."""
        for operator in self.processes:
            operator.see()
        self._run()

    def of(self, operator: Process) -> list[Pending]:
        """The requests that an operator has under way."""
        return [each for each in self.pending if each.operator is operator]

    def until(self, operator: Process, request: str, blind: str = "", patience: float = 10.0) -> Pending:
        """One operator works, all others stand still, until it sends a request that begins so; it is not executed."""
        return self._work(operator, request, blind, patience) or self._never(operator, request)

    def work(self, operator: Process, seconds: float = 10.0, blind: str = "") -> None:
        """One operator works, all others stand still, for so long."""
        self._work(operator, "nothing", blind, seconds)

    def _work(self, operator: Process, request: str, blind: str, seconds: float) -> Pending | None:
        until = self.clock.now + seconds
        while True:
            operator.see(blind=blind)
            operator.run()
            mine = [each for each in self.of(operator) if each not in self.delayed]
            found = [each for each in mine if str(each.request).startswith(request)]
            if found:
                return found[0]
            if mine:
                self.handle(mine[0])
            elif self.clock.now >= until:
                return None
            else:
                self.wait(min(0.5, until - self.clock.now))

    def _never(self, operator: Process, request: str) -> Pending:
        raise AssertionError(f"{operator.name} never sends {request!r}; under way: {self.of(operator)}")

    def delay(self, pending: Pending) -> Pending:
        """The request is held up on its way until `handle` is called for it; `work` passes it over."""
        self.delayed.append(pending)
        return pending

    def calm(self, seconds: float = 0.0, limit: int = 20000) -> None:
        """No faults any more: everything is executed and seen at once, for so long, until nothing happens."""
        until = self.clock.now + seconds
        for _ in range(limit):
            if self.pending:
                self.handle(self.pending[0])
            elif any(operator.behind for operator in self.processes):
                self.see_all()
            elif self.clock.now < until:
                self.wait(min(5.0, until - self.clock.now))
            else:
                return
        raise AssertionError("it does not come to rest")

    def close(self) -> None:
        for operator in (*self.operators, *self.agents):
            operator.bury()
        self.server.close()


def no_overlap(world: World) -> None:
    """No two NetloomNodes hold overlapping CIDRs."""
    held = [(cidr, name) for name, cidrs in world.cidrs().items() for cidr in cidrs]
    held.sort()
    for (cidr, name), (other, another) in itertools.pairwise(held):
        assert not cidr.overlaps(other), f"overlap: {name} holds {cidr}, {another} holds {other}"
