"""A node's part of the mesh as text, so that a test compares before and after as a person at a terminal would."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from netloom_e2e.lab import Machine, wait_for

NETLOOM = Path(sys.executable).with_name("netloom")
TUNNEL = "netloom_vxlan"
PROTOCOL = "158"


def routes(node: Machine) -> list[str]:
    """Netloom's IPv4 routes on a node that lead somewhere."""
    return node.ip("route", "show", "type", "unicast", "proto", PROTOCOL).splitlines()


def state(node: Machine) -> str:
    """All that Netloom owns on a node; what changes with a new device's index is left out."""
    parts = [
        node.ip("-o", "link", "show", TUNNEL, check=False).splitlines(),
        node.ip("-o", "addr", "show", "dev", TUNNEL, check=False).splitlines(),
        node.ip("neigh", "show", "dev", TUNNEL, "nud", "permanent", check=False).splitlines(),
        node.ip("nexthop", "show").splitlines(),
        node.ip("route", "show", "proto", PROTOCOL).splitlines(),
        node.ip("-6", "route", "show", "proto", PROTOCOL).splitlines(),
    ]
    return "\n".join(re.sub(r"^\d+: ", "", line) for part in parts for line in sorted(part))


def leading(node: Machine) -> str:
    """The state without unreachable routes: what leads somewhere, and by what."""
    return "\n".join(line for line in state(node).splitlines() if not line.startswith("unreachable "))


def tunnel_mtu(node: Machine, deadline: float = 30.0) -> int:
    """Of the tunnel device, in bytes: what pods need. Waits for the device so many seconds."""
    wait_for(f"{TUNNEL} on {node.node}", lambda: node.ip("link", "show", TUNNEL, check=False), deadline=deadline)
    found = re.search(r" mtu (\d+) ", node.ip("link", "show", TUNNEL))
    assert found
    return int(found[1])


def routes6(node: Machine) -> list[str]:
    """Netloom's IPv6 routes on a node that lead somewhere."""
    return node.ip("-6", "route", "show", "type", "unicast", "proto", PROTOCOL).splitlines()


def holes(node: Machine) -> list[str]:
    """CIDRs of Netloom's unreachable routes on a node, of both families."""
    lines = [line for f in ("-4", "-6") for line in node.ip(f, "route", "show", "proto", PROTOCOL).splitlines()]
    return sorted(line.split()[1] for line in lines if line.startswith("unreachable "))


def shown(node: Machine, family: str = "-4") -> list[str]:
    """Netloom's routes that lead somewhere as `ip route` shows them among others, but for the nexthops' ids."""
    lines = node.ip(family, "route", "show", "type", "unicast").splitlines()
    return [re.sub(r"\bnhid \d+", "nhid N", line).strip() for line in lines if f" proto {PROTOCOL} " in line]


def device_state(node: Machine) -> dict[str, str]:
    """By which device Netloom's routes of both families lead to each pod CIDR."""
    ways = {line.split()[0]: line.split(" dev ")[1].split()[0] for line in routes(node) + routes6(node)}
    # What has no prefix length is a single address, a pod's of this node.
    return {cidr: device for cidr, device in ways.items() if "/" in cidr}


def facts(node: Machine) -> dict[str, Any]:
    """What the node's agent says of itself at /status; empty while none answers."""
    answer = node.ask(9964, "/status")
    return dict(json.loads(answer)) if answer else {}
