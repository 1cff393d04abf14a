"""nftables as a part: the filter tables of iptables-nft, which are tables like others, and all other filters that see
forwarded packets.

Written by netlink, and not by iptables-nft: it takes no program, in no version; each change is one transaction beside
everybody else's, and the rules of others are not written back.
"""

import errno
from collections.abc import Iterator
from typing import ClassVar

from netloom.kernel.forwarding import reading
from netloom.kernel.forwarding.blocked import blocked, is_iptables
from netloom.kernel.forwarding.opening import FORWARD, Due, ForwardingState
from netloom.kernel.forwarding.part import ForwardPart, ForwardSeen
from netloom.kernel.forwarding.underlay import device_to
from netloom.kernel.keeper.part import Worker
from netloom.kernel.netlink import expressions as e
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.nftables import request
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError
from netloom.kernel.ownership import FORWARD_CHAIN

_TABLE = "filter"


class NftForward(ForwardPart):
    """See the module."""

    programs: ClassVar = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}
    state = ("dump", "nftables, forward hook")
    groups = ("nftables",)
    kinds = reading.KINDS

    def __init__(self) -> None:
        super().__init__()
        self._ruleset = reading.Ruleset()
        self._chains_due = True

    def doubt(self) -> None:
        """The chains, too."""
        super().doubt()
        self._chains_due = True

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event: nothing is to be read for what no forwarded packet sees."""
        what = reading.changed(self._ruleset, kind & 0xFF, buffer, start, end)
        self.due = self.due or bool(what)
        self._chains_due = self._chains_due or what == "chains"

    def find(self, commands: CommandSocket, desired: ForwardingState) -> ForwardSeen:
        """Read all that is at the forward hook."""
        known, self._chains_due = None if self._chains_due else self._ruleset.found, False
        try:
            self._ruleset = reading.read(commands, known)
        except RefusedError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self._ruleset = reading.Ruleset()  # this kernel has no nftables, so nothing is in it
        underlay = device_to(desired.peer)
        others = [base for base in self._ruleset.bases if not (desired.accept and is_iptables(base))]
        tables = self._ruleset.tables
        return ForwardSeen(
            {
                family: chains
                for (family, table), chains in tables.items()
                if table == _TABLE and family in self.programs
            },
            underlay,
            tuple(
                each for base in others for each in blocked(base, tables[base.family, base.table], desired, underlay)
            ),
        )

    async def write(self, worker: Worker, family: str, due: Due) -> str:
        """One transaction."""
        requests = list(_requests(family, due, self._desired))
        self._chains_due = True
        refusals = await worker.submit([message for _what, message in requests])
        for place, refusal in sorted(refusals.items()):
            what = requests[place][0] if place < len(requests) else "write it"
            return f"{what}: {refusal}"
        return ""


def _requests(family: str, due: Due, desired: ForwardingState) -> Iterator[tuple[str, bytes]]:
    """What to do, in words, and as a request. Rules have a counter, as iptables gives every rule one."""
    number = reading.NUMBERS[family]
    chain = {"table": _TABLE, "chain": FORWARD_CHAIN}
    forward = {"table": _TABLE, "chain": FORWARD}
    for rule in due.jumps:
        yield "remove the jump from FORWARD", request(nftables.DELRULE, number, **forward, handle=rule.handle)
    if due.chain and (due.wrong or not due.needed):
        yield "empty the chain", request(nftables.DELRULE, number, **chain)
    if due.chain and not due.needed:
        yield "remove the chain", request(nftables.DELCHAIN, number, table=_TABLE, name=FORWARD_CHAIN)
    if due.needed and not due.chain:
        yield "make the chain", request(nftables.NEWCHAIN, number, table=_TABLE, name=FORWARD_CHAIN)
    for cidr in desired.of(family) if due.wrong else ():
        for destination in (False, True):
            asked = e.address_within(cidr.packed, cidr.length, destination=destination)
            added = asked + e.counter() + e.verdict(e.ACCEPT)
            yield "add a rule", request(nftables.NEWRULE, number, **chain, expressions=added)
    if due.before is not None:
        place = {"position": due.rule.handle} if due.rule is not None else {}
        added = e.counter() + e.verdict(e.JUMP, FORWARD_CHAIN)
        yield "jump there from FORWARD", request(nftables.NEWRULE, number, **forward, **place, expressions=added)
