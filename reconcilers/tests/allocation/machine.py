"""Everything that can happen to an allocation, as rules for Hypothesis to combine, and what must hold all the time.

Checked after every write to the server, not after every rule: an overlap that lasts for one request is an overlap.
"""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from netloom.api.v1alpha1 import IGNORE_LABEL, NetloomLedger
from netloom.cidr import Cidr
from netloom.ipam.ledger import decode
from netloom.runtime.errors import Invalid
from tests.allocation.server import Json, ModelServer
from tests.allocation.virtual import VirtualClock, VirtualLoop
from tests.allocation.world import Operator, Pending, Process, Server, World, no_overlap

NAMES = ("a", "b", "c")
DICTATED = ("10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/23", "10.9.0.0/24")
"""Pod CIDRs that Nodes bring in mode `kubernetes`: some of them overlap, as a broken controller's would."""
MORE = "10.1.0.0/24"
WIDER = {"10.0.0.0/24": "10.0.0.0/22", "10.0.0.0/23": "10.0.0.0/22", "fd00::/118": "fd00::/116"}
"""Cluster CIDRs, and what a user puts in their place."""
WAITS = (1.0, 6.0, 11.0, 16.0, 121.0)
FATES = (
    *["done"] * 4,
    "delayed",
    "delayed",
    "delayed killed",
    "delayed frozen",
    "given-up",
    "lost",
    "refused",
    "done killed",
)
"""What befalls a request, and then the operator that sent it."""
COUNTS = st.sampled_from((0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 8))
SEES = st.sampled_from((True, True, True, False))


class AllocationMachine(RuleBasedStateMachine):
    """Nodes come and go, operators live, freeze and die, requests are late, lost, refused or done all the same."""

    server: Callable[[], Server] = ModelServer
    """Another API server in heirs."""
    loop: Callable[[VirtualClock], Any] = VirtualLoop
    """Another event loop in heirs."""

    def __init__(self) -> None:
        super().__init__()
        self.held_by_uid: dict[str, tuple[str, ...]] = {}
        self.world = World(self.check, self.server, self.loop)
        self.dual = False
        self.mode = "cluster-pool"
        self.addresses = {name: (f"172.16.0.{n}", f"172.16.1.{n}") for n, name in enumerate(NAMES, 1)}
        """That somebody outside gives to each node, in mode crd."""
        self.begun = itertools.count()
        self.resizes = itertools.cycle(("append", "take back", "append", "widen"))

    # What must hold

    def check(self, world: World) -> None:
        no_overlap(world)
        self._no_change(world)
        self._locked(world)
        self._listed(world)

    def _no_change(self, world: World) -> None:
        """What a Node holds never changes while it lives."""
        uids = set()
        for name, node in world.server.all("nodes").items():
            uids.add(node["metadata"]["uid"])
            if _left_out(node) and name not in world.server.all("netloomnodes"):
                self.held_by_uid.pop(node["metadata"]["uid"], None)  # left out, and let go
        for name, obj in world.server.all("netloomnodes").items():
            cidrs = tuple(obj["spec"].get("ipam", {}).get("podCIDRs", ()))
            for owner in obj["metadata"].get("ownerReferences", ()):
                if cidrs and owner["uid"] in uids:
                    held = self.held_by_uid.setdefault(owner["uid"], cidrs)
                    assert held == cidrs, f"change: {name} held {held} and now holds {cidrs}"

    def _locked(self, world: World) -> None:
        """The mode in force is set while any node holds a CIDR, and is the mode that it comes from."""
        force = world.mode_in_force
        for name, pods in world.pods.items():
            assert not pods or force == "crd", f"lock: pods of {name} use addresses, in force: {force!r}"
        for name, obj in world.server.all("netloomnodes").items():
            ipam = obj["spec"].get("ipam", {})
            if ipam.get("podCIDRs"):
                assert ipam.get("mode") == force, f"lock: {name} holds CIDRs of {ipam.get('mode')}, in force: {force!r}"

    def _listed(self, world: World) -> None:
        """What nodes hold is of the cluster's CIDRs, as none is removed of which anything was given."""
        if world.mode_in_force == "cluster-pool":
            pool = world.network["spec"]["ipam"]["clusterPool"]
            listed = [Cidr.parse(cidr) for cidr in (*pool["ipv4PodCIDRList"], *pool.get("ipv6PodCIDRList", ()))]
            for name, obj in world.server.all("netloomnodes").items():
                for cidr in map(Cidr.parse, obj["spec"].get("ipam", {}).get("podCIDRs", ())):
                    assert any(each.contains(cidr) for each in listed), f"removed: {name} holds {cidr}"

    # The start

    @initialize(
        mode=st.sampled_from(["cluster-pool", "cluster-pool", "kubernetes", "crd"]),
        blocks=st.sampled_from(["10.0.0.0/24", "10.0.0.0/23", "10.0.0.0/22"]),
        dual=st.booleans(),
    )
    def begin(self, mode: str, blocks: str, dual: bool) -> None:
        self.dual, self.mode = dual, mode
        self.pool: dict[str, Any] = {"ipv4PodCIDRList": [blocks], "ipv4MaskSize": 24}
        if dual:
            self.pool |= {"ipv6PodCIDRList": ["fd00::/118"], "ipv6MaskSize": 120}
        self.world.apply_network(mode=mode, **self.pool)
        self._start()

    # The cluster

    @rule(name=st.sampled_from(NAMES), dictated=st.sampled_from(DICTATED))
    def come_or_go(self, name: str, dictated: str) -> None:
        """A Node registers, or the one that is there is deleted."""
        if name in self.world.server.all("nodes"):
            self.world.leave(name)
            self._stop_agents(name)
            self.world.pods.get(name, {}).clear()  # the machine is gone, and its pods with it
        else:
            self.world.join(name, *([dictated] if self.mode == "kubernetes" else []))

    @rule(name=st.sampled_from(NAMES))
    def leave_out_or_take_in(self, name: str) -> None:
        """A user labels a Node, or takes the label away again."""
        node = self.world.server.all("nodes").get(name)
        if node is not None:
            self.world.label(name, **({} if _left_out(node) else {IGNORE_LABEL: "true"}))

    @rule(name=st.sampled_from(NAMES), cidrs=st.sampled_from(([], ["10.0.1.0/24"], ["10.0.0.0/16", "fd00::/119"])))
    def connect(self, name: str, cidrs: list[str]) -> None:
        """A machine joins networks, or leaves them. What its node, or another, holds of them stays."""
        if name in self.world.server.all("netloomnodes"):
            self.world.connect(name, *cidrs)

    # Mode crd

    @precondition(lambda self: self.mode == "crd")
    @rule(name=st.sampled_from(NAMES), which=st.sampled_from((0, 0, 1)))
    def give_or_withdraw(self, name: str, which: int) -> None:
        """Somebody outside writes an address into a NetloomNode, or takes it out again, used or not."""
        obj, address = self.world.server.all("netloomnodes").get(name), self.addresses[name][which]
        if obj is None:
            return
        held = address in obj["spec"].get("ipam", {}).get("pool", {})
        (self.world.withdraw if held else self.world.fill)(name, address)

    @precondition(lambda self: self.world.agents or self.mode == "crd")
    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(("restart", "begin", "begin", "end", "freeze", "thaw")))
    def live_on_a_node(self, name: str, what: str) -> None:
        """A pod begins or ends, by what the node's agent knows; or that starts (again), freezes or thaws."""
        agent = next((each for each in self.world.agents if each.node == name and not each.dead), None)
        if what == "restart" and name in self.world.server.all("nodes"):
            self._stop_agents(name)
            self.world.start_agent(name)
        elif agent is None:
            return
        elif what in ("freeze", "thaw"):
            agent.frozen = what == "freeze"
            agent.run()
        elif what == "begin" and agent.runs:
            agent.begin(f"pod-{next(self.begun)}")
        elif what == "end" and agent.runs and agent.pods:
            agent.end(next(iter(agent.pods)))

    def _stop_agents(self, name: str) -> None:
        for agent in self.world.agents:
            if agent.node == name and not agent.dead:
                self.world.kill(agent)

    @rule(action=st.sampled_from(("collect", "resize", "cluster-pool", "kubernetes", "crd", *WAITS)))
    def interfere(self, action: str | float) -> None:
        """Time passes, the garbage collector has its turn, the user gives more space, takes it back, or tries to change
        the mode."""
        if isinstance(action, float):
            self.world.wait(action)
        elif action == "collect":
            self.world.collect_garbage()
        elif action == "resize":
            self._resize(next(self.resizes))
        elif not self.world.server.all("nodes") or (self.mode == "crd" and action != "kubernetes"):
            # What nodes bring depends on the mode that they were made in.
            try:
                self.world.apply_network(mode=action, **self.pool)
                self.mode = action
            except Invalid:
                pass

    def _resize(self, how: str) -> None:
        if how == "append":
            self.pool["ipv4PodCIDRList"] = list(dict.fromkeys([*self.pool["ipv4PodCIDRList"], MORE]))
            self.world.apply_network(mode=self.mode, **self.pool)
        elif how == "take back":
            fewer = [cidr for cidr in self.pool["ipv4PodCIDRList"] if cidr != MORE]
            try:
                self.world.apply_network(mode=self.mode, **self.pool | {"ipv4PodCIDRList": fewer})
                self.pool["ipv4PodCIDRList"] = fewer
            except Invalid:
                pass
        else:
            for field in ("ipv4PodCIDRList", "ipv6PodCIDRList"):
                if field in self.pool:
                    self.pool[field] = [WIDER.get(cidr, cidr) for cidr in self.pool[field]]
            self.world.apply_network(mode=self.mode, **self.pool)

    # Operators

    @precondition(lambda self: len(self._alive) < 3 or any(each.frozen for each in self._alive))
    @rule(data=st.data())
    def start_or_thaw(self, data: st.DataObject) -> None:
        """One more operator, which has read the ledgers as they are now; or one that was frozen runs on."""
        chosen = data.draw(st.sampled_from([*([None] if len(self._alive) < 3 else []), *self._frozen]))
        if chosen is not None:
            chosen.frozen = False
            chosen.run()
            return
        self._start()

    def _start(self) -> None:
        operator = self.world.start()
        for request in self._requests(operator):
            self.world.handle(request)

    @property
    def _alive(self) -> list[Operator]:
        return [each for each in self.world.operators if not each.dead]

    @property
    def _frozen(self) -> list[Operator]:
        return [each for each in self._alive if each.frozen]

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data(), count=COUNTS, see=SEES, fate=st.sampled_from(FATES))
    def work(self, data: st.DataObject, count: int, see: bool, fate: str) -> None:
        """One operator or agent gets on with its work for some requests; the next one, or who works, has bad luck.

        `see`: whether its caches learn what happens meanwhile.
        """
        operator = data.draw(st.sampled_from(self.world.processes))
        patience = 16
        while patience:
            if see:
                operator.see()
                operator.run()
            mine = self._requests(operator)
            if mine and not count:
                self._befall(operator, data.draw(st.sampled_from(mine)), fate)
                return
            if mine:
                count -= 1
                self.world.handle(mine[0])
            else:
                patience -= 1
                self.world.wait(0.5)

    @precondition(lambda self: self.world.running)
    @rule(
        data=st.data(),
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        dictated=st.sampled_from(DICTATED),
        count=COUNTS,
        fate=st.sampled_from(FATES),
    )
    def disturb(self, data: st.DataObject, names: list[str], dictated: str, count: int, fate: str) -> None:
        """Nodes come or go, and the operator that begins to look after it has bad luck."""
        for name in names:
            self.come_or_go(name, dictated)
        self.work(data, count, True, fate)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Some operator does all it can."""
        self.work(data, 100, True, "done")

    def _requests(self, operator: Process) -> list[Pending]:
        return [each for each in self.world.of(operator) if each not in self.world.delayed]

    def _befall(self, operator: Process, request: Pending, fate: str) -> None:
        when, _, what = fate.partition(" ")
        if when == "delayed":
            self.world.delay(request)
        elif when == "given-up":
            self.world.handle(request, "unavailable")
        elif when == "lost":
            self.world.handle(request, "lost")
        elif when == "refused":
            self.world.handle(request, "refused")
        else:
            self.world.handle(request)
        if what == "killed":
            self.world.kill(operator)
        elif what == "frozen":
            operator.frozen = True

    @precondition(lambda self: self.world.delayed)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A delayed request reaches the server at last, whatever became of its sender."""
        self.world.handle(data.draw(st.sampled_from(self.world.delayed)))

    # The end

    def teardown(self) -> None:
        """Whatever happened: when the faults end and one operator is left, everything comes right by itself."""
        try:
            if self.world.operators:
                self._recover()
            self.world.server.check()
        finally:
            self.world.close()

    def _recover(self) -> None:
        world = self.world
        for operator in world.operators:
            world.kill(operator)
        for agent in world.agents:
            agent.frozen = False
        for name in world.server.all("netloomnodes"):
            world.connect(name)
        world.start()
        world.calm(60)
        self._give_all_back()
        world.calm(400)
        nodes = {name for name, node in world.server.all("nodes").items() if not _left_out(node)}
        ledgers = self._entries()
        held = {name: cidrs for name, cidrs in world.cidrs().items() if cidrs}
        assert set(world.cidrs()) <= nodes
        expected = {cidr: name for name, cidrs in held.items() for cidr in cidrs}
        # A node that waits for its other family keeps the block that it was given of the one.
        halves = {cidr: name for cidr, name in ledgers.items() if self.dual and name in nodes and name not in held}
        assert ledgers == expected | halves, f"nodes {nodes}, ledgers {_text(ledgers)}, NetloomNodes {_text(expected)}"
        if self.mode == "crd":
            assert world.mode_in_force == "", "all addresses came back"
        if self.mode == "cluster-pool":
            blocks = sum(4 if cidr.endswith("/22") else 2 if cidr.endswith("/23") else 1 for cidr in self._lists())
            assert len(held) == min(len(nodes), blocks), f"{nodes} of {blocks} blocks, {held}"
            families = 2 if self.dual else 1
            assert all(len(cidrs) == families for cidrs in held.values())
        if not nodes:
            assert world.mode_in_force == ""

    def _give_all_back(self) -> None:
        """All pods end, and all single addresses are withdrawn; what a dead agent said of its use, a new one mends."""
        for name in self.world.server.all("nodes"):
            self._stop_agents(name)
            self.world.pods.get(name, {}).clear()
            if name in self.world.pods:
                self.world.start_agent(name)
        for name, obj in self.world.server.all("netloomnodes").items():
            if pool := obj["spec"].get("ipam", {}).get("pool"):
                self.world.withdraw(name, *pool)

    def _lists(self) -> list[str]:
        lists: list[str] = self.pool["ipv4PodCIDRList"]
        return lists

    def _entries(self) -> dict[Cidr, str]:
        found = {}
        for obj in self.world.server.all("netloomledgers").values():
            for cidr, entry in decode(msgspec.convert(obj, NetloomLedger)).entries.items():
                assert not entry.marks, f"marks stay on {cidr}: {entry}"
                found[cidr] = entry.node
        return found


def _text(blocks: dict[Cidr, str]) -> str:
    return ", ".join(f"{cidr} {node}" for cidr, node in sorted(blocks.items()))


def _left_out(node: Json) -> bool:
    return IGNORE_LABEL in node["metadata"].get("labels", {})
