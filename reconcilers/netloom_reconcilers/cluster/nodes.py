"""The nodes reconciler: a NetloomNode for every Node, with its pod CIDRs in the first write.

docs/allocation.md has the protocol and the proof. What this module adds to the ledgers' rules is the look at the world
that they ask for: before a NetloomNode is deleted, the API server is asked whether the Node is really gone, since a
cache may lag.

A Node that is re-created under its name keeps the CIDR, if its NetloomNode is still there or its block was not freed
yet: its pods may still be running. In mode `kubernetes` the new Node may come with other CIDRs; then the NetloomNode
of the old one is deleted first.

A Node that is left out gets nothing, and gives back what it has when none of its pods uses it (`left_out`). A newcomer
to which nobody could send is given nothing, either.
"""

from netloom.api.core import Node
from netloom.api.holdings import blocks, holds, is_in_use
from netloom.api.ipam_modes import IpamMode, mode_named
from netloom.api.odd_addresses import in_pod_cidr, is_usable, no_address, odd_addresses
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import Address, NetloomNode, NodeIPAM
from netloom.cidr import Version
from netloom.ipam import settings as ipam_settings
from netloom.ipam import wants as pool_wants
from netloom.ipam.plan import BlockRequest, Grant, Want
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation import node_objects, waiting
from netloom_reconcilers.cluster.allocation.block_returns import BlockReturns
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import BlocksFreed, Incarnation, Member, NodesAffected
from netloom_reconcilers.cluster.allocation.last_known_addresses import LastKnownAddresses
from netloom_reconcilers.cluster.allocation.left_out import LeftOut
from netloom_reconcilers.cluster.allocation.node_writes import NodeWrites
from netloom_reconcilers.cluster.allocation.outside_addresses import OutsideAddresses
from netloom_reconcilers.cluster.allocation.waiting import LAG_SECONDS, Reason, WaitingNodes

ADDRESS_SECONDS = 30.0
"""How long a Node that reports no address is not complained about."""


class NodesReconciler(Member):
    """One key is one node's name."""

    def __init__(
        self,
        incarnation: Incarnation,
        commits: CommitQueue,
        configuration: AllocationConfiguration,
        addresses: LastKnownAddresses,
        left_out: LeftOut,
        outside: OutsideAddresses,
        waiting_nodes: WaitingNodes,
        writes: NodeWrites,
    ) -> None:
        super().__init__(incarnation)
        self._commits = commits
        self._configuration = configuration
        self._addresses = addresses
        self._left_out = left_out
        self._outside = outside
        self._unreached: dict[str, float] = {}
        self._waiting = waiting_nodes
        self._writes = writes
        self._returns = BlockReturns(incarnation, commits, writes)

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [
            self._netloom_nodes.subscribe(self._netloom_node_changed),
            self._nodes.subscribe(lambda key, old, new: self._publish(NodesAffected((key,)))),
        ]

    async def reconcile(self, name: str) -> float | None:
        """Makes the NetloomNode `name` what its Node asks for."""
        node, obj = self._nodes.get(name), self._netloom_nodes.get(name)
        if obj is not None and obj.metadata.deletion_timestamp:
            return None  # its removal will be an event
        self._addresses.look(name)
        if node is not None and name in self._left_out.names:
            return await self._leave_out(node, obj)
        self._left_out.let_go(name)
        if node is not None:
            return await (self._allocate(node, None) if obj is None else self._follow(node, obj))
        if obj is None:
            self._forget(name)
            return await self._returns.release(name, self._allocator.assignments.entered(name), gone=True)
        if node_objects.owner_of(obj) is None:
            return await self._stray(obj)
        # That the Node is gone, the cache alone is not believed.
        if await self._writes.live(self._nodes, name) is not None:
            return LAG_SECONDS
        return await self._writes.delete(obj)

    # A Node without a NetloomNode

    async def _allocate(self, node: Node, obj: NetloomNode | None) -> float | None:
        if self._mode.from_pools:
            return await self._serve(node, obj)
        request = self._request(node, obj)
        if isinstance(request, Problem):
            return await self._writes.refuse(obj or node, request)
        if self._mode.from_outside:
            if (unreachable := self._unreachable(node, obj)) is not None:
                return await self._wait_for_address(node, unreachable)
            return LAG_SECONDS if await self._writes.make(node) is None else self._outside.wait(node.metadata.name)
        return await self._give(node, obj, request)

    def _request(self, node: Node, obj: NetloomNode | None) -> BlockRequest | Problem:
        name = node.metadata.name
        settings = self._configuration.settings
        if settings is None:
            return waiting.problem(name, "NoNetwork", "there is no NetloomNetwork.", "Create one.")
        if not settings.rules.is_implemented:
            return ipam_settings.not_implemented(settings.mode)
        if not settings.rules.from_node:
            lacking = self._lacks(obj) if obj is not None else [each.version for each in settings.families]
            wants = tuple(Want("", version) for version in lacking)
            return BlockRequest(name, settings.mode, wants=wants, partly=len(wants) < len(settings.families))
        if not node.brought:
            return waiting.problem(name, "PodCIDRsMissing", "Node spec.podCIDRs is empty.", _who_writes(settings.rules))
        cidrs = ipam_settings.brought(node)
        return cidrs if isinstance(cidrs, Problem) else BlockRequest(name, settings.mode, cidrs)

    async def _give(
        self, node: Node, obj: NetloomNode | None, request: BlockRequest, why: Reason | None = None
    ) -> float | None:
        """Gives the node what is granted. `why`: it waits all the same, for something else."""
        name = node.metadata.name
        if (unreachable := self._unreachable(node, obj)) is not None:
            return await self._wait_for_address(node, unreachable)
        entered = self._allocator.assignments.entered
        stale = [cidr for cidr in entered(name) if request.cidrs and cidr not in request.cidrs]
        again = await self._returns.release(name, stale, gone=False)
        decision = await self._commits.ask(request)
        assert decision is not None, "only adoptions end without a grant"
        if not isinstance(decision, Grant):
            waits = await self._writes.refuse(obj or node, waiting.refused(name, decision))
            spare = self._returns.spare(name, obj) if request.partly else ()
            return _sooner(waits, await self._returns.give_back(name, spare))
        self._unreached.pop(name, None)
        if decision.short is not None:
            why = waiting.refused(name, decision.short)
        if why is None:
            self._waiting.remove(name)
        later = await self._writes.give(node, obj, decision, fine=why is None)
        written = self._netloom_nodes.get(name)
        if why is not None and written is not None:
            later = _sooner(later, await self._writes.refuse(written, why))
        if any(cidr not in decision.cidrs for cidr in self._returns.spare(name, obj)):
            # Operators that disagreed entered the node twice. Our own write is no event, so nothing else would
            # ever come back to free what it does not hold.
            return LAG_SECONDS
        return _sooner(later, again)

    # What a node asks of pools

    async def _serve(self, node: Node, obj: NetloomNode | None) -> float | None:
        """Gives the node what it asks for beside what it has, as far as there is any; it can begin with nothing."""
        name, settings = node.metadata.name, self._configuration.settings
        assert settings is not None, "a mode is a network's"
        asked = pool_wants.asked(name, obj.spec.ipam if obj is not None else NodeIPAM(), settings)
        if asked.wants:
            request = BlockRequest(name, settings.mode, wants=asked.wants, partly=True)
            return await self._give(node, obj, request, asked.problem)
        if obj is None:
            if (unreachable := self._unreachable(node, obj)) is not None:
                return await self._wait_for_address(node, unreachable)
            if (obj := await self._writes.make(node)) is None:
                return LAG_SECONDS
        if asked.problem is None:
            return await self._satisfied(obj)
        again = await self._writes.refuse(obj, asked.problem)
        return _sooner(again, await self._returns.give_back(name, self._returns.spare(name, obj)))

    async def _satisfied(self, obj: NetloomNode) -> float | None:
        """It has all that it is to have, and gives back what it has not."""
        name = obj.metadata.name
        self._waiting.remove(name)
        await self._writes.fine(obj)
        return await self._returns.give_back(name, self._returns.spare(name, obj))

    def _unreachable(self, node: Node, obj: NetloomNode | None) -> Problem | None:
        """Why nobody could send to a newcomer. One that had a block before is given it again, whatever it reports."""
        name = node.metadata.name
        if self._addresses.has_any(name):
            return None
        if self._allocator.assignments.entered(name) or self._allocator.former.of(name):
            return None
        if any(each.type != "ExternalIP" for each in self._addresses.of(node, obj).addresses):
            return None
        for number, each in enumerate(node.status.addresses):
            address = Address(type=each.type, ip=each.address)
            if is_usable(address.ip) and (block := self._addresses.in_pod_cidr(address, obj)) is not None:
                return in_pod_cidr(node, number, block)
        return next(odd_addresses(node), None) or no_address(node)

    async def _wait_for_address(self, node: Node, why: Problem) -> float | None:
        """A cloud controller may need a moment for the addresses of a new Node; then it is told."""
        name = node.metadata.name
        since = self._unreached.setdefault(name, self._clock())
        if why.reason == "NodeAddressMissing" and (rest := since + ADDRESS_SECONDS - self._clock()) > 0:
            return rest
        return await self._writes.refuse(node, why)

    # A Node with its NetloomNode

    async def _follow(self, node: Node, obj: NetloomNode) -> float | None:
        name = obj.metadata.name
        owner = node_objects.owner_of(obj)
        if owner is not None and owner.uid != node.metadata.uid:
            live = await self._writes.live(self._nodes, name)
            if live is None or live.metadata.uid != node.metadata.uid:
                return LAG_SECONDS
            if self._cannot_keep(live, obj):
                if live.brought:
                    return await self._writes.delete(obj)
                return await self._writes.refuse(
                    obj, _differing(live, obj, self._mode)
                )  # which it will get decides about the object
        if not any(blocks(obj.spec.ipam)) and not (self._mode.from_outside or self._mode.from_pools):
            stray = self._outside.stray(obj, self._mode)
            return await (self._writes.refuse(obj, stray) if stray else self._allocate(node, obj))
        more = self._brings_more(node, obj) or bool(self._lacks(obj))
        why: Reason | None = node_objects.unusable(obj) or await self._adopt(obj)
        if why is None and not more and self._cannot_keep(node, obj):
            why = _differing(node, obj, self._mode)
        known = self._addresses.of(node, obj)
        patch = node_objects.difference(node, obj, self._configuration.mode, known.addresses)
        if patch:
            written = await self._writes.patch(obj, patch)
            if written is None:
                return LAG_SECONDS
            obj = written
        told = await self._addresses.tell(obj, known)
        if told is not None:
            self._writes.store(told)
            obj = told
        if why is not None:
            return await self._writes.refuse(obj, why)
        if more or self._mode.from_pools:
            return await self._allocate(node, obj)
        if self._mode.from_outside and (wrong := self._outside.wrong(obj)) is not None:
            return await self._writes.refuse(obj, wrong)
        self._waiting.remove(name)
        wait = self._outside.wait(name)
        return wait if wait is not None else await self._satisfied(obj)

    @property
    def _mode(self) -> IpamMode:
        return mode_named(self._configuration.mode)

    def _cannot_keep(self, node: Node, obj: NetloomNode) -> bool:
        """Whether a re-created Node brings other CIDRs than those of its predecessor's NetloomNode."""
        if not self._mode.from_node or not holds(obj.spec.ipam):
            return False
        cidrs = ipam_settings.brought(node)
        return isinstance(cidrs, Problem) or set(cidrs) != set(node_objects.held(obj))

    def _brings_more(self, node: Node, obj: NetloomNode) -> bool:
        """Whether the Node has a CIDR of a second family now, beside the one that its NetloomNode holds."""
        if not self._mode.from_node:
            return False
        cidrs = ipam_settings.brought(node)
        return not isinstance(cidrs, Problem) and set(cidrs) > set(node_objects.held(obj))

    def lacking(self) -> list[str]:
        """Nodes that are still to be given a block of a family, which the cluster's CIDRs have since they joined."""
        return [each.metadata.name for each in self._netloom_nodes.values() if self._lacks(each)]

    def _lacks(self, obj: NetloomNode) -> list[Version]:
        """Families of which the cluster's CIDRs have blocks, and the node none."""
        settings = self._configuration.settings
        if settings is None or not settings.rules.from_network:
            return []
        held = {cidr.version for cidr in node_objects.held_blocks(obj)}
        return [each.version for each in settings.families if each.version not in held]

    async def _adopt(self, obj: NetloomNode) -> Reason | None:
        """Enters what the object holds into the ledgers, where it is missing there."""
        name, mode = obj.metadata.name, self._configuration.mode
        if self._mode.from_outside:
            return await self._outside.open(obj, mode)
        unrecorded = self._allocator.assignments.unrecorded.get(name)
        if not unrecorded or not self._mode.is_implemented:
            return None
        if obj.spec.ipam.mode not in ("", mode):
            message = f"it holds addresses of IPAM mode {obj.spec.ipam.mode}, and the mode in force is {mode}."
            way_out = "Remove the Node (and this object with it), and let it join again."
            return waiting.problem(name, "ModeLocked", message, way_out)
        since = obj.metadata.creation_timestamp
        decision = await self._commits.ask(BlockRequest(name, mode, unrecorded, adopt=True, since=since))
        assert not isinstance(decision, Grant), "an adoption is no grant"
        return None if decision is None else waiting.refused(name, decision)

    # A Node that is left out

    async def _leave_out(self, node: Node, obj: NetloomNode | None) -> float | None:
        """Takes back what it has, once no pod of it uses that. One made by hand is its maker's."""
        name = node.metadata.name
        if obj is not None and node_objects.owner_of(obj) is None:
            return None
        entered = self._allocator.assignments.entered(name)
        cidrs = {*entered, *(node_objects.lived_in(obj) if obj is not None else ())}
        if obj is None and not cidrs:
            self._forget(name)
            self._left_out.let_go(name)
            return None
        confirmed = await self._left_out.confirmed(name)
        if confirmed is None:
            return LAG_SECONDS
        if cidrs and await self._left_out.held_by_pods(confirmed, cidrs):
            return self._left_out.recheck()
        self._forget(name)
        return await (self._returns.release(name, entered, gone=False) if obj is None else self._writes.delete(obj))

    def _forget(self, name: str) -> None:
        """It waits for nothing, and has no claim to what it had."""
        self._waiting.remove(name)
        self._writes.forget(name)
        self._unreached.pop(name, None)
        self._allocator.forget(name)

    # A NetloomNode without a Node

    async def _stray(self, obj: NetloomNode) -> float | None:
        """Made by hand: its CIDRs are respected, and it is for its maker to delete."""
        name = obj.metadata.name
        if await self._writes.live(self._nodes, name) is not None:
            return LAG_SECONDS
        why: Reason | None = node_objects.unusable(obj) or await self._adopt(obj)
        if why is None:
            message = f"there is no Node {name}, and nobody else gets the CIDRs of this NetloomNode."
            why = waiting.problem(name, "NoSuchNode", message, "Delete it to give them back, or let the Node join.")
        return await self._writes.refuse(obj, why)

    def _netloom_node_changed(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if old is None or new is None or (old.spec.ipam, old.status.ipam) != (new.spec.ipam, new.status.ipam):
            if self._allocator.hold(key, node_objects.held_blocks(new) if new is not None else ()):
                self._publish(BlocksFreed())
            self._outside.note(key, new)
            if new is None or not is_in_use(new):
                self._commits.wake()
        if not self._writes.is_own(key, new=old is None):
            self._publish(NodesAffected((key,)))


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _who_writes(mode: IpamMode) -> str:
    return f"In IPAM mode {mode.name}, {mode.writer}."


def _said(node: Node) -> str:
    if not node.brought:
        return "Node spec.podCIDRs is empty"
    field = "spec.podCIDRs" if node.spec.pod_cidrs else "metadata.annotations"
    return f"Node {field} is {', '.join(text for _, text in node.brought)}"


def _differing(node: Node, obj: NetloomNode, mode: IpamMode) -> Problem:
    message = (
        f"{_said(node)}, but the NetloomNode holds "
        f"{', '.join(map(str, node_objects.held(obj)))}, which is not changed while the node lives."
    )
    way_out = "Delete the Node and let it join again." if node.brought else _who_writes(mode)
    return waiting.problem(node.metadata.name, "PodCIDRsDiffer", message, way_out)
