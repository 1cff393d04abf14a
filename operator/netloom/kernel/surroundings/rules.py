"""Policy rules (`ip rule`) as the kernel lists them, and which of them may lead pods past the main table. Pure.

Routes to other nodes' pods are in the main table. A rule that is asked before it, and that a packet of a pod matches,
can send it elsewhere. Whether one does is not worked out here: the kernel is asked about packets that match it (see
`detours`). So a rule has to be left out only where no packet of a pod can match it.
"""

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.netlink.messages import RuleMessage, decode
from netloom.kernel.netlink.wire import RT_TABLE_LOCAL
from netloom.kernel.ownership import ROUTE_TABLE

_LOOKUP, _GOTO, _NOTHING = 1, 2, 3
REFUSING = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
"""Actions that end a packet's way (FR_ACT_*, linux/fib_rules.h)."""
_INVERTED = 2
_OF_LOCAL_SOCKETS = ("FRA_UID_RANGE", "FRA_OIFNAME", "FRA_TUN_ID")
_SELECTING = (
    *("FRA_DST", "FRA_SRC", "FRA_IIFNAME", "FRA_FWMARK", "FRA_L3MDEV", *_OF_LOCAL_SOCKETS),
    *("FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE"),
)
_ALL_PORTS = {"start": 0, "end": 0}
_NEVER = 0xFFFF_FFFF
_UNREACHABLE = 7


class PolicyRule(msgspec.Struct, frozen=True):
    """A rule. table: that it leads to; 0: none. source, destination, incoming (a device): what it matches, None or ""
    for all packets; inverted: it matches what these do not. protocol, ports, tos: that it is limited to; of port ranges
    the first, and the last. local: it matches only packets of this machine's own programs, or such as no pod sends.
    plain: it matches every packet, and lets every route of its table count.
    """

    priority: int
    family: int
    table: int
    action: int
    source: Cidr | None = None
    destination: Cidr | None = None
    incoming: str = ""
    inverted: bool = False
    local: bool = False
    mark: int = 0
    mask: int = 0
    tos: int = 0
    protocol: int = 0
    source_port: int = 0
    port: int = 0
    last_source_port: int = 0
    last_port: int = 0
    vrf: bool = False
    plain: bool = False

    @property
    def is_end(self) -> bool:
        """Whether it stands for the end of the rules (`before_main`), and is none."""
        return self.priority > _NEVER

    @property
    def text(self) -> str:
        """As `ip rule` prints it, and takes it to delete it, but for its priority."""
        words = ["not"] if self.inverted else []
        words += ["from", str(self.source) if self.source else "all"]
        words += ["to", str(self.destination)] if self.destination else []
        words += ["iif", self.incoming] if self.incoming else []
        words += [f"fwmark {self.mark:#x}/{self.mask:#x}"] if self.mask else []
        words += [f"tos {self.tos:#x}"] if self.tos else []
        words += [f"ipproto {self.protocol}"] if self.protocol else []
        words += [f"sport {_range(self.source_port, self.last_source_port)}"] if self.source_port else []
        words += [f"dport {_range(self.port, self.last_port)}"] if self.port else []
        words += [f"lookup {self.table}"] if self.table else [REFUSING.get(self.action, "")]
        return " ".join(filter(None, words))

    @property
    def matched_source(self) -> Cidr | None:
        """Where packets that it matches come from, None for anywhere."""
        return None if self.inverted else self.source

    @property
    def matched_destination(self) -> Cidr | None:
        """Where packets that it matches go, None for anywhere."""
        return None if self.inverted else self.destination

    @property
    def matched_incoming(self) -> str:
        """The device by which packets that it matches come, "" for any."""
        return "" if self.inverted else self.incoming

    def may_match_pods(self) -> bool:
        """Whether a packet that comes from a pod or for one, with no mark, may match it and go elsewhere by it."""
        if self.action == _LOOKUP and self.table in (ROUTE_TABLE, RT_TABLE_LOCAL):
            return False
        if self.action not in (_LOOKUP, *REFUSING) or self.vrf or self.local:
            return False
        return self.inverted or not self.mark & self.mask


def read_rule(buffer: bytes, start: int, _end: int) -> PolicyRule:
    """An RTM_NEWRULE."""
    seen = decode(RuleMessage, buffer, start)
    table, action, tos, get = seen["table"], seen["action"], seen["tos"], seen.get_attr
    source, destination, incoming = get("FRA_SRC"), get("FRA_DST"), get("FRA_IIFNAME") or ""
    source_ports, ports = (get(name) or _ALL_PORTS for name in ("FRA_SPORT_RANGE", "FRA_DPORT_RANGE"))
    mark, mask = get("FRA_FWMARK"), get("FRA_FWMASK")
    selects = bool(tos) or any(get(name) is not None for name in _SELECTING)
    suppresses = get("FRA_SUPPRESS_PREFIXLEN", _NEVER) != _NEVER
    return PolicyRule(
        priority=get("FRA_PRIORITY", 0),
        family=seen["family"],
        table=get("FRA_TABLE", table) if action == _LOOKUP else 0,
        action=action,
        source=Cidr.of(source, seen["src_len"]) if source else None,
        destination=Cidr.of(destination, seen["dst_len"]) if destination else None,
        incoming=incoming,
        inverted=bool(seen["flags"] & _INVERTED),
        # By the user of a local socket, the device that one is bound to, or packets that this machine sends itself.
        local=incoming == "lo" or any(get(name) is not None for name in _OF_LOCAL_SOCKETS),
        mark=mark or 0,
        mask=0 if mark is None and mask is None else _NEVER if mask is None else mask,
        tos=tos,
        protocol=get("FRA_IP_PROTO", 0),
        source_port=source_ports["start"],
        port=ports["start"],
        last_source_port=source_ports["end"],
        last_port=ports["end"],
        vrf=get("FRA_L3MDEV") is not None,
        plain=not (selects or suppresses) and action == _LOOKUP,
    )


def _range(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


def before_main(rules: list[PolicyRule]) -> list[PolicyRule]:
    """Of the rules of one family those that are asked before the main table, and that a pod's packet may match.

    Where no rule has every packet asked in the main table (`ip rule flush` leaves the local table's alone), the end of
    the rules is one more: the kernel refuses what comes so far.
    """
    ordered = sorted(rules, key=lambda rule: rule.priority)
    main = next((rule.priority for rule in ordered if rule.plain and rule.table == ROUTE_TABLE), _NEVER + 1)
    asked = [rule for rule in ordered if rule.priority < main and rule.may_match_pods()]
    if ordered and main > _NEVER:
        asked.append(PolicyRule(priority=_NEVER + 1, family=ordered[0].family, table=0, action=_UNREACHABLE))
    return asked
