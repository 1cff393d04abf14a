"""What agents make of this machine: `netloom plan` says what one would change, `netloom cleanup` takes it away."""

import socket as sockets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netloom.api.errors import UserError, WrongUsage
from netloom.cli.options import (
    RUN_DIR,
    Cluster,
    CniHost,
    CniInstall,
    Features,
    Manifests,
    NodeName,
    Output,
    RunDir,
    Socket,
    StateDir,
    awaited,
    grouped,
    show,
)
from netloom.cli.process import confirm, say

if TYPE_CHECKING:
    from netloom.kernel.keeper.report import PlannedChange

EXIT_CHANGES = 2
"""Exit status of `netloom plan` when the kernel differs from what is wanted."""

HOST = sockets.gethostname().lower()


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Whose kernel, from which objects, with which features."""

    node_name: NodeName = HOST
    manifests: Manifests = None
    run_dir: RunDir = RUN_DIR
    features: Features = "*"


def cni_options(run_dir: Path, host: CniHost, install: CniInstall | None) -> Any:
    """CniOptions of that; None where nobody is to be answered. Without `install` what may be there."""
    from netloom_reconcilers.node.endpoints.options import SOCKET, CniOptions, Places

    if install is not None and not install.cni_install:
        return CniOptions(host.cni_socket, host.cni_deletions) if host.cni_socket is not None else None
    places = Places(bin_dir=host.cni_bin_dir, conf_dir=host.cni_conf_dir)
    if install is not None:
        chain = tuple(name for each in install.cni_chain.split(",") if (name := each.strip()))
        places = places._replace(plugin=install.cni_plugin, chain=chain, version=install.cni_version)
    return CniOptions(host.cni_socket or run_dir / SOCKET, host.cni_deletions, places)


@grouped
def plan(node: NodeOptions, cluster: Cluster, output: Output = "text") -> None:
    """Print what the agent would change in the kernel, as `ip` would say it. Exit status 2 if anything.

    It writes nothing, and needs no rights over the network: what cannot be read without them is named, and left out.
    So is what an agent would not do, as a route that would cut the node off. The exit status is 1 then, if there is
    nothing else to change.
    """
    from netloom.roles import node_plan
    from netloom.roles.agent import FEATURES
    from netloom.roles.agent_sources import AgentOptions

    found = awaited(node_plan.plan(AgentOptions(**vars(node), **vars(cluster)), FEATURES), "warning")
    show(output, found.changes, lambda changes: _as_ip(changes, "change", whole=not found.unread))
    _tell((*found.unread, *found.left_out))
    if found.changes:
        raise typer.Exit(EXIT_CHANGES)
    if found.unread or found.left_out:
        raise typer.Exit(1)


@grouped
def cleanup(
    *,
    run_dir: RunDir = RUN_DIR,
    state_dir: StateDir = None,
    socket: Socket = None,
    cni_host: CniHost,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="No agent comes back: do not keep what switches that stay were before, nor directories."
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write there what stays, as into a pod's termination message."),
    ] = None,
    output: Output = "text",
) -> None:
    """Remove all that agents made in the kernel and on the host of this machine, by whatever feature, and nothing else.

    Pods lose their network, and the CNI plugin and its configuration go. On a terminal it shows first what would go,
    and asks; elsewhere it takes --yes. An agent has to be stopped before: it would put everything back.
    """
    if not (dry_run or yes or sys.stdin.isatty()):
        raise WrongUsage(
            "cleanup takes the network from this machine's pods, and there is no terminal to ask on: give --yes, or "
            "--dry-run to see what it would remove"
        )
    from netloom.roles import node_plan, presence
    from netloom.roles.agent import FEATURES

    running = presence.sentence()
    if running and not dry_run:
        raise UserError(f"{running} Stop it first: its DaemonSet's pod on this node, or its service.")
    where: dict[str, Any] = {"state_dir": state_dir, "socket": socket, "cni": cni_options(run_dir, cni_host, None)}
    if dry_run or not yes:
        would = awaited(node_plan.cleanup(run_dir, FEATURES, dry_run=True, **where), "warning")
        if dry_run or not would.changes:
            show(output, would.changes, lambda changes: _as_ip(changes, "remove", whole=not would.unread))
            _tell((*would.unread, *would.left, *filter(None, [running])))
            return
        _as_ip(would.changes, "remove")
        sys.stdout.flush()
        confirm(f"Remove these {len(would.changes)}?", "nothing was removed")
    done = awaited(node_plan.cleanup(run_dir, FEATURES, forget=forget, **where), "warning")
    show(output, done.changes, lambda changes: _as_ip(changes, "remove"))
    _tell(done.left)
    if report is not None:
        report.write_text("\n".join(done.left))


def _as_ip(changes: Sequence["PlannedChange"], verb: str, *, whole: bool = True) -> None:
    for change in changes:
        print(f"{change.text}   # {change.why}" if change.why else change.text)
    if not changes:
        print(f"nothing to {verb}" if whole else f"nothing to {verb} in what could be read")


def _tell(sentences: Sequence[str]) -> None:
    sys.stdout.flush()
    for sentence in sentences:
        say(sentence)
