"""`netloom check`: has the agent of this machine look now whether packets of pods pass, and says what it saw.

Only an agent can look: it holds the device that stands for a pod. Where none answers, the condition of the node that
was asked for says what its agent saw last.
"""

from collections.abc import Iterator

import msgspec
import typer

from netloom.api.errors import UserError
from netloom.api.meta import POD_TRAFFIC_PASSES, condition_of
from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.cli import agent_http, local_agent
from netloom.cli.options import Cluster
from netloom.cli.reading import reading
from netloom.cli.status_text import aligned, safe
from netloom.runtime.errors import NotFound
from netloom_reconcilers.node.probing.findings import Finding, sentences

EXIT_PASSES, EXIT_PROBLEMS, EXIT_NOT_ASKED = 0, 1, 3
"""Exit statuses; the last says that nobody could look."""

_SECONDS = 300.0
"""For the answer. A peer that does not answer takes some seconds, eight of them at once."""


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answered. node: its own. unknown: names that are no peer's."""

    node: str
    unknown: tuple[str, ...] = ()
    checks: tuple[Finding, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether all that was looked at passes, and could be looked at."""
        return all(each.passes for each in self.checks)


async def ask(address: str, nodes: list[str]) -> Checks:
    """Have the agent at HOST:PORT look. Raises UserError; Nobody, if nothing listens there."""
    answer = await agent_http.ask(address, "/check", _SECONDS, params=[("node", node) for node in nodes])
    found = answer.decode(Checks, " that can check")
    if found.unknown:
        raise UserError(
            f"there is no node {', '.join(found.unknown)} with addresses for pods, as {found.node} sees it."
        )
    if not found.checks:
        why = "its feature `probe` is off, or neither it nor a peer has pod CIDRs that can be probed (docs/check.md)"
        raise UserError(f"agent of {found.node}: looked at nothing: {why}.")
    return found


def lines(found: Checks) -> Iterator[str]:
    """As text."""
    yield f"as {found.node} sees it:"
    yield from aligned([("PEER", "FAMILY", "WAY", "RESULT"), *map(_row, found.checks)])
    lost = sentences(each for each in found.checks if each.passes is False)
    unknown = sentences(each for each in found.checks if each.passes is None)
    if lost or unknown or any(each.seen == "nodes" for each in found.checks):
        yield ""
    if any(each.seen == "nodes" for each in found.checks):
        yield "note      the forward hooks were not looked at: the agent has no /dev/net/tun; its /status says why"
    for text in lost:
        yield f"{typer.style('problem', fg='red')}   {safe(text)}"
    for text in unknown:
        yield f"note      {safe(text)}"
    if found.passes:
        yield "no problems"


def _row(check: Finding) -> tuple[str, str, str, str]:
    if check.passes is None:
        result = f"not known: {check.reason}"
    elif not check.passes:
        result = f"LOST{f' {check.where}' if check.where else ''}: {check.reason}"
    elif check.size:
        result = f"passes: {check.size} bytes, {check.seconds * 1000:.1f} ms there and back"
    else:
        result = "forwards"
    return check.peer, f"IPv{check.family}", check.way, result


async def from_elsewhere(cluster: Cluster, node: str) -> list[str]:
    """What the node's own condition says, which may be old. Raises UserError."""
    async with reading(cluster, "check") as api:
        try:
            found = await api.get(NETLOOM_NODES, node)
        except NotFound as error:
            raise UserError(f"there is no NetloomNode {node}.") from error
    said = condition_of(found.status.conditions, POD_TRAFFIC_PASSES)
    what = (
        f"{POD_TRAFFIC_PASSES}={said.status} {said.reason}: {said.message}"
        if said
        else f"no condition {POD_TRAFFIC_PASSES} yet"
    )
    look = (
        f"To look now, run `netloom check` in the agent's pod of that node: kubectl exec in the pod that "
        f"`kubectl get pods -A -o wide --field-selector spec.nodeName={node}` shows."
    )
    return [safe(f"NetloomNode {node}: {what}"), look]


async def run(cluster: Cluster, node: str, address: str) -> tuple[Checks | None, int, list[str]]:
    """What was seen (None: only the condition could be read), the exit status, and lines. Raises UserError."""
    try:
        found = await ask(address or local_agent.ADDRESS, [node] if node else [])
    except agent_http.Nobody as nobody:
        if address or not node:
            raise UserError(f"{nobody} Run it on a node, or name one: `netloom check NODE`.") from nobody
        return None, EXIT_NOT_ASKED, await from_elsewhere(cluster, node)
    return found, EXIT_PASSES if found.passes else EXIT_PROBLEMS, list(lines(found))
