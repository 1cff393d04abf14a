"""What pods leave on their node: all that one has, counted, to be compared before it came and when it is gone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.addresses import AddressSocket
from netloom_e2e.gauges import usage
from netloom_e2e.namespaces import Namespace

_TABLES = {
    "routes": ("route", "show", "table", "all"),
    "neighbours": ("neigh", "show", "nud", "permanent"),
    "rules": ("rule", "show"),
}
_RESTLESS = {"descriptors of the agent": 10, "threads of the agent": 10}
"""Of which there are now more and now less, whatever pods do, and by how much: connections come and go."""
_VOLATILE = re.compile(r"packets \d+ bytes \d+")


@dataclass(frozen=True, slots=True)
class Traces:
    """counts: by kind, of things that a pod makes one more of. memory: MiB that the agent has resident."""

    counts: Mapping[str, int]
    memory: float

    def left(self, before: Traces) -> list[str]:
        """What there is more of than before, or less."""
        changed = []
        for kind, now in self.counts.items():
            was, room = before.counts[kind], _RESTLESS.get(kind, 0)
            if now > was + room or (now < was and not room):
                changed.append(f"{kind}: {was} before, {now} now")
        return changed


def traces(machine: Namespace, agent: int, socket: AddressSocket, folders: Iterable[Path]) -> Traces:
    """Of a node: its network namespace, its agent's process, the agent's socket for addresses, and the folders that
    agents and plugins write to. No pod comes or goes meanwhile. Raises OSError where the agent does not answer."""
    held = socket.held()
    counts = {"owners of addresses": len(held), "addresses": sum(len(each) for each in held.values())}
    counts["devices"] = len(json.loads(machine.ip("-j", "link", "show")))
    for kind, words in _TABLES.items():
        counts[kind] = sum(len(machine.ip(family, *words).splitlines()) for family in ("-4", "-6"))
    counts["nexthops"] = len(machine.ip("nexthop", "show").splitlines())
    # Sets may have their elements on one line.
    counts["words of packet filters"] = len(_VOLATILE.sub("", machine.run("nft", "list", "ruleset")).split())
    for folder in folders:
        counts[f"files in {folder.name}"] = sum(1 for path in folder.rglob("*") if not path.is_dir())
    counts["descriptors of the agent"] = sum(1 for _ in Path(f"/proc/{agent}/fd").iterdir())
    counts["threads of the agent"] = sum(1 for _ in Path(f"/proc/{agent}/task").iterdir())
    return Traces(counts, usage(agent).rss)
