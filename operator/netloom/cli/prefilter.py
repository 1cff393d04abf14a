"""`netloom prefilter`: how NetloomPrefilters fare, and what becomes of packets from an address."""

from typing import Annotated

import typer

from netloom.cli.options import Cluster, Output, awaited, grouped, show

prefilter = typer.Typer(help="Show what is dropped at nodes' devices, and where.", no_args_is_help=True)


@prefilter.command()
@grouped
def status(*, cluster: Cluster, output: Output = "text") -> None:
    """Show where each NetloomPrefilter runs, and what is wrong with it. Exit status 1 if one is not ready."""
    from netloom.api.prefilter_verdict import NO_NODES
    from netloom.cli import prefilter_report as view

    found = awaited(view.prefilters(cluster))
    show(output, found, lambda found: typer.echo("\n".join(view.table(found))))
    if any(each.ready != "True" and each.reason != NO_NODES for each in found):
        raise typer.Exit(1)


@prefilter.command("test")
@grouped
def look_up(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The source of the packets, IPv4 or IPv6.")],
    *,
    node: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of this one alone. May be given several times.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="On this one alone, or those of a pattern. May be given several times."),
    ] = None,
    cluster: Cluster,
    output: Output = "text",
) -> None:
    """Say which entry decides about packets from an address, and on which devices of which nodes they are dropped.

    From the objects: the prefilters, their lists, and how the nodes say that they fare.
    """
    from netloom.cli import prefilter_report as view

    found = awaited(view.look_up(cluster, address, node or (), device or ()))
    show(output, found, lambda found: typer.echo("\n".join(view.told(found))))
