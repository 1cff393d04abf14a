"""What to say of routes that somebody else made, and that packets to other nodes' pods take. Pure."""

from collections.abc import Sequence

from netloom.kernel.mesh.rivals import Rival

_NAMED = 10
"""Routes that are named one by one; what another network plugin left may be thousands."""


def rival_faults(rivals: Sequence[Rival], *, carried: bool) -> tuple[list[str], list[str]]:
    """Errors and warnings, as sentences. `carried`: pods are a router's or routing daemon's business, too, so its
    routes may well lead there."""
    whole = [rival for rival in rivals if rival.whole and not carried]
    rest = [rival for rival in rivals if not rival.whole or carried]
    return _said(whole), _said(rest)


def _said(rivals: Sequence[Rival]) -> list[str]:
    found = [_sentence(rival) for rival in rivals[:_NAMED]]
    if len(rivals) > _NAMED:
        found.append(f"{len(rivals) - _NAMED} more routes that others made take packets to pods of other nodes.")
    return found


def _sentence(rival: Rival) -> str:
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
