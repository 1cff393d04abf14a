"""A control plane from the shell: `eval "$(e2e/netloom-e2e up)"`, then `kubectl get nodes`.

What a shell is to evaluate goes to standard output, what a person is to read to standard error.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table

from netloom_e2e import (
    binaries,
    commit_before,
    kubelets,
    netloom_cluster,
    netloom_image,
    page,
    processes,
    specs,
    virtual_machine,
)
from netloom_e2e.building import building
from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.cluster import ControlPlane, ControlPlaneError
from netloom_e2e.pod_networks import Nobody

app = typer.Typer(
    help="A real Kubernetes control plane on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _checked(name: str) -> str:
    try:
        processes.folder_of(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return name


Name = Annotated[str, typer.Option(callback=_checked, help="Tells control planes that run side by side apart.")]


@app.command()
def up(
    name: Name = "default",
    controller_manager: Annotated[bool, typer.Option("--controller-manager", help="Run it as well.")] = False,
    bind: Annotated[str, typer.Option(metavar="ADDRESS", help="What the API server listens on.")] = "127.0.0.1",
) -> None:
    """Start a control plane that stays, and print how to use it."""
    processes.sweep()
    folder = processes.folder_of(name)
    if folder.exists():
        if _answer(folder) != "ok":
            _fail(
                f"control plane {name!r} is there but does not answer; `e2e/netloom-e2e down --name {name}` removes it"
            )
        _say(f"control plane {name!r} is up already")
    else:
        try:
            plane = ControlPlane(name, bind=bind, controller_manager=controller_manager)
            plane.start()
        except (ControlPlaneError, binaries.BinariesError, OSError, ValueError) as error:
            _fail(str(error))
        plane.detach()
        _say(f"control plane {name!r} was ready after {plane.start_seconds:.1f} s: {plane.url}")
    print(f"export KUBECONFIG={_admin_kubeconfig(folder)}")
    print(f"export PATH={binaries.find('kubectl').parent}:$PATH")
    _say(f"take it down with: e2e/netloom-e2e down --name {name}")


@app.command()
def down(
    name: Name = "default",
    everything: Annotated[bool, typer.Option("--all", help="All that `up` started, and what crashes left.")] = False,
) -> None:
    """Stop a control plane that `up` started, and remove its files."""
    processes.sweep()
    folders = processes.folders() if everything else [processes.folder_of(name)]
    kept = [folder for folder in folders if (folder / "detached").exists()]
    for folder in kept:
        processes.destroy(folder)
        _say(f"control plane {folder.name!r} is gone")
    if not kept:
        _say("there is none" if everything else f"there is no control plane {name!r} that `up` started")


class Wired(StrEnum):
    NETLOOM = "netloom"
    BRIDGE = "bridge"
    NOBODY = "nobody"


def _unwired(prefix: str, *, nodes: int, name: str) -> kubelets.KubeletCluster:
    """As docs/install.md finds one, with the image in it and Helm beside it."""
    binaries.helm()
    image = replace(netloom_image.netloom(), aliases=(page.IMAGE,))
    return kubelets.KubeletCluster(prefix, nodes=nodes, name=name, network=Nobody(), further=[image])


_CLUSTERS: dict[Wired, Callable[..., kubelets.KubeletCluster]] = {
    Wired.NETLOOM: netloom_cluster.cluster,
    Wired.BRIDGE: kubelets.KubeletCluster,
    Wired.NOBODY: _unwired,
}


@app.command()
def cluster(
    name: Name = "cluster",
    nodes: Annotated[int, typer.Option(min=1, max=9, help="How many.")] = 3,
    wired_by: Annotated[
        Wired, typer.Option(help="Who wires pods; bridge: the CNI's own; nobody: you.")
    ] = Wired.NETLOOM,
) -> None:
    """Start a cluster of kubelets that stays, and print how to use it. Takes root."""
    processes.sweep()
    if processes.folder_of(name).exists():
        _fail(f"there is a cluster {name!r}; `e2e/netloom-e2e down --name {name}` removes it")
    try:
        kubelets.prepare()
        made = _CLUSTERS[wired_by](name[:8], nodes=nodes, name=name)
        made.start()
        kubeconfig = made.detach()
    except (ControlPlaneError, binaries.BinariesError, RuntimeError, AssertionError, OSError) as error:
        _fail(str(error))
    took = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in made.seconds.items())
    _say(f"cluster {name!r} is up ({took})")
    print(f"export KUBECONFIG={kubeconfig}")
    print(f"export PATH={binaries.find('kubectl').parent}:$PATH")
    if wired_by is Wired.NOBODY:
        print(f"export PATH={binaries.helm().parent}:$PATH")
        _say(f"its nodes have the image {page.IMAGE} and no pod network: docs/install.md goes on from there, at step 3")
        _say(f"nothing is pulled from elsewhere: pods of your own can run {made.image('agnhost')}")
    for node in made.nodes.values():
        _say(f"a shell on {node.name}: {' '.join(node.enter)} bash")
    _say(f"take it down with: e2e/netloom-e2e down --name {name}")


class What(StrEnum):
    CLUSTER = "cluster"
    CONTROL_PLANE = "control-plane"
    HELM = "helm"
    IMAGE = "image"
    KERNEL = "kernel"
    OPA = "opa"
    SPECS = "specs"


_TESTS = [What.CONTROL_PLANE, What.CLUSTER, What.SPECS, What.IMAGE, What.HELM, What.KERNEL]
_MAKERS: dict[What, Callable[[], object]] = {
    What.CLUSTER: kubelets.prepare,
    What.IMAGE: lambda: (netloom_image.another(), commit_before.image()),
    What.CONTROL_PLANE: binaries.prepare,
    What.HELM: binaries.helm,
    What.KERNEL: lambda: (virtual_machine.kernel(), virtual_machine.newer_kernel()),
    What.OPA: binaries.opa,
    What.SPECS: specs.prepare,
}


_COMPILED = (What.CONTROL_PLANE, What.CLUSTER, What.HELM, What.OPA)
"""By Go, which uses all processors; while others are downloaded they would have nothing to do."""


@app.command()
def build(
    what: Annotated[list[What] | None, typer.Argument(help="If not given: what the tests need.")] = None,
    beside: Annotated[
        str, typer.Option(metavar="COMMAND", help="What a shell runs meanwhile; if that fails, so does this.")
    ] = "",
) -> None:
    """Build or download what the cache does not have yet."""
    wanted = what or _TESTS
    compiled = [each for each in wanted if each in _COMPILED]
    with ExitStack() as meanwhile:
        if beside:
            for some in (compiled, [each for each in wanted if each not in compiled]):
                if some:
                    meanwhile.enter_context(building(*some))
            if status := subprocess.run(beside, shell=True, check=False).returncode:
                raise typer.Exit(status)
        try:
            for each in wanted:  # waits for what is being built, and tells what failed
                _MAKERS[each]()
        except binaries.BinariesError as error:
            _fail(str(error))


@app.command()
def status() -> None:
    """List the control planes of this user: those that `up` started, and those of running tests."""
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "OWNER", "READY", "SERVER", "PROCESSES"):
        table.add_column(column, overflow="fold")
    for folder in processes.folders():
        owner = "-" if (folder / "detached").exists() else f"pid {(folder / 'owner').read_text().strip()}"
        programs = ", ".join(f"{program} {pid}" for pid, program in sorted(processes.members(folder).items()))
        table.add_row(folder.name, owner, _answer(folder), _server(folder), programs)
    Console().print(table if table.row_count else "no control plane is up")


def _admin_kubeconfig(folder: Path) -> Path:
    return folder / "kubeconfigs" / "admin.yaml"


def _server(folder: Path) -> str:
    try:
        config = yaml.safe_load(_admin_kubeconfig(folder).read_text())
    except FileNotFoundError:
        return ""
    return str(config["clusters"][0]["cluster"]["server"])


def _answer(folder: Path) -> str:
    """`ok`, or why it is not."""
    try:
        return str(Client.from_kubeconfig(_admin_kubeconfig(folder)).request("GET", "/readyz", timeout=5))
    except FileNotFoundError:
        return "starting"
    except (OSError, ApiFailure) as error:
        return str(error).splitlines()[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _fail(text: str) -> NoReturn:
    _say(f"netloom-e2e: {text}")
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="netloom-e2e")
