"""`netloom status` as text: totals first, then who leads, the nodes that matter, and what is wrong.

Bounded on a large cluster, but for `wide`. Lines are never cut: who pipes them gets whole names. What others wrote into
objects is printed without the characters by which a terminal can be told to do things.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import typer

from netloom.api.node_verdict import NodeState
from netloom.api.verdict import Totals
from netloom.cli.status import StatusReport

SHOWN_NODES = 20
"""Rows of the table but in `wide`; a cluster of so many shows all, a larger one those that are not ready."""
SHOWN_PROBLEMS = 20
_SHOWN_CIDRS = 4

Column = tuple[str, Callable[[NodeState], str]]


def printed(report: StatusReport, output: str) -> str:
    """The report as was asked for, without a newline at its end. Text is in colours: `typer.echo` leaves them out
    where nobody sees them."""
    if output == "json":
        return msgspec.json.encode(report).decode()
    if output == "yaml":
        return msgspec.yaml.encode(report).decode().rstrip("\n")
    return "\n".join(_lines(report, wide=output == "wide"))


def _lines(report: StatusReport, wide: bool) -> Iterator[str]:
    now = dt.datetime.fromisoformat(report.time)
    yield report.totals.summary
    yield from _of_the_cluster(report, now)
    nodes, more = _chosen(report.nodes, wide)
    if nodes:
        yield ""
        yield from _table(_columns(now, wide), nodes)
    if more:
        yield f"and {more:,} more nodes: -o wide lists all, -o json has their conditions, too"
    if report.problems or report.notes:
        yield ""
    for note in report.notes:
        yield f"note      {safe(note)}"
    for problem in report.problems[:SHOWN_PROBLEMS]:
        yield f"{typer.style('problem', fg='red')}   {safe(str(problem))}"
    if len(report.problems) > SHOWN_PROBLEMS:
        yield f"and {len(report.problems) - SHOWN_PROBLEMS} more kinds of problems: -o json has all"
    if report.healthy:
        yield "no problems"


def _of_the_cluster(report: StatusReport, now: dt.datetime) -> Iterator[str]:
    yield f"operator  {_operator(report, now)}"
    yield f"agents    {_agents(report.totals)}"
    if report.totals.waiting:
        yield f"waiting   {report.totals.waiting:,} without addresses for pods"
    if report.totals.left_out:
        yield f"left out  {report.totals.left_out:,} by label or nodeSelector"
    if (network := report.network) is not None:
        force = network.mode_in_force or "free: no node holds addresses"
        yield f"network   IPAM {network.mode} (in force: {force}), {network.routing} {network.tunnel_protocol}"
    if (agent := report.facts) is not None:
        peers = f"{agent.peers:,} peers, " if agent.peers is not None else ""  # else the mesh is switched off
        yield (
            f"agent     {safe(agent.node)}: {peers}{'in sync' if agent.in_sync else 'NOT in sync'}, "
            f"{agent.drift_repaired} drifts repaired, {agent.netlink_writes} netlink messages written since its start"
        )
        if agent.mtu is not None:
            yield f"          pods' MTU {agent.mtu}: {safe(agent.mtu_source)}"
        if (probe := agent.probe) is not None:
            lost = f", LOST by {len(probe.failing)} ways" if probe.failing else ""
            unknown = f", not known of {len(probe.unknown)}" if probe.unknown else ""
            yield f"          packets of pods pass to {probe.passing:,} peers that were probed{lost}{unknown}"


def _operator(report: StatusReport, now: dt.datetime) -> str:
    state, ago = report.operator, f"{_age(report.operator.last_heard, now)} ago"
    match state.life:
        case "alive":
            return f"{safe(state.leader)} leads since {state.since}, heard of {ago}"
        case "silent":
            return f"NOT heard of: {safe(state.leader)} led since {state.since}, and was last heard of {ago}"
        case "released":
            return f"NONE: the last one ended {ago}"
        case "never":
            return "no sign of life of any"
    return "could not be looked at"


def _agents(totals: Totals) -> str:
    counted = (
        (totals.agents_alive, "alive"),
        (totals.agents_silent, "not heard of in time"),
        (totals.agents_never_seen, "never heard of"),
        (totals.agents_unknown, "not to be known of"),
    )
    return ", ".join(f"{count:,} {what}" for count, what in counted if count or what == "alive")


def _chosen(nodes: Sequence[NodeState], wide: bool) -> tuple[Sequence[NodeState], int]:
    """Which are listed, and how many others have a claim to be."""
    if wide or len(nodes) <= SHOWN_NODES:
        return nodes, 0
    unready = [node for node in nodes if not node.ready]
    return unready[:SHOWN_NODES], max(0, len(unready) - SHOWN_NODES)


def _columns(now: dt.datetime, wide: bool) -> list[Column]:
    limit = None if wide else _SHOWN_CIDRS
    columns: list[Column] = [
        ("NODE", lambda node: node.name),
        ("READY", lambda node: str(node.ready)),
        ("ADDRESS", lambda node: _joined(node.addresses, limit)),
        ("POD CIDRS", lambda node: _joined(node.pod_cidrs, limit) or _single(node.single_addresses)),
        ("ALLOCATED", lambda node: node.allocated),
        ("DATAPLANE", lambda node: node.dataplane),
        ("AGENT", lambda node: _agent(node, now)),
    ]
    if wide:
        columns += [
            ("LAST HEARD", lambda node: node.last_heard),
            ("MODE", lambda node: node.mode),
            ("CONDITIONS", lambda node: ",".join(f"{each.type}={each.status}" for each in node.conditions)),
        ]
    return [*columns, ("REASONS", lambda node: ",".join(node.reasons))]


def _agent(node: NodeState, now: dt.datetime) -> str:
    return f"silent {_age(node.last_heard, now)}" if node.agent in ("silent", "released") else node.agent


def _single(count: int) -> str:
    return f"{count:,} address{'' if count == 1 else 'es'}" if count else ""


def _joined(texts: Sequence[str], limit: int | None) -> str:
    more = f",+{len(texts) - limit}" if limit is not None and len(texts) > limit else ""
    return ",".join(texts[:limit]) + more


def _table(columns: Sequence[Column], nodes: Iterable[NodeState]) -> Iterator[str]:
    """Aligned by its widest cells. (rich takes 14 s for 5,000 nodes, and cuts at 80 columns in a pipe.)"""
    titles = [title for title, _ in columns]
    yield from aligned([titles, *([cell(node) for _, cell in columns] for node in nodes)])


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table, its columns as wide as their widest cells."""
    clean = [[safe(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for row in clean:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _age(moment: str, now: dt.datetime) -> str:
    """Of a moment, as kubectl shows ages; "?" where the moment is not known."""
    if not moment:
        return "?"
    seconds = max(0, int((now - dt.datetime.fromisoformat(moment)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def safe(text: str) -> str:
    """Without the characters by which a terminal can be told to do things."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
