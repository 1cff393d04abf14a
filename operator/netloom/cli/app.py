"""`netloom`: its verbs."""

import itertools
import os
import platform
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from netloom import __version__
from netloom.api.errors import UserError
from netloom.cli import crds, guard, ip, machine, pools, prefilter, uninstall
from netloom.cli.help import CommandGroup, show_help
from netloom.cli.options import (
    Cluster,
    CniHost,
    CniInstall,
    Features,
    GiveBackAfter,
    GracePeriod,
    HttpAddress,
    Logging,
    Output,
    Socket,
    StateDir,
    StatusOutput,
    awaited,
    grouped,
    show,
)
from netloom.cli.process import say
from netloom.webhook import names

# Plain text: it is read, searched and pasted as it is, and starts a third faster than boxes.
app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`netloom help COMMAND` says more of one. Exit status: 0 all is well, 1 it is not, 2 wrong command line.",
)

app.add_typer(guard.guard, name="guard")
app.add_typer(ip.ip, name="ip")
app.add_typer(pools.pools, name="pools")
app.add_typer(prefilter.prefilter, name="prefilter")
app.command()(guard.webhook)
app.command()(machine.plan)
app.command()(machine.cleanup)
app.command()(crds.crds)
app.command()(uninstall.uninstall)

WAIT = "5m"
"""How long `netloom status --wait` waits."""


@dataclass(frozen=True, kw_only=True)
class Leading:
    """Who leads."""

    leader_elect: Annotated[bool, typer.Option(help="Work only while holding the lease.")] = True
    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the lease, and of those of the agents.")
    ] = "kube-system"
    identity: Annotated[str, typer.Option(envvar="POD_NAME", help="Name of this replica in the lease.")] = machine.HOST


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
    logging.run(run_operator(options))


@app.command()
@grouped
def agent(
    *,
    node: machine.NodeOptions,
    cluster: Cluster,
    living: Living,
    state_dir: StateDir = None,
    socket: Socket = None,
    give_back_after: GiveBackAfter = 60.0,
    cni_install: CniInstall,
    cni_host: CniHost,
    http_address: Annotated[
        str, typer.Option(help="Where /healthz, /readyz, /metrics and /status are served.")
    ] = "127.0.0.1:9964",
    logging: Logging,
) -> None:
    """Run the role `agent`: keep this node's tunnels and routes as the cluster's objects say."""
    logging.begin()
    from netloom.roles.agent import run_agent
    from netloom.roles.agent_sources import AgentOptions

    groups = {**vars(node), **vars(cluster), **vars(living)}
    groups |= {"state_dir": state_dir, "socket": socket, "give_back_after": give_back_after}
    groups["cni"] = machine.cni_options(node.run_dir, cni_host, cni_install)
    logging.run(run_agent(AgentOptions(**groups, http_address=http_address)))


class OptionalWait(TyperCommand):
    """`--wait` alone is `--wait=` with its default: typer knows no option whose value may be left out. A word behind it
    is its value, as there are no arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class does."""
        pairs = itertools.pairwise([*args, "-"])
        given = [f"--wait={WAIT}" if arg == "--wait" and after.startswith("-") else arg for arg, after in pairs]
        return super().parse_args(ctx, given)


@app.command(cls=OptionalWait)
@grouped
def status(
    cluster: Cluster,
    lease_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Where the operator and the agents keep their Leases.")
    ] = "kube-system",
    agent_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="The agent of this machine. Left out: 127.0.0.1:9964, and nothing is said where none answers.",
        ),
    ] = "",
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="[=DURATION]", help=f"Wait until nothing is wrong, so long at most; {WAIT} if no duration is given."
        ),
    ] = None,
    output: StatusOutput = "text",
) -> None:
    """Say whether all is well, and if not, what is wrong: nodes, addresses, operator, agents.

    Exit status: 0 nothing is wrong, 1 something is, 2 the command line is wrong, 3 the cluster could not be asked.
    """
    from netloom.cli import status as view
    from netloom.cli.status_text import printed

    asked = view.StatusOptions(**vars(cluster), lease_namespace=lease_namespace, agent_address=agent_address)
    try:
        asked.check()
        seconds = None if wait is None else view.duration(wait)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(view.run(asked, seconds, lambda report: typer.echo(printed(report, output))))


@app.command()
@grouped
def check(
    node: Annotated[str, typer.Argument(metavar="[NODE]", help="The peer; left out: a few, or all of a few.")] = "",
    *,
    cluster: Cluster,
    agent_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The agent that is to look. Left out: 127.0.0.1:9964.")
    ] = "",
    output: Output = "text",
) -> None:
    """Have this machine's agent look now whether packets of pods pass to other nodes, and say where they are lost.

    It sends packets as pods do, of full size, by both address families, and explains: MTU, forward hooks, a firewall
    between the nodes, one-way loss. On a machine without an agent it prints what the agent of NODE saw last.

    Exit status: 0 all pass, 1 something is lost or not known, 2 the command line is wrong, 3 nobody could look.
    """
    from netloom.cli import check as view

    try:
        found, status, said = awaited(view.run(cluster, node=node, address=agent_address))
    except UserError as error:
        say(str(error))
        raise typer.Exit(view.EXIT_NOT_ASKED) from error
    if found is not None and output == "json":
        show(output, found, lambda found: None)
    else:
        typer.echo("\n".join(said))
    raise typer.Exit(status)


@app.command()
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish")]) -> None:
    """Print the script that completes commands and options when TAB is pressed.

    Load it with `source <(netloom completion bash)`, in zsh with `source <(netloom completion zsh)`, in fish with
    `netloom completion fish | source`; for good, put that line into ~/.bashrc, ~/.zshrc (behind compinit) or
    ~/.config/fish/config.fish. kubectl completes `kubectl netloom` by itself.
    """
    from netloom.cli.completion import SCRIPTS

    print(SCRIPTS[shell], end="")


@app.command("help")
def help_(
    called: typer.Context, command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]")] = None
) -> None:
    """Show this, or the help of a command."""
    show_help(called, command or [])


@app.command()
def version(output: Output = "text") -> None:
    """Print the versions that matter in a report of a fault."""
    known = {"netloom": __version__, "python": platform.python_version(), "kernel": os.uname().release}
    show(output, known, lambda known: print("\n".join(f"{name} {value}" for name, value in known.items())))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"netloom {__version__}")
        raise typer.Exit


@app.callback()
def netloom(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """The node-networking control plane of a Kubernetes cluster."""
