"""The probe: looks whether packets of pods pass to other nodes and back, instead of believing that they must.

Each node asks a few peers (`probing.selection`), every minute and soon after changes, by the way that packets of pods
take (`netloom.kernel.probe`). Of one that does not answer it looks where the packets are lost, and looks again soon:
what fails twice is told in the condition, until it passes once (`probing.verdicts`), by measure (`probing.pace`). Whose
agent does not run is no alarm.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric

from netloom.api.meta import POD_TRAFFIC_PASSES
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNode
from netloom.cidr import Address, version_of
from netloom.kernel.probe.examination import Examination, ProbeTiming, Target
from netloom.kernel.probe.keeper import Egress, ProbeKeeper
from netloom.kernel.probe.part import ProbeNode
from netloom.kernel.probe.prober import Prober
from netloom.runtime.manager import Run
from netloom.runtime.waking import wait
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.kernel import KernelFeature
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.probing.counting import metrics_of
from netloom_reconcilers.node.probing.findings import BOTH, Finding, finding, not_forwarded, sentences, told_apart
from netloom_reconcilers.node.probing.looks import Leases, switch_off
from netloom_reconcilers.node.probing.pace import TellingPace
from netloom_reconcilers.node.probing.selection import behind, by_way, concerns
from netloom_reconcilers.node.probing.targets import addresses_of, as_pods_use, by_nodes, hosts_of, targets_of
from netloom_reconcilers.node.probing.verdicts import Key, Verdicts

ROUND_SECONDS = 60.0
SETTLE_SECONDS = 3.0
"""After a change, before it is looked at: every agent has to hear of it, and to write."""
AGAIN_SECONDS = 10.0
"""Until a peer that failed is looked at again, and another one that changed."""
CHANGED_AT_ONCE, CHANGED_KEPT = 4, 32
FOLLOWED = 8
"""Failing peers that are looked at again and again; with more, the first ones tell enough."""
AT_ONCE = 8
NAMED = 3
MOST_OF_A_NODE = 4
"""Addresses of probes that are remembered for each node, which has one of each family."""
CHECKED = 32
"""Peers that `netloom check` looks at when none is named."""


class ProbeFeature(KernelFeature):
    """See the module."""

    name = "probe"
    keeper_runs_as = "probe device"
    condition = POD_TRAFFIC_PASSES
    keeper: ProbeKeeper
    _desired: ProbeNode

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context, ProbeKeeper(on_report=lambda report: context.changed()))
        self.prober = Prober(unanswered=self._is_unanswered, doubted=self._is_doubted)
        self.keeper.device.moved = self._device_moved
        self.verdicts = Verdicts(context.changed)
        self.counts: dict[tuple[str, int], list[float]] = {}
        """By way and family: sent, answered, seconds of the last round trip."""
        self._held: ProbeNode | None = None
        self._timing = ProbeTiming()
        self._changed: dict[str, None] = {}
        self._whose: dict[Address, str] | None = None
        """By the address of its probe, the node that had it last; None: nobody has asked yet."""
        self._next_round = 0.0
        self._wake = asyncio.Event()
        self._checking = asyncio.Lock()
        self._leases = Leases(context)
        self._pace = TellingPace(lambda seconds: asyncio.get_running_loop().call_later(seconds, context.changed))
        self._unanswered_at = self._doubted_at = 0.0

    def components(self) -> Mapping[str, Run]:
        """The reconciler, the device, and the probing."""
        return {**super().components(), "probing": self.run}

    # --------------------------------------------------------------------------------------- what is in the kernel

    async def _apply(self) -> None:
        desired = self.desired()
        if desired is None:
            return
        if desired != self._held:  # what changes about a peer is nothing to the device
            await self.keeper.apply(desired)
            self._held = desired
        self._is_in_place(addresses=len(desired.addresses))
        changed, self.prober.addresses = desired.addresses != self.prober.addresses, desired.addresses
        own = self._own()
        self.prober.listen_at(hosts_of(own) if own is not None else ())
        if changed:
            self._soon()

    def desired(self) -> ProbeNode | None:
        """The addresses that stand for a pod."""
        if (objects := self._objects()) is None:
            return None
        _, node = objects
        self._notice()
        return ProbeNode(tuple(addresses_of(node).values()))

    def _own(self) -> NetloomNode | None:
        return self.own.effective(self._said())

    def _notice(self) -> None:
        """Peers that changed and that this node is to look at; those that are gone are forgotten."""
        touched, self._touched = self._touched, set()
        for name in touched:
            node = self._nodes.get(name)
            if self._whose is not None and node is not None:
                self._whose |= dict.fromkeys(addresses_of(node).values(), name)
            if name == self._node_name:
                self._soon()
            elif node is None:
                self.verdicts.forget([(name, 4), (name, 6)])
                self._changed.pop(name, None)
            elif concerns(self._node_name, name, len(self._nodes)):
                self._changed[name] = None
                while len(self._changed) > CHANGED_KEPT:
                    self._changed.pop(next(iter(self._changed)))
                self._wake.set()
        if self._whose is not None and len(self._whose) > MOST_OF_A_NODE * len(self._nodes):
            self._whose = None  # most of them are of nodes that are gone

    def _soon(self) -> None:
        """A round is due: something of this node is different."""
        self._next_round = min(self._next_round, time.monotonic() + SETTLE_SECONDS)
        self._wake.set()

    def _device_moved(self) -> None:
        self.prober.attach(self.keeper.device.descriptor)
        self.context.changed()

    # ------------------------------------------------------------------------------------------------- the probing

    async def run(self) -> None:
        """Probes until it is cancelled."""
        try:
            while True:
                await self._due()
                await wait(self._wake, self._idle_seconds())
                if self._wake.is_set():
                    self._wake.clear()
                    await asyncio.sleep(SETTLE_SECONDS)
        except asyncio.CancelledError:
            self.prober.close()
            raise

    def _idle_seconds(self) -> float:
        wait = max(0.1, self._next_round - time.monotonic())
        return min(wait, AGAIN_SECONDS) if self.verdicts.strikes or self._changed else wait

    async def _due(self) -> None:
        """What is due now: a round, peers that changed, and those that failed."""
        if not self.prober.addresses or not self.applied:
            self._next_round = time.monotonic() + SETTLE_SECONDS
            self.verdicts.forget(list(self.verdicts.strikes))
            return
        names: dict[str, None] = {}
        old: list[Key] = []
        if time.monotonic() >= self._next_round:
            self._next_round = time.monotonic() + ROUND_SECONDS * random.uniform(0.9, 1.1)
            old = [*self.verdicts.passing, *self.verdicts.unknown]
            names |= dict.fromkeys(await self._round())
        for name in list(self._changed)[:CHANGED_AT_ONCE]:
            del self._changed[name]
            names[name] = None
        followed = dict.fromkeys(name for name, _ in self.verdicts.strikes if name != self._node_name)
        names |= dict.fromkeys(list(followed)[:FOLLOWED])
        seen = await self._look_at_own_forwarding()
        seen |= {(found.peer, found.family) for found in await self._look_at(names)}
        for key in old:
            if key not in seen:
                self.verdicts.passing.pop(key, None)
                self.verdicts.unknown.pop(key, None)
        asked = {self._node_name, *names}
        self.verdicts.forget([key for key in self.verdicts.strikes if key[0] in asked and key not in seen])

    async def _round(self) -> list[str]:
        """The peers of a round."""
        candidates = behind(self._node_name, self._nodes)
        ways = await self._ways([self._address(name) for name in candidates])
        chosen = by_way(candidates, [way.kind for way in ways])
        names = list(self._nodes)
        return [*chosen, *([random.choice(names)] if len(names) > len(chosen) + 1 else [])]

    def _address(self, name: str) -> Address:
        node = self._nodes.get(name)
        return next(iter(addresses_of(node).values()), b"") if node is not None else b""

    async def _ways(self, addresses: list[Address]) -> list[Egress]:
        known = [address for address in addresses if address]
        found = dict(zip(known, await self.keeper.ways(known), strict=True)) if known else {}
        network = self._networks.get(NETWORK_NAME)
        mtu = network.spec.mtu if network is not None else 0
        return [as_pods_use(found.get(address, Egress()), mtu) for address in addresses]

    async def _look_at(self, names: Iterable[str], *, whole: bool = False) -> list[Finding]:
        """At these peers; with `whole`, as closely as at one that failed."""
        targets = [target for name in names for target in self._targets(name)]
        ways = await self._ways([target.address for target in targets])
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(target: Target, way: Egress) -> Finding:
            async with limit:
                return await self._examined(target, way, whole=whole)

        seen = await asyncio.gather(*(one(target, way) for target, way in zip(targets, ways, strict=True)))
        found = told_apart(seen)
        for each in found:
            self._take(each)
        return found

    def _targets(self, name: str) -> list[Target]:
        node = self._nodes.get(name)
        if node is None or name == self._node_name:
            return []
        return [target for target in targets_of(node) if self._has_family(target)]

    def _has_family(self, target: Target) -> bool:
        return any(len(address) == len(target.address) for address in self.prober.addresses)

    async def _examined(self, target: Target, way: Egress, *, whole: bool) -> Finding:
        self.prober.mtu = way.mtu or self.prober.mtu
        key = (target.name, version_of(target.address))
        began = time.monotonic()
        since = self.verdicts.since.get(key)
        examination = Examination(self.prober, by_nodes(target, way), way, self._timing, since=since)
        suspect = whole or key in self.verdicts.strikes or self.prober.descriptor is None
        evidence = None if suspect else await examination.once()
        evidence = evidence or await examination.whole()
        counts = self.counts.setdefault((str(way), evidence.family), [0, 0, 0.0])
        counts[0] += 1
        if evidence.largest or evidence.host == "answered":
            self.verdicts.answered(key)
        self.verdicts.doubtful.discard(key)
        if evidence.passes:
            counts[1] += 1
            counts[2] = evidence.seconds
            return finding(evidence, alive=True)
        since = self.verdicts.since.setdefault(key, began)
        if evidence.host != "silent" or evidence.largest:
            return finding(evidence, alive=True, switch=switch_off(evidence.family))
        life = await self._leases.life(target.name, since, len(self._nodes))
        if life == "not yet" and not evidence.heard:
            self.verdicts.doubtful.add(key)
        alive = {"alive": True, "silent": False}.get(life)
        never = not self.verdicts.has_answered(key) and any(
            peer not in (target.name, self._node_name) for peer, _ in self.verdicts.passing
        )
        return finding(evidence, alive=alive, switch=switch_off(evidence.family), never=never)

    async def _look_at_own_forwarding(self) -> set[Key]:
        """By the node's own loop: a single node has pods on it that talk through it, too. Returns what was seen."""
        seen: set[Key] = set()
        for address in self.prober.addresses if self.prober.descriptor is not None else ():
            size, family = len(address), version_of(address)
            key = (self._node_name, family)
            seen.add(key)
            for _ in range(self._timing.tries):
                answer = await self.prober.loop(size, self._timing.answer)
                if self.prober.forwards.get(size):
                    self._take(Finding(peer=key[0], family=family, way="own", passes=True))
                    break
            else:
                refused = answer is not None and answer.rejected is not None and answer.rejected.kind == "filter"
                text, both = (not_forwarded(of, switch_off(family), refused) for of in (f"IPv{family}", BOTH))
                self._take(
                    Finding(
                        peer=key[0],
                        family=family,
                        way="own",
                        passes=False,
                        reason="ForwardHookDrops",
                        where="here",
                        text=text,
                        both=both,
                    )
                )
                self.keeper.look_again()
        return seen

    def _take(self, found: Finding) -> None:
        self.verdicts.take(found)
        if found.passes and (self._pace.told is None or self._pace.told.ready is None):
            self.context.changed()

    def _is_unanswered(self, address: Address) -> None:
        """A peer that gets no answers from here asked: whether this node's packets reach it, only this node can see."""
        now = time.monotonic()
        if now - self._unanswered_at < AGAIN_SECONDS:
            return
        self._unanswered_at = now
        if self._whose is None:
            named = ((name, self._nodes.get(name)) for name in self._nodes)
            self._whose = {
                each: name for name, node in named if node is not None for each in addresses_of(node).values()
            }
        name = self._whose.get(address, "")
        node = self._nodes.get(name)
        if node is not None and address in addresses_of(node).values():
            self._changed[name] = None
            self._wake.set()

    def _is_doubted(self) -> None:
        """A peer finds the pods' way closed: is it by this node's own forwarding? It is told in the next answer."""
        now = time.monotonic()
        if now - self._doubted_at > SETTLE_SECONDS:
            self._doubted_at = now
            self._wake.set()

    # ----------------------------------------------------------------------------------------------- what is told

    async def check(self, names: Sequence[str]) -> Sequence[Finding]:
        """A close look now at these peers; at none: at this node's own choice."""
        async with self._checking:
            await self._look_at_own_forwarding()
            every = [name for name in self._nodes if name != self._node_name]
            chosen = list(names) or (every if len(every) <= CHECKED else behind(self._node_name, every, CHECKED))
            own = [
                each
                for key, each in (self.verdicts.failing | self.verdicts.passing).items()
                if key[0] == self._node_name
            ]
            return [*own, *await self._look_at(chosen, whole=True)]

    def errors(self, report: Any = None) -> list[str]:
        """Why it does nothing. That the device is not as desired keeps no packet of a pod back: it is a warning."""
        return [self.obstacle.message] if self.obstacle else []

    def warnings(self) -> list[str]:
        """What the kernel refused of the device."""
        return super().errors()[len(self.errors()) :]

    def readiness(self) -> Readiness | None:
        """What fails twice or more. Nothing is told before anything has been seen."""
        return self._pace.tell(self._readiness(), len(self._nodes))

    def _readiness(self) -> Readiness | None:
        lacking = self.keeper.device.lacking
        if self.verdicts.failing:
            texts = sentences(self.verdicts.failing.values())
            more = " And more: /status of the agent names all." if len(texts) > NAMED else ""
            reason = next(iter(self.verdicts.failing.values())).reason
            return Readiness(False, reason, " ".join(texts[:NAMED]) + more)
        alone = len(self._nodes) <= 1
        if not any(alone or peer != self._node_name for peer, _ in self.verdicts.passing):
            if self._pace.told is None or self._pace.told.ready:
                return None  # nothing new: that it passed is not taken back by what cannot be known
            return Readiness(None, "NothingKnown", "No peer that was probed answers, and none is known to fail.")
        if lacking:
            what = "Packets between the nodes' own addresses pass; whether the forward hooks let those of pods through"
            return Readiness(True, "SeenInPart", f"{what} cannot be seen: {lacking}")
        return Readiness(
            True, "ProbesAnswered", "Packets as those of pods pass to the nodes that were probed, and back."
        )

    def facts(self) -> dict[str, object]:
        """What the last probes saw."""
        told = {
            "passing": len({peer for peer, _ in self.verdicts.passing if peer != self._node_name}),
            "failing": sentences(self.verdicts.failing.values()),
            "unknown": sentences(self.verdicts.unknown.values()),
            "lacking": self.keeper.device.lacking,
        }
        return {"probe": told}

    def metrics(self) -> Iterable[Metric]:
        """Peers asked and answers, by way and family."""
        return metrics_of(self.counts, len(self.verdicts.failing))
