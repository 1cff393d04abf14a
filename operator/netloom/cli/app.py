"""`netloom`: its verbs, and the one place where an error becomes a sentence and an exit status."""

import os
import platform
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from netloom import __version__
from netloom.api.errors import UserError, sentences
from netloom.cli import guard
from netloom.cli.options import (
    Context,
    Features,
    Format,
    Kubeconfig,
    Level,
    Log,
    LogFormat,
    LogLevel,
    Manifests,
    NodeName,
    Output,
    RunDir,
)
from netloom.webhook import names

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


@app.command()
def operator(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    leader_elect: Annotated[bool, typer.Option(help="Work only while holding the lease.")] = True,
    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the lease.")
    ] = "kube-system",
    identity: Annotated[str, typer.Option(envvar="POD_NAME", help="Name of this replica in the lease.")] = _HOST,
    features: Features = "*",
    http_address: Annotated[
        str, typer.Option(help="Where /healthz, /readyz and /metrics are served.")
    ] = "127.0.0.1:9963",
    webhook_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Also be the guard, and answer API servers here; each replica does. Left out: no guard.",
        ),
    ] = "",
    webhook_for: Annotated[guard.Guarded, typer.Option(help="Whose objects are guarded.")] = guard.Guarded.NETLOOM,
    webhook_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the guard's Secret and record.")
    ] = names.NAMESPACE,
    cilium_namespace: guard.CiliumNamespace = names.CILIUM_NAMESPACE,
    dns_name: guard.Hosts = guard.NO_HOSTS,
    tls_cert_file: guard.CertificateFile = None,
    tls_key_file: guard.KeyFile = None,
    tls_ca_file: guard.AuthorityFile = None,
    operator_user: guard.OperatorUsers = guard.OPERATORS,
    agent_user: guard.AgentUsers = guard.AGENTS,
    log_format: Log = LogFormat.AUTO,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run the role `operator`: a NetloomNode with pod CIDRs for every Node. One leader per cluster.

    With --webhook-address it is the guard as well, and the options from there on are about that.
    """
    from netloom.runtime import log, loop

    log.configure(log_format.value, log_level.value)
    from netloom.roles.operator import OperatorOptions, run_operator
    from netloom.roles.webhook import GuardOptions

    scope = names.Scope(webhook_for.value, webhook_namespace, cilium_namespace, tuple(operator_user), tuple(agent_user))
    guarding = GuardOptions(
        scope=scope,
        address=webhook_address,
        address_option="--webhook-address",
        hosts=tuple(dns_name),
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
        tls_ca_file=tls_ca_file,
    )
    options = OperatorOptions(
        kubeconfig=kubeconfig,
        context=context,
        leader_elect=leader_elect,
        lease_namespace=lease_namespace,
        identity=identity,
        http_address=http_address,
        features=features,
        guard=guarding if webhook_address else None,
    )
    loop.run(run_operator(options))


@app.command()
def agent(
    node_name: NodeName = _HOST,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    manifests: Manifests = None,
    run_dir: RunDir = _RUN_DIR,
    features: Features = "*",
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
        features=features,
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
    features: Features = "*",
    output: Format = Output.TEXT,
) -> None:
    """Print what the agent would change in the kernel, as `ip` would say it. Exit status 2 if anything."""
    from netloom.cli import plan as view
    from netloom.roles import agent
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    options = agent.AgentOptions(
        node_name=node_name,
        kubeconfig=kubeconfig,
        context=context,
        manifests=manifests,
        run_dir=run_dir,
        features=features,
    )
    changes = loop.run(agent.plan(options))
    view.print_json(changes) if output is Output.JSON else view.print_text(changes)
    if changes:
        raise typer.Exit(EXIT_CHANGES)


@app.command()
def cleanup(run_dir: RunDir = _RUN_DIR, output: Format = Output.TEXT) -> None:
    """Remove all that agents made in the kernel of this machine, by whatever feature, and nothing else."""
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
