"""Whether others' packets may be forwarded on this machine: then forwarding is not switched off when ours are gone.

Which program relies on it, nobody can tell: a container network that found it on has written nothing. So any sign
counts: two devices between which packets may pass, or somebody's translation of addresses (as kube-proxy's, by which a
packet may leave by the only device there is).
"""

from pathlib import Path

import structlog

from netloom.api.words import some
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.keeper import D, Keeper, R
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.links import Link, dump_links, read_link
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all
from netloom.kernel.netlink.wire import attributes, text
from netloom.kernel.ownership import DEVICE_PREFIX
from netloom.kernel.sysctl import SysctlRecord

log = structlog.get_logger(__name__)

_LEGACY = Path("/proc/thread-self/net/ip_tables_names"), Path("/proc/thread-self/net/ip6_tables_names")
_SINKS = frozenset(("dummy", "ifb"))
_ONE_OF_MANY = frozenset(("bond", "team"))
_TABLE, _USED, _TYPE = 1, 6, 7


def forwarders(commands: CommandSocket) -> str:
    """By what others' packets may be forwarded, for people: `docker0 and eth0`; empty if by nothing. Raises OSError."""
    links = read_all(commands, dump_links(), read_link)
    return _devices(links) or translations()


class RestoringKeeper(Keeper[D, R]):
    """Of parts that set switches of the kernel, and record in `_record` how they were."""

    _record: SysctlRecord

    async def plan_cleanup(self) -> list[PlannedChange]:
        """What `cleanup` would do. Writes nothing, needs no capability."""
        changes = await super().plan_cleanup()
        due = await self._connect().call(lambda commands: self._record.due(shared=self._shared(commands)))
        return changes + [PlannedChange(f"sysctl -w {each.dotted}={each.value}", "as before") for each in due]

    async def cleanup(self) -> R:
        """Remove all that is owned, and put the switches back, but for those that others may rely on."""
        report = await super().cleanup()
        restored = await self._connect().call(lambda commands: self._record.restore(shared=self._shared(commands)))
        for sysctl in restored:
            log.info("switch restored", sysctl=sysctl.name, value=sysctl.value)
        return report

    async def left(self) -> list[str]:
        """The switches that others may rely on, and how to switch them."""
        others = await self._connect().call(lambda commands: forwarders(commands) if self._record.left() else "")
        return [self._record.sentence(others)] if others else []

    def _shared(self, commands: CommandSocket) -> bool:
        return bool(self._record.left() and forwarders(commands))


def _devices(links: list[Link]) -> str:
    bundles = {link.ifindex for link in links if link.kind in _ONE_OF_MANY}
    found = sorted(
        link.name
        for link in links
        if link.up
        and link.name != "lo"
        and not link.name.startswith(DEVICE_PREFIX)
        and link.kind not in _SINKS
        and link.master not in bundles
    )
    return f"the devices {some(found)}" if len(found) > 1 else ""


def translations() -> str:
    """Whose rules translate addresses, for people; empty if nobody's but ours. What cannot be read counts."""
    try:
        if any("nat" in path.read_text(encoding="ascii").split() for path in _LEGACY if path.exists()):
            return "rules of iptables' nat table"
        return next((f"rules of nft table {name}" for name in _foreign_nat_tables()), "")
    except KernelUnsupported:
        return ""
    except (PermissionError, RefusedError):
        return "rules that take CAP_NET_ADMIN to read"


def _foreign_nat_tables() -> list[str]:
    def read(buffer: bytes, start: int, end: int) -> str | None:
        found = attributes(buffer, start + 4, end)
        name = text(found[_TABLE])
        if found.get(_TYPE) != b"nat\0" or not int.from_bytes(found.get(_USED, b""), "big"):
            return None
        return None if name == "netloom" or name.startswith("netloom-") else name

    commands = NftablesSocket()
    try:
        return sorted({name for name in read_all(commands, nftables.request(nftables.GETCHAIN, 0), read) if name})
    finally:
        commands.close()
