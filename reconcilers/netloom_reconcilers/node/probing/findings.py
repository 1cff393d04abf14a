"""What was seen on the way to a peer, in words: whether pods' packets pass, where they are lost, what to do. Pure."""

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.cidr import format_address
from netloom.kernel.probe.examination import Evidence
from netloom.kernel.probe.keeper import Egress
from netloom.kernel.probe.packets import UDP_PORT

TUNNEL_OVERHEAD = 50
NATIVE = Egress().kind

BOTH = "IPv4 and IPv6"
"""Of a text that is of both address families."""

Reason = Literal[
    "",
    "NoRoute",
    "PacketsTooLarge",
    "NoAgentThere",
    "NoDeviceThere",
    "ForwardHookDrops",
    "ForwardHookRefuses",
    "OneFamilyDropped",
    "AgentSilent",
    "NeverAnswered",
    "NoAnswerAtAll",
    "LostOneWay",
    "UnderlayPortRefused",
    "UnderlayPortDropped",
    "UnderlayUnreachable",
    "NetworkDropsPods",
]
"""Of the condition; "" where nothing is lost."""
Where = Literal["", "here", "there", "way there", "way back", "between"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """passes: None where it cannot be known, as nobody there would answer. where: they are lost. reason: for the
    condition; text: for people, with what mends it; both: the same, said of both address families at once. size,
    largest: bytes, of pods' packets and of those that pass. seconds: the round trip. seen: by which way it was looked:
    `pods`, or only `nodes`."""

    peer: str
    family: int
    way: str
    passes: bool | None
    reason: Reason = ""
    where: Where = ""
    text: str = ""
    both: str = ""
    size: int = 0
    largest: int = 0
    seconds: float = 0.0
    seen: Literal["pods", "nodes"] = "pods"


def finding(evidence: Evidence, *, alive: bool | None, switch: str = "", never: bool = False) -> Finding:
    """alive: whether the peer's agent gives signs of life; None: not known. never: no probe of this agent's was
    answered by that peer so far, and others answer. switch: of this node's, that is off and
    keeps it from forwarding, as `sysctl` names it."""
    found = evidence
    verdict: _Verdict = (True, "", "", "")
    both = ""
    if not found.passes:
        verdict, (*_, both) = (_judged(found, of, alive, switch, never) for of in (f"IPv{found.family}", BOTH))
    passes, reason, where, text = verdict
    return Finding(
        peer=found.target.name,
        family=found.family,
        way=str(found.way),
        passes=passes,
        reason=reason,
        where=where,
        text=text,
        both=both,
        size=found.size,
        largest=found.largest,
        seconds=round(found.seconds, 6),
        seen="pods" if found.device else "nodes",
    )


def not_forwarded(of: str, switch: str, refused: bool = False) -> str:
    """Why this node's own forwarding does not let pods' packets through. of: which address family, or both."""
    if switch:
        return f"this node forwards no packets of pods ({of}): {switch} is 0. `sysctl -w {switch}=1`."
    does = "refuses" if refused else "drops"
    return (
        f"this node's forward hook {does} packets of pods ({of}). `nft list ruleset` (at `hook forward`) "
        "and `iptables -S FORWARD` show by which rule; with firewalld, put the pods' networks into the zone trusted."
    )


def sentences(findings: Iterable[Finding]) -> list[str]:
    """What they say; what is said of both address families alike is said once."""
    said: dict[tuple[object, ...], Finding] = {}
    for each in findings:
        key = (each.peer, each.way, each.reason, each.where, each.size, each.largest)
        first = said.setdefault(key, each)
        if first.family != each.family and first.both:  # an older agent has but one text
            said[key] = msgspec.structs.replace(first, text=first.both)
    return list(dict.fromkeys(each.text for each in said.values() if each.text))


def told_apart(findings: Collection[Finding]) -> list[Finding]:
    """The same, of one look. Where a tunnel carries one address family to a peer, and the other is lost in it, neither
    the network between the nodes nor the tunnel's port can be the cause."""
    carried = {(each.peer, each.way): each.family for each in findings if each.passes or each.largest}
    return [
        _one_family(each, carried[each.peer, each.way])
        if each.reason in _NETWORK and each.way != NATIVE and (each.peer, each.way) in carried
        else each
        for each in findings
    ]


def _one_family(lost: Finding, passes: int) -> Finding:
    ip, tables = ("ip -6", "ip6tables") if lost.family == 6 else ("ip", "iptables")
    text = (
        f"packets of pods to {lost.peer} are lost in IPv{lost.family} and pass in IPv{passes}, through the same "
        f"tunnel ({lost.way}): so what drops them is on one of both nodes, and for IPv{lost.family} alone. Look there "
        f"for rules in other hooks than forward (`nft list ruleset`, `{tables} -t raw -S`, `{tables} -t mangle -S`), "
        f"policy rules (`{ip} rule`), IPsec (`ip xfrm policy`), and whether /status of {lost.peer} says that packets "
        "of this node are dropped as forged."
    )
    return msgspec.structs.replace(lost, passes=False, reason="OneFamilyDropped", text=text, both="")


_NETWORK: tuple[Reason, ...] = ("UnderlayPortDropped", "UnderlayUnreachable", "LostOneWay", "NeverAnswered")
"""What is said where packets are lost between the nodes, or nothing comes from there."""
_SILENT: tuple[Reason, ...] = ("UnderlayPortDropped", "NetworkDropsPods", "UnderlayUnreachable")
"""What is said where nothing at all comes from the peer's agent, which may be none that probes."""

_Verdict = tuple[bool | None, Reason, Where, str]


def _judged(found: Evidence, of: str, alive: bool | None, switch: str, never: bool) -> _Verdict:
    """of: the address family, or both, in words."""
    passes, reason, where, text = _verdict(found, of, alive, switch)
    if never and passes is False and reason in _SILENT:
        return None, "NeverAnswered", "", _never(found, of, text)
    return passes, reason, where, text


def _verdict(found: Evidence, of: str, alive: bool | None, switch: str) -> _Verdict:
    name, way = found.target.name, found.way
    pods = f"packets of pods to {name} ({of}, {way})"
    if not way.device:
        return (
            False,
            "NoRoute",
            "here",
            f"{pods} have no route on this node; DataplaneReady, or a warning of /status, says why.",
        )
    if found.largest:
        return _too_large(found, of)
    if found.host == "refused" and found.forwards is not False:
        what = f"{name}: no agent answers there (UDP port {UDP_PORT}), so it is not known whether packets of pods pass."
        return None, "NoAgentThere", "", f"{what} Its Lease, or its features, say why."
    if found.forwards is False:
        refused = found.rejected is not None and found.rejected.kind == "filter"
        return False, "ForwardHookDrops", "here", not_forwarded(of, switch, refused)
    if found.rejected is not None and found.rejected.kind == "filter":
        return _refused(found, of)
    if not found.peer_device:
        what = f"{name}: its agent has no device for the probe, so it is not known whether packets of pods pass."
        return None, "NoDeviceThere", "", f"{what} Its condition PodTrafficPasses says what it lacks."
    if found.host == "answered":
        return _in_forward_hook(found, of)
    return _silent(found, of, alive)


def _too_large(found: Evidence, of: str) -> _Verdict:
    carries = found.largest + (TUNNEL_OVERHEAD if found.way.port else 0)
    text = (
        f"packets of up to {found.largest} bytes pass to {found.target.name} ({of}, {found.way}), "
        f"those of {found.size} bytes, which pods send, do not: the network between the nodes carries {carries} bytes. "
        f"In NetloomNetwork {NETWORK_NAME} set spec.mtu to {carries}, or let the network carry more."
    )
    return False, "PacketsTooLarge", "between", text


def _refused(found: Evidence, of: str) -> _Verdict:
    assert found.rejected is not None
    name, by = found.target.name, found.rejected.by
    there = by in (found.target.host, found.target.underlay)
    who = f"the forward hook of {name}" if there else f"a filter at {format_address(by)}"
    text = (
        f"{who} refuses packets of pods from this node to {name} ({of}). There, `nft list ruleset` and "
        "`iptables -S FORWARD` show by which rule; with firewalld, put the pods' networks into the zone trusted."
    )
    return False, "ForwardHookRefuses", "there" if there else "between", text


def _in_forward_hook(found: Evidence, of: str) -> _Verdict:
    name, device = found.target.name, found.way.device
    if not found.peer_forwards:
        text = (
            f"the forward hook of {name} drops packets of pods ({of}), or forwarding is off there: its "
            "condition PodTrafficPasses says which."
        )
        return False, "ForwardHookDrops", "there", text
    if found.seen:
        lost, first, then = (
            "answers from",
            f"{name} (what leaves by its tunnel)",
            f"this node (what comes in by {device})",
        )
    else:
        lost, first, then = "packets to", f"this node (what leaves by {device})", f"{name} (what comes in)"
    text = (
        f"{lost} {name} ({of}, {found.way}) are lost when pods send them, and pass when the nodes "
        f"themselves do: a filter in the forward hook drops them, of {first} or of {then}. `nft list ruleset` and "
        "`iptables -S FORWARD` show it."
    )
    where: Where = "way back" if found.seen else "way there"
    return False, "ForwardHookDrops", where, text


def _never(found: Evidence, of: str, text: str) -> str:
    return (
        f"{found.target.name} never answered this agent ({of}, {found.way}), and others do: either its "
        f"agent does not probe (an older one, or without the feature `probe`) and its INPUT chain drops UDP port "
        f"{UDP_PORT}, or {text}"
    )


def _untracked(found: Evidence) -> str:
    """What also drops a tunnel's packets, where the port is let in."""
    if not found.way.port:
        return ""
    return (
        f" Where it is allowed: a rule with a state (`ctstate NEW`) does not match these packets, which are not "
        f"tracked, so let the port in without a state; or {found.target.name} drops them as a stranger's: its /status "
        "says so, and until its nodes' addresses are right, `spec.routing.tunnelSenders: any` lets them in."
    )


def _silent(found: Evidence, of: str, alive: bool | None) -> _Verdict:
    name, way = found.target.name, found.way
    underlay = format_address(found.target.underlay) if found.target.underlay else "its node"
    port = f"UDP port {way.port} ({way.kind})"
    if alive is False:
        return None, "AgentSilent", "", f"{name}: its agent gives no sign of life, so nobody there would answer."
    if found.heard:
        what = port if way.port else "packets with pods' addresses"
        text = (
            f"packets from this node to {name} ({of}, {way}) are lost on the way, those from there "
            f"arrive. Look for what drops {what} in that one direction: from this node to {underlay}."
            f"{_untracked(found)}"
        )
        return False, "LostOneWay", "way there", text
    if found.ping and found.port_refused:
        text = (
            f"{name} ({underlay}) answers ping, and refuses {port}: a firewall there rejects it, or no tunnel device "
            f"is there. `ip link show type {way.kind}` on {name} shows the device; allow {port} between all nodes."
        )
        return False, "UnderlayPortRefused", "there", text
    if found.ping and way.port:
        text = (
            f"{name} ({underlay}) answers ping, and nothing comes back through the tunnel: a firewall at the network "
            f"between the nodes, or on one of both, drops {port}. Allow it between all nodes, both ways."
            f"{_untracked(found)}"
        )
        return False, "UnderlayPortDropped", "between", text
    if found.ping:
        text = (
            f"{name} ({underlay}) answers ping, and packets of pods ({of}, native) are lost: the network "
            "between the nodes does not carry pods' addresses. It needs routes to the pod CIDRs, and must not filter "
            "by source (anti-spoofing, source/destination check)."
        )
        return False, "NetworkDropsPods", "between", text
    if alive is None:
        text = f"{name} ({underlay}) does not answer at all, and it is not known whether it lives."
        return None, "NoAnswerAtAll", "", text
    pinged = f"{underlay} does not answer ping either" if found.ping is False else "this process may send no ping"
    text = (
        f"{name}: its agent gives signs of life, and nothing comes back from it "
        f"({of}, {way}); {pinged}. Look at the network between this node and "
        f"{underlay}: routes, firewall, cable."
    )
    return False, "UnderlayUnreachable", "between", text
