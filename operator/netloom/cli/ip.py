"""`netloom ip`: single addresses of this machine's node, as the CNI plugin asks for them.

All of it goes through the agent's socket, which takes no other caller than root.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from netloom.api.errors import UserError
from netloom.cli.options import RUN_DIR, Cluster, Output, awaited, grouped, show
from netloom_reconcilers.node.addresses.wire import (
    SOCKET,
    WAIT_SECONDS,
    AddressListing,
    Ask,
    Assignment,
    ErrorAnswer,
    Released,
    Why,
)

M = TypeVar("M", bound=msgspec.Struct)

_PATH = RUN_DIR / SOCKET
_SLACK = 10.0
"""Seconds for the answer, beside those that the agent waits."""

ip = typer.Typer(help="Addresses of pods on this machine: give, take back, list.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="Who is to have it; any other word will do.")]
Container = Annotated[str, typer.Option(metavar="ID", help="Of the container, for what the CNI made.")]
Interface = Annotated[str, typer.Option(metavar="NAME", help="Of the container.")]
AtSocket = Annotated[Path, typer.Option("--socket", metavar="FILE", help="Where the agent of this machine listens.")]


@ip.command()
@grouped
def allocate(
    name: Name,
    *,
    container: Container = "",
    interface: Interface = "eth0",
    pool: Annotated[str | None, typer.Option(help="Instead of the one that follows from the pod.")] = None,
    family: Annotated[
        list[int] | None, typer.Option(metavar="4|6", help="Of this one alone. Left out: one of each that there is.")
    ] = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait if there is none.")] = 10.0,
    socket: AtSocket = _PATH,
    output: Output = "text",
) -> None:
    """Give addresses to an owner; one that has some already keeps them."""
    asked = Ask(name, container, interface, pool, tuple(family or ()), wait)
    found = _ask(socket, "POST", "/v1/addresses", Assignment, data=msgspec.json.encode(asked), wait=wait)
    show(output, found, lambda found: print("\n".join(each.address for each in found.addresses)))


@ip.command()
@grouped
def release(
    name: Name,
    *,
    container: Container = "",
    interface: Interface = "eth0",
    address: Annotated[
        list[str] | None, typer.Option(help="This one alone. May be given several times. Left out: all that it has.")
    ] = None,
    socket: AtSocket = _PATH,
    output: Output = "text",
) -> None:
    """Take back what exactly this owner has. It rests for a while before another one gets it."""
    query = [("name", name), ("container", container), ("interface", interface)]
    query += [("address", each) for each in address or ()]
    found = _ask(socket, "DELETE", "/v1/addresses", Released, params=query)
    show(output, found, lambda found: print("\n".join(found.released) or f"{name} has none of these"))


@ip.command("list")
@grouped
def list_(*, socket: AtSocket = _PATH, output: Output = "text") -> None:
    """Show who has which address, and how many there are."""
    found = _ask(socket, "GET", "/v1/addresses", AddressListing)
    show(output, found, lambda found: print("\n".join(lines(found))))


@ip.command()
@grouped
def why(
    name: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="The pod.")],
    *,
    cluster: Cluster,
    socket: AtSocket = _PATH,
    output: Output = "text",
) -> None:
    """Say why a pod gets its addresses from the pool it does, which it has, or why it waits.

    On the pod's node the agent is asked, elsewhere the API server.
    """
    if not cluster.kubeconfig and not cluster.context and socket.exists():
        found = _ask(socket, "GET", "/v1/why", Why, params=[("name", name)])
    else:
        from netloom.cli.why import ask_api_server

        found = awaited(ask_api_server(cluster, name))
    show(output, found, lambda found: print("\n".join(told(found))))


def told(found: Why) -> list[str]:
    """As text."""
    from netloom.cli.status_text import safe

    printed = [f"pod {found.name}, node {found.node or '(none)'}, IPAM mode {found.mode}"]
    printed += [f"{each.family}: pool {each.pool}: {each.why}" for each in found.choices]
    printed += [f"has {', '.join(found.addresses)}"] if found.addresses else []
    printed += [each for each in (found.note, f"waits: {found.waits}" if found.waits else "") if each]
    return [safe(line) for line in printed]


def lines(found: AddressListing) -> list[str]:
    """As text."""
    from netloom.cli.status_text import aligned

    rows: list[tuple[str, ...]] = [("ADDRESS", "POOL", "OWNER", "CONTAINER", "INTERFACE")]
    rows += [
        (given.address, each.pool or "-", each.name, each.container[:12] or "-", each.interface or "(seen to run)")
        for each in found.assignments
        for given in each.addresses
    ]
    printed = [*aligned(rows)]
    counts: list[tuple[str, ...]] = [("POOL", "FAMILY", "USED", "FREE", "RESTING", "WAITING")]
    counts += [
        (each.pool or "-", f"IPv{each.family}", *map(str, (each.used, each.free, each.resting, each.waiting)))
        for each in found.pools
    ]
    printed += ["", *aligned(counts)]
    if found.orphans:
        printed += ["", f"not of this node any more, and in use: {', '.join(found.orphans)}"]
    return printed


def _ask(path: Path, method: str, url: str, kind: type[M], *, wait: float = WAIT_SECONDS, **what: Any) -> M:
    """What the agent answers. Raises UserError."""
    return awaited(_answered(path, method, url, kind, wait, what))


async def _answered(path: Path, method: str, url: str, kind: type[M], wait: float, what: dict[str, Any]) -> M:
    from netloom.cli import agent_http

    try:
        answer = await agent_http.ask(path, url, wait + _SLACK, method, **what)
    except agent_http.Nobody as nobody:
        advice = "Run it as root on a node whose agent runs, or name its socket by --socket."
        raise UserError(f"{nobody} {advice}") from nobody
    if answer.status != 200:
        raise UserError(answer.decode(ErrorAnswer).message)
    return answer.decode(kind)
