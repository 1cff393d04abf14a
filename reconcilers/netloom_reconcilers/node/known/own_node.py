"""What this node's NetloomNode says of it, and what it said before and is still in use.

A restored backup, an edit, a Node made anew may leave the NetloomNode with other pod CIDRs than its pods have, or with
none, or without the node's address. Taken at its word it would cut pods off that live. So

- a CIDR that is no longer said stays while something on this node lives in it, beside the new ones; where none is said
  at all, all stay;
- the address stays until another is said.

What this node gave back itself is not among them (`give_back`): nobody lives in it, by its own allocator's account.

Each is told, with the way out. What was known survives a restart, but no reboot (as the pods), in a file of the run
directory: the addresses on the tunnel device tell no prefix length, and with native routing there is no device.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from netloom.api.holdings import block_texts
from netloom.api.ipam_modes import mode_named
from netloom.api.v1alpha1 import Address, NetloomNode, NodeIPAM, PoolAllocation
from netloom.cidr import Cidr
from netloom.kernel.mesh.occupants import occupants
from netloom.kernel.netlink.sockets import AnswerLost
from netloom.kernel.replaced_file import replace_file
from netloom_reconcilers.node.known.peers import contested_ip, internal_ip, prefixes_of

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
"""How often it is looked whether anything still lives in a CIDR that is kept."""
RECORD = "own.json"
NO_POOL = "-"
"""Of blocks that are kept; no name of an object."""

Occupants = Callable[[Collection[Cidr]], Awaitable[Mapping[Cidr, str]]]


class OwnRecord(msgspec.Struct, frozen=True, rename="camel"):
    """What the file holds. Of another node of the same machine it says nothing."""

    node: str = ""
    address: str = ""
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())


@dataclass(eq=False)
class OwnNode:
    """`look` compares with what was known; `effective` is the NetloomNode to go by. `record`: the file; None: memory
    alone."""

    node_name: str
    occupants: Occupants = occupants
    record: Path | None = None
    look_seconds: float = LOOK_SECONDS

    def __post_init__(self) -> None:
        self.kept: dict[str, str] = {}
        """CIDRs that are kept, and what was seen in them."""
        self.reason = ""
        """For the node's condition; empty if nothing is kept."""
        self._known = self._read()
        self._unwritten = False
        self._address = ""
        self._errors: list[str] = []
        self._given_back: set[str] = set()
        """Blocks that the object still holds, and is to lose."""
        self._lock = asyncio.Lock()

    async def look(self, node: NetloomNode | None, *, write: bool = True) -> float | None:
        """Takes in the node's own object as it is now; None, or CIDRs that cannot be read: all stays as it was. Returns
        after how many seconds to look again."""
        async with self._lock:
            said, unreadable = prefixes_of("", ("", block_texts(node.spec.ipam))) if node is not None else ((), ())
            if node is None or unreadable:
                return None
            lost = [
                each
                for each in prefixes_of("", ("", self._known.pod_cidrs))[0]
                if not any(mine.contains(each) for mine in said)
            ]
            kept = await self._lived_in(lost, all_of_them=not said) if lost else {}
            self._tell(kept)
            address = internal_ip(node)
            self._address = "" if address else contested_ip(node) or self._known.address
            self._explain(node, said)
            if write:
                known = OwnRecord(self.node_name, address or self._address, (*block_texts(node.spec.ipam), *self.kept))
                self._write(self._without_given_back(known))
            self._given_back &= set(block_texts(node.spec.ipam))
            return self.look_seconds if self.kept or self._unwritten else None

    def give_back(self, cidrs: Collection[Cidr]) -> None:
        """These blocks are to go from the object by this node's own will, and are not kept when they have. To be said
        before the object is written."""
        self._given_back |= set(map(str, cidrs))
        self._write(self._without_given_back(self._known))

    def take_back(self, cidrs: Collection[Cidr]) -> None:
        """They are not to go after all."""
        self._given_back -= set(map(str, cidrs))

    def _without_given_back(self, known: OwnRecord) -> OwnRecord:
        left = tuple(each for each in known.pod_cidrs if each not in self._given_back)
        return msgspec.structs.replace(known, pod_cidrs=left)

    def effective(self, node: NetloomNode | None) -> NetloomNode | None:
        """The node's own object, with what is kept of what it said before."""
        if node is None or not (self.kept or self._address):
            return node
        spec, addresses = node.spec, node.spec.addresses
        if self._address and not internal_ip(node):
            addresses = (Address(type="InternalIP", ip=self._address), *addresses)
        ipam = with_blocks(spec.ipam, self.kept) if self.kept else spec.ipam
        return msgspec.structs.replace(node, spec=msgspec.structs.replace(spec, ipam=ipam, addresses=addresses))

    def errors(self) -> list[str]:
        """What is kept, as sentences with the way out; empty if nothing is."""
        return list(self._errors)

    async def _lived_in(self, lost: list[Cidr], *, all_of_them: bool) -> dict[str, str]:
        try:
            found = dict(await self.occupants(lost))
        except (AnswerLost, OSError) as error:
            log.warning("what lives in the node's former pod CIDRs cannot be read: they stay", error=str(error))
            return {str(each): self.kept.get(str(each), "") for each in lost}
        return {str(each): found.get(each, "") for each in lost if all_of_them or each in found}

    def _tell(self, kept: dict[str, str]) -> None:
        for cidr in kept.keys() - self.kept.keys():
            log.warning("a pod CIDR is no longer this node's, and is kept", cidr=cidr, because_of=kept[cidr])
        for cidr in self.kept.keys() - kept.keys():
            log.info("a pod CIDR that was kept is given up, or said again", cidr=cidr)
        self.kept = kept

    def _explain(self, node: NetloomNode, said: Collection[Cidr]) -> None:
        where, cidrs = f"NetloomNode {self.node_name}: ", ", ".join(self.kept)
        self._errors, self.reason = [], ""
        if self._address and self._address == contested_ip(node):
            self.reason = "AddressContested"
            self._errors = [
                f"{where}spec.addresses: {self._address} is another node's, too, which has it: nothing is sent to this "
                "one. Its condition AddressReported names it, and says what to do."
            ]
        elif self._address:
            self.reason = "AddressLost"
            self._errors = [
                f"{where}spec.addresses has no IPv4 address of type InternalIP any more: {self._address}, its last, is "
                "kept. The operator writes it; let the kubelet report it."
            ]
        if not self.kept:
            return
        self.reason = "PodCIDRsChanged" if said else "PodCIDRsLost"
        if mode_named(node.spec.ipam.mode).from_pools:
            field = "spec.ipam.pools.allocated"
            what = f"does not hold {cidrs} any more, and pods still use it" if said else f"is empty, and was {cidrs}"
            self._errors += [
                f"{where}{field} {what}: this node keeps that. Its agent enters again what pods use, unless another "
                f"NetloomNode holds it; then drain Node {self.node_name}: it is given up once its pods are gone. See "
                "docs/ipam.md."
            ]
        elif not said:
            self._errors += [
                f"{where}spec.ipam.podCIDRs is empty, and was {cidrs}, which this node keeps. The operator gives it "
                "back; if there is none, enter it again."
            ]
        else:
            self._errors += [
                f"{where}spec.ipam.podCIDRs does not hold {cidrs} any more, and pods of this node still use it: this "
                f"node keeps it beside {', '.join(block_texts(node.spec.ipam))}. If no other NetloomNode holds it, add "
                f"it to spec.ipam.podCIDRs again; else drain Node {self.node_name}: it is given up once its pods are "
                "gone. See docs/allocation.md."
            ]

    def _read(self) -> OwnRecord:
        try:
            known = msgspec.json.decode(self.record.read_bytes(), type=OwnRecord) if self.record else OwnRecord()
        except (OSError, msgspec.DecodeError):
            return OwnRecord()  # there is none yet; half a file can only come from a crash of the machine
        return known if known.node == self.node_name else OwnRecord()

    def _write(self, known: OwnRecord) -> None:
        if known == self._known and not self._unwritten:
            return
        self._known = known
        if self.record is None:
            return
        told, self._unwritten = self._unwritten, True
        try:
            replace_file(self.record, msgspec.json.encode(known))
            self._unwritten = False
        except OSError as error:
            if not told:
                log.warning("what is known of this node does not survive a restart", error=str(error))


def with_blocks(ipam: NodeIPAM, texts: Collection[str]) -> NodeIPAM:
    """What a node holds and these, behind it: what is first counts for more (`netloom.api.holdings.home_blocks`)."""
    if not ipam.pools.allocated:
        return msgspec.structs.replace(ipam, pod_cidrs=tuple(dict.fromkeys((*ipam.pod_cidrs, *texts))))
    beside = PoolAllocation(pool=NO_POOL, cidrs=tuple(texts))
    pools = msgspec.structs.replace(ipam.pools, allocated=(*ipam.pools.allocated, beside))
    return msgspec.structs.replace(ipam, pools=pools)
