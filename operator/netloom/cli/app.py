"""`netloom`: its verbs, and the one place where an error becomes a sentence and an exit status."""

import os
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netloom import __version__
from netloom.api.errors import UserError, sentences
from netloom.cli import guard
from netloom.cli.options import (
    Cluster,
    Features,
    GracePeriod,
    HttpAddress,
    Logging,
    Manifests,
    NodeName,
    Output,
    RunDir,
    grouped,
    show,
)
from netloom.webhook import names

if TYPE_CHECKING:
    from netloom.kernel.keeper.report import PlannedChange

app = typer.Typer(
    help="The node-networking control plane of a Kubernetes cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(guard.guard, name="guard")
app.command()(guard.webhook)

EXIT_CHANGES = 2
"""Exit status of `netloom plan` when the kernel differs from what is wanted."""

_HOST = socket.gethostname().lower()
_RUN_DIR = Path("/run/netloom")


@dataclass(frozen=True, kw_only=True)
class Leading:
    """Who leads."""

    leader_elect: Annotated[bool, typer.Option(help="Work only while holding the lease.")] = True
    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the lease, and of those of the agents.")
    ] = "kube-system"
    identity: Annotated[str, typer.Option(envvar="POD_NAME", help="Name of this replica in the lease.")] = _HOST


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """The guard as part of an operator."""

    webhook_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Also be the guard, and answer API servers here; each replica does. Left out: no guard.",
        ),
    ] = ""
    webhook_for: Annotated[names.Guarded, typer.Option(help="Whose objects are guarded.")] = "netloom"
    webhook_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the guard's Secret and record.")
    ] = names.NAMESPACE


@dataclass(frozen=True, kw_only=True)
class Living:
    """How an agent says that it lives."""

    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the Lease that says that this agent lives.")
    ] = "kube-system"
    grace_period: GracePeriod = 40.0


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Whose kernel, from which objects, with which features."""

    node_name: NodeName = _HOST
    manifests: Manifests = None
    run_dir: RunDir = _RUN_DIR
    features: Features = "*"


@app.command()
@grouped
def operator(
    *,
    cluster: Cluster,
    leading: Leading,
    features: Features = "*",
    grace_period: GracePeriod = 40.0,
    http_address: HttpAddress = "127.0.0.1:9963",
    webhook: Webhook,
    guarding: guard.Guarding,
    serving: guard.Serving,
    logging: Logging,
) -> None:
    """Run the role `operator`: a NetloomNode with pod CIDRs for every Node. One leader per cluster.

    With --webhook-address it is the guard as well, and the options from there on are about that.
    """
    logging.begin()
    from netloom.roles.operator import OperatorOptions, run_operator
    from netloom.runtime import loop

    scope = guarding.scope(webhook.webhook_for, webhook.webhook_namespace)
    at = {"address": webhook.webhook_address, "address_option": "--webhook-address"}
    options = OperatorOptions(
        **vars(cluster),
        **vars(leading),
        features=features,
        grace_period=grace_period,
        http_address=http_address,
        guard=serving.options(scope, **at) if webhook.webhook_address else None,
    )
    loop.run(run_operator(options))


@app.command()
@grouped
def agent(
    *,
    node: NodeOptions,
    cluster: Cluster,
    living: Living,
    http_address: Annotated[
        str, typer.Option(help="Where /healthz, /readyz, /metrics and /status are served.")
    ] = "127.0.0.1:9964",
    logging: Logging,
) -> None:
    """Run the role `agent`: keep this node's tunnels and routes as the cluster's objects say."""
    logging.begin()
    from netloom.roles.agent import AgentOptions, run_agent
    from netloom.runtime import loop

    loop.run(run_agent(AgentOptions(**vars(node), **vars(cluster), **vars(living), http_address=http_address)))


@app.command()
@grouped
def status(
    cluster: Cluster,
    agent_address: Annotated[
        str, typer.Option(help="The agent of this machine; nothing is said of it where none answers.")
    ] = "127.0.0.1:9964",
    output: Output = "text",
) -> None:
    """Show nodes, CIDRs, peers, drift and errors at a glance."""
    from netloom.cli import status as view
    from netloom.runtime import loop

    report = loop.run(view.collect(cluster.kubeconfig, cluster.context, agent_address))
    show(output, report, view.print_text)


@app.command()
@grouped
def plan(node: NodeOptions, cluster: Cluster, output: Output = "text") -> None:
    """Print what the agent would change in the kernel, as `ip` would say it. Exit status 2 if anything."""
    from netloom.roles import agent
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    changes = loop.run(agent.plan(agent.AgentOptions(**vars(node), **vars(cluster))))
    show(output, changes, _as_ip)
    if changes:
        raise typer.Exit(EXIT_CHANGES)


@app.command()
def cleanup(run_dir: RunDir = _RUN_DIR, output: Output = "text") -> None:
    """Remove all that agents made in the kernel of this machine, by whatever feature, and nothing else."""
    from netloom.roles import agent
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    removed = loop.run(agent.cleanup(run_dir))
    show(output, removed, _as_ip)


@app.command()
def version(output: Output = "text") -> None:
    """Print the versions that matter in a report of a fault."""
    known = {"netloom": __version__, "python": platform.python_version(), "kernel": os.uname().release}
    show(output, known, lambda known: print("\n".join(f"{name} {value}" for name, value in known.items())))


def _as_ip(changes: Sequence["PlannedChange"]) -> None:
    for change in changes:
        print(f"{change.text}   # {change.why}" if change.why else change.text)
    if not changes:
        print("nothing to change")


def main() -> None:
    """Entry point. What a user can mend is one sentence on standard error and exit status 1, never a traceback."""
    try:
        app()
    except (UserError, BaseExceptionGroup) as error:
        said = sentences(error)
        if not said:
            raise
        print("\n".join(f"netloom: {sentence}" for sentence in said), file=sys.stderr)
        raise SystemExit(1) from None
