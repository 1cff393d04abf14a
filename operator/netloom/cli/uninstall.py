"""`netloom uninstall`: takes Netloom out of a cluster, as the chart does before it deletes a release."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from netloom.api.errors import UserError, WrongUsage
from netloom.cli.options import Cluster, awaited, grouped
from netloom.cli.process import confirm
from netloom.webhook import names

if TYPE_CHECKING:
    from netloom.uninstall.steps import UninstallOptions


@dataclass(frozen=True, kw_only=True)
class Machines:
    """How machines are cleaned."""

    image: Annotated[
        str, typer.Option(help="Image of Netloom for the pods that clean the machines.", show_default="that of agents")
    ] = ""
    cni_bin_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where machines have CNI plugins, if there are no agents to see it of.")
    ] = ""
    cni_conf_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where machines have CNI configurations, as --cni-bin-dir.")
    ] = ""
    pods_in: Annotated[
        str,
        typer.Option(
            metavar="NAMESPACE",
            help="Where the pods that clean are made.",
            show_default="that of Netloom, or netloom-uninstall where that one is gone or going",
        ),
    ] = ""
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long machines that answer may take to be clean.")
    ] = 120.0
    no_nodes: Annotated[bool, typer.Option("--no-nodes", help="Leave the machines as they are: clean, or gone.")] = (
        False
    )


@grouped
def uninstall(
    *,
    cluster: Cluster,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", envvar="POD_NAMESPACE", help="Where Netloom is installed.")
    ] = names.NAMESPACE,
    machines: Machines,
    guard_only: Annotated[
        bool, typer.Option("--guard-only", help="Take away the guard alone, as beside Cilium.")
    ] = False,
    by_helm: Annotated[
        bool,
        typer.Option("--by-helm", help="Leave rights, accounts and Services to Helm, which is about to delete them."),
    ] = False,
    cilium_namespace: Annotated[
        str, typer.Option(help="Where the guard's rights over Cilium's configuration are.")
    ] = names.CILIUM_NAMESPACE,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Take Netloom out of a cluster without a trace: guard, agents, what they made on machines, all objects.

    Pods lose the network. It works while no guard answers, and while Netloom's namespace is gone or being deleted;
    where it fails, running it again goes on from there. CustomResourceDefinitions stay: `kubectl delete -f crds/`.
    """
    from netloom.uninstall.steps import UninstallOptions

    if not yes:
        _ask(guard_only)
    options = UninstallOptions(
        namespace=namespace,
        pods_in=machines.pods_in,
        guard_only=guard_only,
        by_helm=by_helm,
        no_nodes=machines.no_nodes,
        image=machines.image,
        bin_dir=machines.cni_bin_dir,
        conf_dir=machines.cni_conf_dir,
        seconds=machines.timeout,
        cilium_namespace=cilium_namespace,
    )
    awaited(_run(cluster, options))


async def _run(cluster: Cluster, options: "UninstallOptions") -> None:
    from netloom.runtime.errors import ApiError
    from netloom.uninstall.patience import PatientApi
    from netloom.uninstall.steps import uninstall as take_away

    def tell(sentence: str) -> None:
        print(sentence, flush=True)

    api = await PatientApi.connect(cluster.kubeconfig, cluster.context, user_agent="netloom-uninstall")
    async with api:
        await api.check()
        api.say = tell
        try:
            await take_away(api, options, tell)
        except ApiError as error:
            raise UserError(f"{error}. What was done stays done: run it again.") from error


def _ask(guard_only: bool) -> None:
    """Raises WrongUsage where there is nobody to ask, typer.Exit where the answer is no."""
    if not sys.stdin.isatty():
        raise WrongUsage(
            "uninstall takes the network from all pods of the cluster, and there is no terminal to ask on: give --yes"
        )
    what = "the guard away" if guard_only else "Netloom out of the cluster, and the network from all of its pods"
    confirm(f"This takes {what}. Go on?", "nothing was done")
