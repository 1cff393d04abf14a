"""Numbers that the schemas bound, for objects that met no schema."""

from collections.abc import Mapping

from netloom.api.problem import Problem

RANGES: dict[str, dict[str, tuple[int, int]]] = {
    "NetloomNetwork": {
        "spec.ipam.clusterPool.ipv4MaskSize": (16, 30),
        "spec.ipam.clusterPool.ipv6MaskSize": (56, 126),
        "spec.routing.tunnelPort": (0, 65535),
        "spec.mtu": (0, 65535),
    },
    "NetloomIPPool": {
        "spec.ipv4.maskSize": (16, 32),
        "spec.ipv6.maskSize": (56, 128),
        "spec.preAllocation": (0, 4096),
    },
}
"""Least and greatest value by kind and field. A block larger than an IPv4 /16 or an IPv6 /56 would lie in several
ledgers, which nothing commits to at once."""


def check_ranges(kind: str, name: str, numbers: Mapping[str, int]) -> list[Problem]:
    """The numbers, given with their fields, that are out of range."""
    problems: list[Problem] = []
    for field, number in numbers.items():
        least, greatest = RANGES[kind][field]
        if not least <= number <= greatest:
            message, way_out = f"it must be between {least} and {greatest}.", "Give a number in that range."
            problems.append(Problem(f"{kind} {name}", field, str(number), "OutOfRange", message, way_out))
    return problems
