"""`netloom pools`: how full the NetloomIPPools are, and who holds what of one."""

from typing import Annotated

import typer

from netloom.api.errors import UserError
from netloom.cli.options import Cluster, Context, Kubeconfig, Output, awaited, grouped, show

pools = typer.Typer(help="Show how full the pools of IPAM mode multi-pool are.", invoke_without_command=True)


@pools.callback()
def list_pools(
    called: typer.Context, kubeconfig: Kubeconfig = None, context: Context = None, output: Output = "text"
) -> None:
    """Show how full the pools of IPAM mode multi-pool are."""
    if called.invoked_subcommand is not None:
        return
    from netloom.cli import pool_report as view

    found = awaited(view.pools(Cluster(kubeconfig=kubeconfig, context=context)))
    show(output, found, lambda found: typer.echo("\n".join(view.table(found))))


@pools.command("show")
@grouped
def show_pool(
    name: Annotated[str, typer.Argument(help="The pool.")], *, cluster: Cluster, output: Output = "text"
) -> None:
    """Show who holds what of one pool."""
    from netloom.cli import pool_report as view

    found = awaited(view.holders_of(cluster, name))
    if found.pool is None and not found.holders:
        raise UserError(f"there is no NetloomIPPool {name}; `netloom pools` lists those that there are")
    show(output, found, lambda found: typer.echo("\n".join(view.shown(name, found))))
