"""The node's allocator as a feature of the agent: single addresses for pods, of what the node's NetloomNode holds.

The order of a start: what was written down is taken in; the objects say what there is to give of; the API server's pods
and the kernel's routes say what runs, and so make up for what was not written down. Nothing is given before, and the
socket says so. What was provided stays so while the objects are not there.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from prometheus_client.core import Metric

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNode, NodeIPAM
from netloom.cidr import Address, Cidr, Version, addresses_in
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner, Shortage
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.kernel.mesh.occupants import SingleAddresses, own_addresses, single_addresses
from netloom.kernel.netlink.sockets import AnswerLost
from netloom.runtime.backoff import Backoff
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError, Forbidden
from netloom.runtime.manager import Run
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.node import NodeContext, NodeFeature, missing, remove_files
from netloom_reconcilers.node.addresses import machine, running, telling
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint, CheckpointFound, files
from netloom_reconcilers.node.addresses.metrics import metrics_of
from netloom_reconcilers.node.addresses.own import of_the_node
from netloom_reconcilers.node.addresses.running import Pods
from netloom_reconcilers.node.addresses.server import AddressServer, ServedSocket
from netloom_reconcilers.node.addresses.service import AddressService
from netloom_reconcilers.node.addresses.supply import Provision, provision, versions_of
from netloom_reconcilers.node.addresses.wire import SOCKET
from netloom_reconcilers.node.known.peers import pod_cidrs_of
from netloom_reconcilers.node.single_addresses import OutsideSupply

log = structlog.get_logger(__name__)

_KEY = "addresses"
AGAIN_SECONDS = 5.0
LOOK_SECONDS = 30.0, 600.0
"""After which it is looked whether those are still there that are known by sight alone, and at most: where something
else gives addresses as well, those are all pods, and each look is a list of them."""
SOON_SECONDS = 2.0
TOLD_SECONDS = 300.0
"""How long it is told that the checkpoint was of no use."""


class AddressesFeature(NodeFeature):
    """See the module. `service` is what others of the agent speak to."""

    name = "addresses"
    condition = "AddressesRestored"

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context)
        self.controller = Controller(self.name, self.reconcile)
        self.allocator = NodeAllocator()
        state = context.state_dir or context.run_dir
        self._state = state
        self.service = AddressService(
            self.allocator, Checkpoint(state, context.node_name), self._versions_of, self._explain
        )
        self.service.changed = context.changed
        self.service.missed = self._missed
        self.service.twin = context.twin
        context.addresses = self.service
        path = context.socket or context.run_dir / SOCKET
        self._socket = ServedSocket(AddressServer(self.service, context.node_name), path, context.changed)
        self._pools = context.pools
        self._provision: Provision | None = None
        self._provided: NodeIPAM | None = None
        """What the object held then."""
        self._kernel = SingleAddresses(frozenset(), {})
        self._unseen = ""
        """Why it is not known whether all that runs is known."""
        self._found: CheckpointFound | None = None
        self._found_at = 0.0
        self._merged = self._looked = False
        self._look_at = 0.0
        self._pause = Backoff(*LOOK_SECONDS)
        self._kept: frozenset[Cidr] = frozenset()
        self._ever_kept: set[Cidr] = set()
        self.outside: OutsideSupply | None = None
        """Of mode crd; None where there is no API server to ask, and so nobody who changes the mode."""
        if context.api is not None:
            self.outside = OutsideSupply(
                context.node_name,
                context.networks,
                context.nodes,
                context.api,
                used=self._used_singles,
                changed=self._outside_changed,
                events=context.events,
            )
            self.service.listeners.append(self.outside.used_changed)
        context.networks.subscribe(lambda key, old, new: self._again())
        context.nodes.subscribe(lambda key, old, new: self._again() if key == context.node_name else None)
        self._pools.subscribe(lambda key, old, new: self._again())

    def components(self) -> Mapping[str, Run]:
        """The reconciler, and the socket."""
        found: dict[str, Run] = {self.name: self.controller.run, "address socket": self._socket.run}
        if self.outside is not None:
            found["single addresses"] = self.outside.controller.run
        return found

    def changed(self) -> None:
        """CIDRs may be kept, or kept no longer."""
        kept = frozenset(cidr for text in self.context.own.kept if (cidr := Cidr.masked(text)) is not None)
        if kept != self._kept:
            if self._kept - kept:
                self._look_at = 0.0  # nothing lives there any more, or all of it is the node's again
            self._kept = kept
            self._ever_kept |= kept
            self._again()

    def _again(self) -> None:
        self.controller.enqueue(_KEY)

    @property
    def applied(self) -> bool:
        """Whether it was looked what there is; what stands in the way is in `errors`."""
        return self._looked

    async def reconcile(self, key: str = _KEY) -> float | None:
        """Give of what the objects say, once all that runs is known. Returns when to look again."""
        await self.context.networks.wait_synced()
        await self.context.nodes.wait_synced()
        node = self.context.nodes.get(self.context.node_name)
        again = None
        if self._found is None and not self._begin():
            again = AGAIN_SECONDS
        elif node is None:
            if self._provision is None:
                network = self.context.networks.get(NETWORK_NAME)
                self.service.obstacle = f"nothing is given yet: {missing(network, self.context.node_name).message}"
        else:
            again = await self._provide(node)
        self._looked = True
        self.context.changed()  # which comes back as `changed`, and does nothing more where nothing is kept anew
        return again

    def _begin(self) -> bool:
        """Takes in what was written down; whether that could be done."""
        found, self._found_at = self.service.begin(), time.monotonic()
        if found is not None:
            log.info("the checkpoint of addresses is read", records=len(found.records), why_not=found.lost)
            self._found = replace(found, records=())  # thousands, which the allocator has taken in
        if self._damage() is not None:
            asyncio.get_running_loop().call_later(TOLD_SECONDS + 1, self.context.changed)
        return self._found is not None

    # --------------------------------------------------------------------------------------------- what there is

    async def _provide(self, node: NetloomNode) -> float | None:
        came_back = {each for each in self._ever_kept if any(map(each.overlaps, pod_cidrs_of(node)[0]))}
        is_to_look = bool(came_back) or self._is_to_look()
        known = await self._what_runs() if is_to_look else None
        if known is None and (came_back or not self._merged):
            if not self._merged:
                self.service.obstacle = f"nothing is given yet: {self._unseen}"
            return AGAIN_SECONDS
        if known is None and is_to_look:
            log.warning("who is known by sight stays, and is looked for again soon", why=self._unseen)
            self._unseen = ""
        self._ever_kept -= came_back
        if known is None and node.spec.ipam != self._provided:
            await self._look_at_devices()
        self._provided = node.spec.ipam
        self._provision = provision(node, self._pools.get, self._taken(node))
        self.service.provide(self._given(self._provision))
        if known is not None:
            self._take_in(known)
            self._merged, self.service.obstacle = True, ""
            if self.outside is not None:
                self.outside.look()
        return max(0.0, self._look_at - time.monotonic()) if self._is_to_look_again() else None

    async def _look_at_devices(self) -> None:
        """The node may have on a device what it is given now."""
        try:
            self._kernel = self._kernel._replace(own=await own_addresses())
        except (AnswerLost, OSError) as error:
            log.warning("the addresses of this node's devices cannot be read", error=str(error))

    def _given(self, found: Provision) -> Supply:
        """Of that, what may be given now."""
        if self.outside is None or not found.supply.singles:
            return found.supply
        return replace(found.supply, singles=self.outside.supply)

    def _outside_changed(self) -> None:
        if self._provision is not None:
            self.service.provide(self._given(self._provision))
        self.context.changed()

    def _used_singles(self) -> dict[Address, str] | None:
        """Who uses single addresses; None: that is not known yet."""
        if not self._merged:
            return None
        alone = self.allocator.block
        return {
            address: owner.name
            for owner, holding in self.allocator.held()
            for address in holding.addresses
            if alone(address) is None
        }

    def _is_to_look_again(self) -> bool:
        """While somebody is known by sight alone, or not all could be looked at."""
        return bool(self._unseen) or any(running.is_seen(owner) for owner, _ in self.allocator.held())

    def _is_to_look(self) -> bool:
        """When the agent begins, and again. (And when a CIDR comes back that was kept meanwhile. What the operator
        gives anew, nobody lives in.)"""
        return not self._merged or (self._is_to_look_again() and time.monotonic() >= self._look_at)

    def _missed(self, owner: Owner) -> None:
        """A pod that is known by sight alone may be on its way out: it is looked when it should be gone."""
        if self.allocator.holding(running.seen(owner.name)) is not None:
            self._look_at = min(self._look_at, time.monotonic() + SOON_SECONDS)
            self.controller.enqueue_after(_KEY, SOON_SECONDS + 0.1)

    async def _what_runs(self) -> Pods | None:
        """The kernel's side is in `_kernel` then. None: that is not known, and may be soon."""
        self._look_at = time.monotonic() + AGAIN_SECONDS
        if not self._merged and (why := await self._why_not_this_machine()):
            self._unseen = why
            return None
        try:
            self._kernel = await single_addresses()
        except (AnswerLost, OSError) as error:
            self._unseen = f"the kernel's routes cannot be read: {error}."
            return None
        pods = await self._pods()
        if pods is not None:
            self._look_at = time.monotonic() + (LOOK_SECONDS[0] if self._unseen else self._pause.next())
        return pods

    def _take_in(self, pods: Pods) -> None:
        routed, node = self._kernel.routed, self.context.nodes.get(self.context.node_name)
        singles = set(self._provision.supply.singles) if self._provision else set()
        singles |= set(addresses_in(node.status.ipam.used if node else ()))
        mine = self.allocator.block
        merged = running.merge(
            self.allocator, pods.found, routed, lambda each: mine(each) is not None or each in singles
        )
        if merged.adopted:
            log.info("what runs and was not written down is entered", addresses=len(merged.adopted))
        for owner in running.gone(self.allocator, pods, routed):
            log.info("what was seen to have an address is gone", who=owner.name)
            self.allocator.release(owner, now=self.service.clock())
            self._pause.reset()

    async def _why_not_this_machine(self) -> str:
        """Asked before anything is given, and not again: who comes later by this name is a twin, and has a Lease."""
        if self.context.api is None:
            return ""
        try:
            return await machine.why_not(self.context.api, self.context.node_name)
        except (ApiError, OSError) as error:
            return f"whether this machine is Node {self.context.node_name} cannot be asked: {error}."

    async def _pods(self) -> Pods | None:
        if self.context.api is None:
            return Pods({}, known=False)
        try:
            found = await running.pods_of(self.context.api, self.context.node_name)
        except Forbidden as error:
            self._unseen = (
                f"Node {self.context.node_name}: the agent may not list pods ({error.message}), so which addresses run "
                "is known by the kernel's routes alone. Give it that right; see docs/examples/rbac.yaml."
            )
            return Pods({}, known=False)
        except ApiError as error:
            self._unseen = f"the pods of Node {self.context.node_name} cannot be listed: {error}."
            return None
        self._unseen = ""
        return Pods(found)

    def _taken(self, node: NetloomNode) -> set[Address]:
        """What the node has itself: on devices, and for the probe."""
        return set(self._kernel.own) | of_the_node(node, self.context.networks.get(NETWORK_NAME))

    def _versions_of(self, pool: str) -> frozenset[Version]:
        if self._provision is None:
            return frozenset()
        network = self.context.networks.get(NETWORK_NAME)
        return versions_of(pool, self._provision.supply, network, self._pools.get(pool))

    def _explain(self, owner: Owner | None, shortage: Shortage) -> str:
        supply = self._provision.supply if self._provision is not None else Supply()
        need = self.allocator.need(shortage.pool, self.service.clock()) if owner else None
        who = f"{owner.name} gets" if owner else "pods get"
        if self.outside is not None and supply.singles and not self.outside.supply:
            return telling.not_begun(who, self.context.node_name, self.outside.fault)
        return telling.shortage(who, self.context.node_name, supply, shortage, need)

    # ---------------------------------------------------------------------------------------------- what it says

    def errors(self) -> list[str]:
        """Why pods get no address, or one that they should not have; what is not as it should be."""
        found = [each for each in (self.service.unwritable, self._socket.fault, self._unseen) if each]
        if self._provision is not None:
            found += self._provision.problems
            found += telling.overlapping(self.context.node_name, self.allocator.stock.overlapping)
            if self.outside is not None and self.outside.is_concerned:
                found += [*filter(None, [self.outside.fault]), *self.outside.errors()]
            else:
                found += telling.orphans(self.context.node_name, self.allocator, self._kept)
        found += [why for _, why in self.service.failed.values()]
        return found

    def readiness(self) -> Readiness | None:
        """Whether who has which address was known from before; a node where that never was in doubt has no condition.
        Pods are given addresses all the same, so it is no error."""
        if (damage := self._damage()) is not None:
            return Readiness(
                False,
                "CheckpointLost",
                f"Node {self.context.node_name}: {self.service.checkpoint.path} was not relied on, or not wholly: "
                f"{damage.lost}. What runs was entered by what pods and the kernel's routes show; nothing is to be "
                f"done. This is told for {TOLD_SECONDS / 60:g} minutes.",
            )
        own = self.context.nodes.get(self.context.node_name)
        if own is None or all(each.type != self.condition for each in own.status.conditions):
            return None
        return Readiness(True, "Restored", "It is known who has which address.")

    def _damage(self) -> CheckpointFound | None:
        """That the checkpoint could not be relied on, as long as it is told."""
        found = self._found
        lost = found is not None and found.cause in ("node", "damage")
        return found if lost and time.monotonic() < self._found_at + TOLD_SECONDS else None

    def facts(self) -> dict[str, object]:
        """For /status."""
        now = self.service.clock()
        pools = {
            pool or "-": {f"ipv{version}": count._asdict() for version, count in self.allocator.need(pool, now).items()}
            for pool in self.allocator.pools()
        }
        found = self._found
        return {
            "addresses": {
                "pools": pools,
                "orphans": len(self.allocator.orphans()),
                "obstacle": self.service.obstacle,
                "socket": str(self._socket.path),
                "checkpoint": str(self.service.checkpoint.path),
                "checkpointLost": found.lost if found is not None else "",
            }
        }

    def metrics(self) -> Iterable[Metric]:
        """How many of which pool, and what was asked."""
        withdrawn = len(self.outside.withdrawn()) if self.outside is not None else None
        return metrics_of(self.service, withdrawn, self._found.cause if self._found is not None else None)

    # ------------------------------------------------------------------------------------------------ taking it away

    async def plan_cleanup(self) -> list[PlannedChange]:
        """The files, and a socket that nobody listens on."""
        return [PlannedChange(f"rm {path}", "addresses of pods") for path in self._left()]

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """As planned."""
        return await self.plan_cleanup(), remove_files(self._left())

    def _left(self) -> list[Path]:
        return [*files(self._state), *([self._socket.path] if self._socket.path.exists() else [])]
