"""`make bench-prefilter-agent`: a million CIDRs through the whole agent, from a real API server into a real kernel.

The lists are those of `bench-prefilter-lists`, as ConfigMaps; each has an entry more that no other list holds, and
one that the prefilter has by itself is withheld, as it is the node's own address. What the kernel holds is asked of
its map itself (the program's own look-up), every fifth of a millisecond, so no figure has the agent's or the API
server's pauses in it, and none a poll's:

*load.seconds*: from the answer to the request that makes the last ConfigMap until that one's own entry is in force.
*load.cpu_seconds*: what all threads of the agent worked, from the prefilter on, and *cpu_seconds_after_last* of it
after that answer. *merges*, *entries_merged*, *entries_written*: as the agent counts (`/status`).
*rss_base_mib*, *rss_peak_mib*, *rss_mib*: the agent's memory before a prefilter, at most, half a minute after.
*change_one_ms*: a line of one ConfigMap is another: from the answer to the request until the new one is in force;
*change_one_cpu_ms*: what all threads of the agent worked meanwhile, from before the request. Both the least, the median
and the greatest: other work on the machine only adds. *change_1000_ms*: of a thousand lines, all over a list.
*rss_changed_mib*: half a minute after all that.

Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from netloom.cidr import Cidr
from netloom.kernel.prefilter import bpf
from netloom.prefilter.rules import VALUE_SIZE
from netloom_e2e import bench, gauges
from netloom_e2e.bench import Wrong
from netloom_e2e.block_lists import cidrs, config_maps
from netloom_e2e.fleet import Fleet, fleet
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.mesh import facts
from netloom_e2e.trie_entries import key
from tests.kernel.prefilters import mounted_bpffs

PREFILTERS = "/apis/netloom.dev/v1alpha1/netloomprefilters"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
MARK = "# a block list"
"""The line of each list that is made something else."""
LOOK_SECONDS = 0.0002
PATIENCE_SECONDS = 120.0
REST_SECONDS = 30.0
WITHIN = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/bpf && exec "$@"')
"""A bpffs where a machine has it, and the agent looks for it."""


class Done(NamedTuple):
    """When, by `time.monotonic`, and what all threads of the agent had worked by then, in seconds."""

    at: float
    worked: float


class Agent:
    """The agent of a node, and what its kernel drops."""

    def __init__(self, made: Fleet, machine: Machine, bpffs: Path) -> None:
        self.fleet, self.machine, self.bpffs = made, machine, bpffs
        self.pid = made.start(machine, [*WITHIN, str(bpffs)]).pid

    def now(self) -> Done:
        """As things are."""
        worked = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError):
                worked += int((task / "schedstat").read_text().split()[0])
        return Done(time.monotonic(), worked / 1e9)

    def waited_for(self, cidr: str) -> Done:
        """Until the entry decides about its address. Raises Wrong."""
        wanted = Cidr.parse(cidr)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._drops(key(wanted.packed, wanted.length)):
            if time.monotonic() > deadline:
                self.fleet.check(self.machine)
                raise Wrong(f"{cidr} is not in force; the agent says {json.dumps(facts(self.machine))[:2000]}")
            time.sleep(LOOK_SECONDS)
        return self.now()

    def _drops(self, entry: bytes) -> bool:
        for pin in self.bpffs.glob("netloom/*/entries_v4_?"):
            with suppress(FileNotFoundError):
                descriptor = bpf.open_pin(str(pin))
                try:
                    if bpf.lookup(descriptor, entry, VALUE_SIZE) is not None:
                        return True
                finally:
                    os.close(descriptor)
        return False

    def said(self) -> dict[str, Any]:
        """What the agent says of the prefilter."""
        filters = facts(self.machine).get("prefilter", {}).get("status", {}).get("filters") or [{}]
        return dict(filters[0])

    def entries(self) -> int:
        """As many as the agent says are active."""
        said = self.said()
        return int(sum(said.get(family, 0) for family in ("ipv4Entries", "ipv6Entries")))

    def work(self) -> dict[str, int]:
        """What the agent counts: how often it merged lists, how many entries it looked at for it, and how many it wrote
        to the kernel."""
        return dict(facts(self.machine).get("prefilter", {}).get("work", {}))

    def memory(self) -> gauges.Usage:
        """Once it rests, has other connections than those that much came by, and has given back what was free."""
        self.quiet()
        time.sleep(REST_SECONDS)
        return gauges.usage(self.pid)

    def quiet(self) -> None:
        """Until it has had nothing to do for two seconds."""
        before = self.now()

        def rests() -> bool:
            nonlocal before
            last, before = before, self.now()
            return before.worked - last.worked < 0.05

        wait_for("the agent to rest", rests, deadline=PATIENCE_SECONDS, every=2.0)


def own(number: int) -> str:
    """An entry that no list has: those begin at 11.0.0.0."""
    return f"10.200.{number >> 8}.{number & 255}/32"


def load(agent: Agent, texts: list[str], count: int) -> dict[str, float]:
    """All lists, one after another, of `count` entries."""
    agent.quiet()
    client, before = agent.fleet.plane.client, gauges.usage(agent.pid)
    spec = {
        "denyCIDRs": [f"{agent.machine.address}/32"],
        "denyFromConfigMaps": [{"name": f"list-{number}"} for number in range(len(texts))],
    }
    client.request("POST", PREFILTERS, _object("NetloomPrefilter", "big", spec=spec))
    began = agent.now()
    for number, text in enumerate(texts):
        body = {"metadata": {"name": f"list-{number}"}, "data": {"list": text.replace(MARK, own(number))}}
        client.request("POST", CONFIG_MAPS, body, timeout=60)
    last = agent.now()
    done = agent.waited_for(own(len(texts) - 1))
    wait_for("all entries", lambda: agent.entries() >= count, deadline=PATIENCE_SECONDS)
    work = agent.work()
    after = agent.memory()
    return {
        "entries": agent.entries(),
        "withheld": agent.said().get("withheld", 0),
        "config_maps": len(texts),
        "seconds": round(done.at - last.at, 2),
        "cpu_seconds": round(done.worked - began.worked, 2),
        "cpu_seconds_after_last": round(done.worked - last.worked, 2),
        "merges": work["merged"],
        "entries_merged": work["entries"],
        "entries_written": work["written"],
        "rss_base_mib": round(before.rss, 1),
        "rss_peak_mib": round(after.peak, 1),
        "rss_mib": round(after.rss, 1),
    }


def change(agent: Agent, texts: list[str], lines: int, number: int) -> Done:
    """So many lines of a list become others; seconds from the answer on, and of work. The last is looked for."""
    which = number % len(texts)
    new = [own(1000 + number * lines + line) for line in range(lines)]
    text = texts[which].splitlines()
    step = len(text) // lines
    for line, entry in enumerate(new):
        text[line * step] = entry
    agent.quiet()
    before = agent.now()
    body = {"data": {"list": "\n".join(text) + "\n"}}
    agent.fleet.plane.client.request("PATCH", f"{CONFIG_MAPS}/list-{which}", body, timeout=60)
    answered = time.monotonic()
    done = agent.waited_for(new[-1])
    return Done(done.at - answered, done.worked - before.worked)


def _spread(seconds: list[float]) -> list[float]:
    return [round(1000 * each, 1) for each in (min(seconds), statistics.median(seconds), max(seconds))]


def _object(kind: str, name: str, **more: object) -> dict[str, Any]:
    return {"apiVersion": "netloom.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, **more}


def measured(entries: int, changes: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(bench.circumstances())
    texts = [json.loads(each)["data"]["list"] for each in config_maps(cidrs(entries))]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bpffs = stack.enter_context(mounted_bpffs(folder / "bpf"))
        made = stack.enter_context(fleet(f"nlp{os.getpid() % 10000}"))
        machine = made.add()
        agent = Agent(made, machine, bpffs)
        made.in_sync(machine, 0)
        loaded = load(agent, texts, entries + len(texts))
        console.print(loaded)
        ones = [change(agent, texts, 1, number) for number in range(changes)]
        many = change(agent, texts, 1000, changes)
        changed = agent.memory()
        made.stop(machine)
    return {
        "load": loaded,
        "change_one_ms": _spread([each.at for each in ones]),
        "change_one_cpu_ms": _spread([each.worked for each in ones]),
        "change_1000_ms": round(1000 * many.at, 1),
        "rss_changed_mib": round(changed.rss, 1),
    }


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="A million CIDRs through the whole agent.")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=9, help="of one line")
    options = parser.parse_args()
    return bench.conclude("bench-prefilter-agent", lambda: measured(options.entries, options.changes))


if __name__ == "__main__":
    sys.exit(main())
