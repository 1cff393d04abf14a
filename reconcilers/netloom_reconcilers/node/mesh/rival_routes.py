"""What to say of routes that somebody else made, and that packets to other nodes' pods take. Pure."""

from collections.abc import Sequence

from netloom.kernel.mesh.rivals import RivalRoute

_DAEMONS = {8, 11, 12, 42, 186, 187, 188, 189, 192}
"""rtm_protocol of routing daemons (gated, zebra, bird, babel, bgp, isis, ospf, rip, eigrp): linux/rtnetlink.h."""

_NAMED = 10
"""Routes that are named one by one; what another network plugin left may be thousands."""


def rival_faults(rivals: Sequence[RivalRoute], *, carried: bool) -> tuple[list[str], list[str]]:
    """Errors and warnings, as sentences. `carried`: pods are a router's or routing daemon's business, too, so its
    routes may well lead there; a daemon's may in any case."""

    def takes(rival: RivalRoute) -> bool:
        return rival.whole and not carried and rival.route.protocol not in _DAEMONS

    return _said([each for each in rivals if takes(each)]), _said([each for each in rivals if not takes(each)])


def _said(rivals: Sequence[RivalRoute]) -> list[str]:
    found = [_sentence(rival) for rival in rivals[:_NAMED]]
    if len(rivals) > _NAMED:
        found.append(f"{len(rivals) - _NAMED} more routes that others made take packets to pods of other nodes.")
    return found


def _sentence(rival: RivalRoute) -> str:
    route, pods = rival.route, f"{rival.cidr}, the pods of {rival.peer}"
    if rival.whole:
        return (
            f"Route {route}: it comes before Netloom's own to {pods}, and is somebody else's: packets to these pods go "
            f"where it leads. If nobody needs it: {route.command}"
        )
    return (
        f"Route {route}: it lies in {pods}, and is somebody else's: packets to that part of them go where it leads. If "
        f"nobody needs it: {route.command}"
    )
