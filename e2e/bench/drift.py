"""`make bench-drift`: how long it takes an agent with N peers to repair what somebody changes in the kernel.

N NetloomNodes on a real API server, one agent, a process of its own. `ip` deletes a random route, nexthop or neighbour
of it, or edits one, --times times, each time another peer's. The clock is the kernel's own event stream, read by
another process: from the event of the damage to the event with which the last entry that it took is back (a deleted
nexthop takes its route along). The next damage is done when the last was repaired.

Then all routes are deleted at once by `ip -batch`, then all nexthops, then all neighbours (the agent repairs
meanwhile), each five times; the median counts. mass_s is the time from the first deletion's event to the last repair's,
of all routes; the others are in `mass`, with what `ip` took for itself in `deleting_s`.

At the end the kernel's tables are compared with those before, and the agent has to have counted no failure.
Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from netloom_e2e import bench, peers
from netloom_e2e.bench import Wrong, percentile
from netloom_e2e.fleet import Fleet, fleet
from netloom_e2e.lab import Machine
from netloom_e2e.mesh import PROTOCOL, TUNNEL, facts, state
from netloom_e2e.monitor import Key, Monitor

_REPAIR_SECONDS = 10.0
_MASS_SECONDS = 60.0
_MASS_TIMES = 5
_QUIET = 0.02
SEED = 158


class Entries(NamedTuple):
    """What one peer has in the kernel."""

    cidr: str
    nexthop: str
    gateway: str

    @property
    def route(self) -> Key:
        return "route", self.cidr

    @property
    def object(self) -> Key:
        return "nexthop", self.nexthop

    @property
    def neighbour(self) -> Key:
        return "neighbour", self.gateway


class Damage(NamedTuple):
    """What `ip` is told, and what is not as it should be afterwards."""

    words: str
    broken: tuple[Key, ...]


DAMAGES: dict[str, Callable[[Entries], Damage]] = {
    "route deleted": lambda e: Damage(f"route del {e.cidr}", (e.route,)),
    "route edited": lambda e: Damage(f"route replace {e.cidr} dev lo", (e.route,)),
    "nexthop deleted": lambda e: Damage(f"nexthop del id {e.nexthop}", (e.object, e.route)),
    "nexthop edited": lambda e: Damage(f"nexthop replace id {e.nexthop} dev eth0 proto static", (e.object,)),
    "neighbour deleted": lambda e: Damage(f"neigh del {e.gateway} dev {TUNNEL}", (e.neighbour,)),
    "neighbour edited": lambda e: Damage(
        f"neigh replace {e.gateway} dev {TUNNEL} lladdr 02:00:00:00:00:01 nud permanent", (e.neighbour,)
    ),
}
MASSES: dict[str, Callable[[Entries], Damage]] = {
    "routes": DAMAGES["route deleted"],
    "nexthops": DAMAGES["nexthop deleted"],
    "neighbours": DAMAGES["neighbour deleted"],
}


class Mass(NamedTuple):
    """All of a kind: from the first deletion to the last repair, and what the deleting took."""

    seconds: float
    deleting: float


class Drift:
    """Damage, and the kernel's word on when it was repaired."""

    def __init__(self, machine: Machine, monitor: Monitor, console: Console) -> None:
        self._machine = machine
        self._monitor = monitor
        self._console = console
        self._entries = _entries(machine)

    def one_by_one(self, times: int) -> dict[str, list[float]]:
        """Seconds to the repair, by kind of damage."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        chosen = (
            random.Random(SEED).choices(self._entries, k=times)
            if times > len(self._entries)
            else (random.Random(SEED).sample(self._entries, times))
        )
        for number, entries in enumerate(chosen):
            kind = [*DAMAGES][number % len(DAMAGES)]
            damage = DAMAGES[kind](entries)
            self._monitor.pass_over(_QUIET)
            self._machine.ip(*damage.words.split())
            began, ended = self._repair(damage.broken, _REPAIR_SECONDS)
            found[kind].append(ended - began)
        return dict(found)

    def mass(self, kind: str) -> Mass:
        """Delete all of a kind, several times: the one that took neither long nor short."""
        return sorted(self._mass(kind) for _ in range(_MASS_TIMES))[_MASS_TIMES // 2]

    def _mass(self, kind: str) -> Mass:
        damages = [MASSES[kind](entries) for entries in self._entries]
        self._monitor.pass_over(_QUIET)
        before = time.monotonic()
        self._machine.batch([damage.words for damage in damages])
        deleting = time.monotonic() - before
        began, ended = self._repair([key for damage in damages for key in damage.broken], _MASS_SECONDS)
        self._console.print(f"  all {kind:10} {ended - began:7.3f} s   [dim]{deleting:.3f} s to delete them[/dim]")
        return Mass(ended - began, deleting)

    def _repair(self, broken: Sequence[Key], seconds: float) -> tuple[float, float]:
        """When the first was damaged, and when the last was back."""
        began = ended = 0.0
        hurt: set[Key] = set()
        left = set(broken)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self._monitor.events(_QUIET):
                key = event.key
                if key not in left and key not in hurt:
                    continue
                if not self._is_right(key, event.value):
                    began = began or event.at
                    hurt.add(key)
                    left.add(key)
                elif began:
                    ended = event.at
                    left.discard(key)
            if not left:
                return began, ended
        raise Wrong(f"{len(left)} of {len(broken)} entries not repaired in {seconds:g} s: {sorted(left)[:3]}")

    def _is_right(self, key: Key, value: bytes) -> bool:
        """The edits of this bench are told from what is right by their protocol, or by their address."""
        return bool(value) and not (key[0] == "neighbour" and value == b"\x02\0\0\0\0\x01")


def _entries(machine: Machine) -> list[Entries]:
    found = []
    for line in machine.ip("route", "show", "type", "unicast", "proto", PROTOCOL).splitlines():
        words = line.split()
        found.append(Entries(words[0], words[words.index("nhid") + 1], words[words.index("via") + 1]))
    return found


def _measure(made: Fleet, count: int, times: int, console: Console) -> dict[str, Any]:
    made.populate(count)
    machine = made.add()
    made.start(machine)
    made.in_sync(machine, count)
    before = state(machine)
    with Monitor([machine]) as monitor:
        drift = Drift(machine, monitor, console)
        console.print(f"[bold]one by one[/bold]: {times} times, a random route, nexthop or neighbour")
        found = drift.one_by_one(times)
        console.print(f"[bold]all at once[/bold]: {count} routes, nexthops, neighbours")
        mass = {kind: drift.mass(kind) for kind in MASSES}
    made.in_sync(machine, count)
    if state(machine) != before:
        raise Wrong("the kernel's tables are not what they were before")
    every = [seconds for each in found.values() for seconds in each]
    rows = [(kind, str(len(each)), *_figures(each)) for kind, each in (*found.items(), ("all", every))]
    console.print(bench.table(f"Repair with {count} peers", ("damage", "times", "p50 ms", "p99 ms", "max ms"), rows))
    return {
        "peers": count,
        "times": len(every),
        "p50_ms": round(percentile(every, 50) * 1000, 2),
        "p99_ms": round(percentile(every, 99) * 1000, 2),
        "mass_s": round(mass["routes"].seconds, 3),
        "mass": {
            kind: {"seconds": round(each.seconds, 3), "deleting_s": round(each.deleting, 3)}
            for kind, each in mass.items()
        },
        "repaired": facts(machine)["driftRepaired"],
    }


def _figures(seconds: Sequence[float]) -> list[str]:
    return [f"{1000 * value:.1f}" for value in (percentile(seconds, 50), percentile(seconds, 99), max(seconds))]


def run(count: int, times: int, features: str) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(bench.circumstances())
    with fleet(f"nlb{os.getpid()}", features) as made:
        return _measure(made, count, times, console)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="How long the repair of the kernel's tables takes, with N peers.")
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--features", default="*", help="of the agent, as `netloom agent --features` has them")
    options = parser.parse_args()
    if not 0 < options.peers <= peers.MOST:
        parser.error(f"--peers is from 1 to {peers.MOST}")
    return bench.conclude("bench-drift", lambda: run(options.peers, options.times, options.features))


if __name__ == "__main__":
    sys.exit(main())
