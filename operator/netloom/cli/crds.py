"""`netloom crds`: a folder's CustomResourceDefinitions into the cluster, as the chart's Job does before an upgrade."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netloom.api.errors import UserError
from netloom.api.words import SHOWN
from netloom.cli.options import Cluster, awaited, grouped

if TYPE_CHECKING:
    from netloom.runtime.client import Api

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

    It changes the definitions that are in the folder, whoever applied them before, and removes none. One in the cluster
    that knows all of the folder's and more is newer, and stays: objects would lose what the folder's does not know.
    """
    awaited(_apply(read(folder), cluster.kubeconfig, cluster.context), "warning")


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


def fields(definition: Mapping[str, Any]) -> frozenset[str]:
    """All that objects of it may have, as paths after the version's name."""
    versions = definition.get("spec", {}).get("versions", ())
    return frozenset(
        f"{each['name']}{path}" for each in versions for path in _below(each["schema"]["openAPIV3Schema"], "")
    )


def _below(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield path
    for name, each in schema.get("properties", {}).items():
        yield from _below(each, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _below(schema[key], f"{path}[]")


async def _apply(manifests: list[dict[str, Any]], kubeconfig: str | None, context: str | None) -> None:
    import asyncio

    from netloom.api.extensions import DEFINITIONS
    from netloom.cli.applying import apply_all
    from netloom.runtime.client import Api

    async with await Api.connect(kubeconfig, context, user_agent="netloom-crds") as api:
        await api.check()
        older = [each for each in manifests if not await _is_newer(api, each)]
        await apply_all(older, kubeconfig, context, manager="netloom-crds")
        deadline = time.monotonic() + SERVED_SECONDS
        for name in [each["metadata"]["name"] for each in older]:
            while not (await api.get(DEFINITIONS, name)).established:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{KIND} {name} is not served after {SERVED_SECONDS:g} s; its conditions say why: "
                        f"kubectl describe crd {name}"
                    )
                await asyncio.sleep(0.1)


async def _is_newer(api: "Api", manifest: dict[str, Any]) -> bool:
    """Whether that of the cluster is, which is said then."""
    import msgspec

    from netloom.api.extensions import DEFINITIONS
    from netloom.runtime.errors import ApiError, NotFound

    name = manifest["metadata"]["name"]
    try:
        found = msgspec.json.decode(await api.request("GET", DEFINITIONS.path(name)))
    except NotFound:
        return False
    except ApiError as error:
        raise UserError(f"{KIND} {name}: {error}") from error
    more = sorted(fields(found) - fields(manifest))
    if not more or fields(manifest) - fields(found):
        return False
    shown = ", ".join(each.partition(".")[2] for each in more[:SHOWN])
    print(f"{KIND} {name}: left as it is, which is newer: it knows {shown} as well", flush=True)
    return True
