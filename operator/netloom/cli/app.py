"""`netloom`: its verbs, and the one place where an error becomes a sentence and an exit status."""

import os
import platform
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netloom import __version__
from netloom.api.errors import UserError, sentences

app = typer.Typer(
    help="The node-networking control plane of a Kubernetes cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_CHANGES = 2
"""Exit status of `netloom plan` when the kernel differs from what is wanted."""


class Output(StrEnum):
    """How an answer is printed."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """`auto`: readable on a terminal, JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


Kubeconfig = Annotated[
    str | None,
    typer.Option(
        envvar="KUBECONFIG",
        metavar="FILE",
        help="How to reach the cluster. Left out: the service account of the pod, else ~/.kube/config.",
    ),
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig, if not its current one.")]
NodeName = Annotated[
    str, typer.Option("--node-name", envvar="NODE_NAME", help="Name of this machine's Node.", show_default="host name")
]
Manifests = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Take the objects from manifest files in this directory instead of a cluster."),
]
RunDir = Annotated[Path, typer.Option(metavar="DIR", help="Where the agent keeps what `cleanup` has to restore.")]
Format = Annotated[Output, typer.Option("-o", "--output", help="text or json.")]
Log = Annotated[LogFormat, typer.Option("--log-format", envvar="NETLOOM_LOG_FORMAT", help="auto, json or console.")]
Level = Annotated[LogLevel, typer.Option("--log-level", envvar="NETLOOM_LOG_LEVEL", help="The least that is logged.")]

_HOST = socket.gethostname().lower()
_RUN_DIR = Path("/run/netloom")


@app.command()
def operator(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    leader_elect: Annotated[bool, typer.Option(help="Work only while holding the lease.")] = True,
    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the lease.")
    ] = "kube-system",
    identity: Annotated[str, typer.Option(envvar="POD_NAME", help="Name of this replica in the lease.")] = _HOST,
    http_address: Annotated[
        str, typer.Option(help="Where /healthz, /readyz and /metrics are served.")
    ] = "127.0.0.1:9963",
    log_format: Log = LogFormat.AUTO,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run the role `operator`: a NetloomNode with pod CIDRs for every Node. One leader per cluster."""
    from netloom.runtime import log, loop

    log.configure(log_format.value, log_level.value)
    from netloom.roles.operator import OperatorOptions, run_operator

    options = OperatorOptions(
        kubeconfig=kubeconfig,
        context=context,
        leader_elect=leader_elect,
        lease_namespace=lease_namespace,
        identity=identity,
        http_address=http_address,
    )
    loop.run(run_operator(options))


@app.command()
def agent(
    node_name: NodeName = _HOST,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    manifests: Manifests = None,
    run_dir: RunDir = _RUN_DIR,
    http_address: Annotated[
        str, typer.Option(help="Where /healthz, /readyz, /metrics and /status are served.")
    ] = "127.0.0.1:9964",
    log_format: Log = LogFormat.AUTO,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run the role `agent`: keep this node's tunnels and routes as the cluster's objects say."""
    from netloom.runtime import log, loop

    log.configure(log_format.value, log_level.value)
    from netloom.roles.agent import AgentOptions, run_agent

    options = AgentOptions(
        node_name=node_name,
        kubeconfig=kubeconfig,
        context=context,
        manifests=manifests,
        run_dir=run_dir,
        http_address=http_address,
    )
    loop.run(run_agent(options))


@app.command()
def status(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    agent_address: Annotated[
        str, typer.Option(help="The agent of this machine; nothing is said of it where none answers.")
    ] = "127.0.0.1:9964",
    output: Format = Output.TEXT,
) -> None:
    """Show nodes, CIDRs, peers, drift and errors at a glance."""
    from netloom.cli import status as view
    from netloom.runtime import loop

    report = loop.run(view.collect(kubeconfig, context, agent_address))
    view.print_json(report) if output is Output.JSON else view.print_text(report)


@app.command()
def plan(
    node_name: NodeName = _HOST,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    manifests: Manifests = None,
    run_dir: RunDir = _RUN_DIR,
    output: Format = Output.TEXT,
) -> None:
    """Print what the agent would change in the kernel, as `ip` would say it. Exit status 2 if anything."""
    from netloom.cli import plan as view
    from netloom.roles import agent
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    options = agent.AgentOptions(
        node_name=node_name, kubeconfig=kubeconfig, context=context, manifests=manifests, run_dir=run_dir
    )
    changes = loop.run(agent.plan(options))
    view.print_json(changes) if output is Output.JSON else view.print_text(changes)
    if changes:
        raise typer.Exit(EXIT_CHANGES)


@app.command()
def cleanup(run_dir: RunDir = _RUN_DIR, output: Format = Output.TEXT) -> None:
    """Remove every device, route, neighbour and nexthop that Netloom made on this machine, and nothing else."""
    from netloom.cli import plan as view
    from netloom.roles import agent
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    removed = loop.run(agent.cleanup(run_dir))
    view.print_json(removed) if output is Output.JSON else view.print_text(removed)


@app.command()
def version(output: Format = Output.TEXT) -> None:
    """Print the versions that matter in a report of a fault."""
    import msgspec

    known = {"netloom": __version__, "python": platform.python_version(), "kernel": os.uname().release}
    if output is Output.JSON:
        print(msgspec.json.encode(known).decode())
    else:
        print("\n".join(f"{name} {value}" for name, value in known.items()))


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
