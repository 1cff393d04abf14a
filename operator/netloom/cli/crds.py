"""`netloom crds`: a folder's CustomResourceDefinitions into the cluster, as the chart's Job does before an upgrade."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from netloom.api.errors import UserError
from netloom.cli.options import Cluster, grouped

KIND = "CustomResourceDefinition"
SERVED_SECONDS = 30.0
"""How long it is waited until the API server serves a kind that is new."""


@grouped
def crds(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with their manifests, as crds/ of the chart.")],
    *,
    cluster: Cluster,
) -> None:
    """Bring the cluster's CustomResourceDefinitions up to date, and wait until they are served.

    It changes the definitions that are in the folder, whoever applied them before, and removes none.
    """
    manifests = read(folder)
    from netloom.runtime import log, loop

    log.configure("auto", "warning")
    loop.run(_apply(manifests, cluster.kubeconfig, cluster.context))


def read(folder: Path) -> list[dict[str, Any]]:
    """All manifests in the folder's YAML files. Raises UserError where one is no definition, or there is none."""
    import yaml

    from netloom.runtime.yaml_documents import documents

    found: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            contents = documents(file.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        for each in filter(None, contents):
            if not isinstance(each, dict) or each.get("kind") != KIND:
                raise UserError(f"{file} holds something that is no {KIND}; only these may be in there")
            found.append(each)
    if not found:
        raise UserError(f"there is no {KIND} in {folder}; give the folder that holds them, such as crds/ of the chart")
    return found


async def _apply(manifests: list[dict[str, Any]], kubeconfig: str | None, context: str | None) -> None:
    import asyncio

    from netloom.api.extensions import DEFINITIONS
    from netloom.cli.applying import apply_all
    from netloom.runtime.client import Api

    await apply_all(manifests, kubeconfig, context, manager="netloom-crds")
    deadline = time.monotonic() + SERVED_SECONDS
    async with await Api.connect(kubeconfig, context, user_agent="netloom-crds") as api:
        for name in [each["metadata"]["name"] for each in manifests]:
            while not (await api.get(DEFINITIONS, name)).established:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{KIND} {name} is not served after {SERVED_SECONDS:g} s; its conditions say why: "
                        f"kubectl describe crd {name}"
                    )
                await asyncio.sleep(0.1)
