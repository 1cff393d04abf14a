"""`netloom`: its verbs."""

import itertools
import os
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from netloom import __version__
from netloom.api.errors import UserError, WrongUsage
from netloom.cli import crds, guard, ip, pools, prefilter, uninstall
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
    Manifests,
    NodeName,
    Output,
    RunDir,
    Socket,
    StateDir,
    StatusOutput,
    grouped,
    show,
)
from netloom.cli.process import say
from netloom.webhook import names

if TYPE_CHECKING:
    from netloom.kernel.keeper.report import PlannedChange

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
app.command()(crds.crds)
app.command()(uninstall.uninstall)

EXIT_CHANGES = 2
"""Exit status of `netloom plan` when the kernel differs from what is wanted."""

WAIT = "5m"
"""How long `netloom status --wait` waits."""

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
    node: NodeOptions,
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
    groups["cni"] = _cni(node.run_dir, cni_host, cni_install)
    logging.run(run_agent(AgentOptions(**groups, http_address=http_address)))


def _cni(run_dir: Path, host: CniHost, install: CniInstall | None) -> Any:
    """CniOptions of that; None where nobody is to be answered. Without `install` what may be there."""
    from netloom_reconcilers.node.endpoints.options import SOCKET, CniOptions, Places

    if install is not None and not install.cni_install:
        return CniOptions(host.cni_socket, host.cni_deletions) if host.cni_socket is not None else None
    places = Places(bin_dir=host.cni_bin_dir, conf_dir=host.cni_conf_dir)
    if install is not None:
        chain = tuple(name for each in install.cni_chain.split(",") if (name := each.strip()))
        places = places._replace(plugin=install.cni_plugin, chain=chain, version=install.cni_version)
    return CniOptions(host.cni_socket or run_dir / SOCKET, host.cni_deletions, places)


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
    from netloom.runtime import log, loop

    log.configure("auto", "error")
    try:
        found, status, said = loop.run(view.run(**vars(cluster), node=node, address=agent_address))
    except UserError as error:
        say(str(error))
        raise typer.Exit(view.EXIT_NOT_ASKED) from error
    if found is not None and output == "json":
        show(output, found, lambda found: None)
    else:
        typer.echo("\n".join(said))
    raise typer.Exit(status)


@app.command()
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
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    found = loop.run(node_plan.plan(AgentOptions(**vars(node), **vars(cluster)), FEATURES))
    show(output, found.changes, lambda changes: _as_ip(changes, "change", whole=not found.unread))
    _tell((*found.unread, *found.left_out))
    if found.changes:
        raise typer.Exit(EXIT_CHANGES)
    if found.unread or found.left_out:
        raise typer.Exit(1)


@app.command()
@grouped
def cleanup(
    *,
    run_dir: RunDir = _RUN_DIR,
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
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    running = presence.sentence()
    if running and not dry_run:
        raise UserError(f"{running} Stop it first: its DaemonSet's pod on this node, or its service.")
    where: dict[str, Any] = {"state_dir": state_dir, "socket": socket, "cni": _cni(run_dir, cni_host, None)}
    if dry_run or not yes:
        would = loop.run(node_plan.cleanup(run_dir, FEATURES, dry_run=True, **where))
        if dry_run or not would.changes:
            show(output, would.changes, lambda changes: _as_ip(changes, "remove", whole=not would.unread))
            _tell((*would.unread, *would.left, *filter(None, [running])))
            return
        _ask(would.changes)
    done = loop.run(node_plan.cleanup(run_dir, FEATURES, forget=forget, **where))
    show(output, done.changes, lambda changes: _as_ip(changes, "remove"))
    _tell(done.left)
    if report is not None:
        report.write_text("\n".join(done.left))


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


def _as_ip(changes: Sequence["PlannedChange"], verb: str, *, whole: bool = True) -> None:
    for change in changes:
        print(f"{change.text}   # {change.why}" if change.why else change.text)
    if not changes:
        print(f"nothing to {verb}" if whole else f"nothing to {verb} in what could be read")


def _tell(sentences: Sequence[str]) -> None:
    sys.stdout.flush()
    for sentence in sentences:
        say(sentence)


def _ask(changes: Sequence["PlannedChange"]) -> None:
    """Shows what would go. Raises typer.Exit where the answer is no."""
    _as_ip(changes, "remove")
    sys.stdout.flush()
    print(f"Remove these {len(changes)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say("nothing was removed")
        raise typer.Exit(1)
