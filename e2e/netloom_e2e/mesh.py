"""A node's part of the mesh as text, so that a test compares before and after as a person at a terminal would."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from netloom_e2e.lab import Machine

NETLOOM = Path(sys.executable).with_name("netloom")
TUNNEL = "netloom_vxlan"
PROTOCOL = "158"


def routes(node: Machine) -> list[str]:
    """Netloom's IPv4 routes on a node."""
    return node.ip("route", "show", "proto", PROTOCOL).splitlines()


def state(node: Machine) -> str:
    """All that Netloom owns on a node; what changes with a new device's index is left out."""
    parts = [
        node.ip("-o", "link", "show", TUNNEL, check=False).splitlines(),
        node.ip("-o", "addr", "show", "dev", TUNNEL, check=False).splitlines(),
        node.ip("neigh", "show", "dev", TUNNEL, "nud", "permanent", check=False).splitlines(),
        node.ip("nexthop", "show").splitlines(),
        routes(node),
        node.ip("-6", "route", "show", "proto", PROTOCOL).splitlines(),
    ]
    return "\n".join(re.sub(r"^\d+: ", "", line) for part in parts for line in sorted(part))


def facts(node: Machine) -> dict[str, Any]:
    """What the node's agent says of itself at /status; empty while none answers."""
    answer = node.run("curl", "-s", "--max-time", "2", "http://127.0.0.1:9964/status", check=False)
    return dict(json.loads(answer)) if answer else {}
