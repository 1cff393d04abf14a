"""Whether the cluster's CustomResourceDefinitions know all that this program reads and writes.

An API server drops fields that a definition does not know, without a word that anybody hears: with definitions of an
older version, what agents tell and what the network asks for would be lost so. Everybody may read what it serves
(OpenAPI).
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import structlog

from netloom.api.meta import Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS, PREFILTERS
from netloom.api.words import some
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError

log = structlog.get_logger(__name__)

KINDS: tuple[Resource[Any], ...] = (NETWORKS, NETLOOM_NODES, POOLS, PREFILTERS)
PATH = f"/openapi/v3/apis/{NETWORKS.group}/{NETWORKS.version}"
AGAIN_SECONDS = 30.0
_SHOWN = 4

Schema = Mapping[str, Any]


async def outdated(api: Api) -> dict[str, str]:
    """A sentence for each definition, by its name, that knows less than we do. Raises ApiError."""
    served = msgspec.json.decode(await api.request("GET", PATH))["components"]["schemas"]
    return dict(compare(served))


def compare(served: Schema) -> Iterator[tuple[str, str]]:
    """As `outdated`. served: schemas by names such as `dev.netloom.v1alpha1.NetloomNode`."""
    _, ours = msgspec.json.schema_components([each.type for each in KINDS], ref_template="{name}")
    for kind in KINDS:
        known = next((each for name, each in served.items() if name.endswith(f".{kind.kind}")), None)
        if known is None:
            continue  # there is no such kind, which whoever needs it says
        own = ours[kind.kind]["properties"]
        missing = [
            field for part in ("spec", "status") if part in own for field in _missing(own[part], known, part, ours)
        ]
        if missing:
            name = f"{kind.plural}.{kind.group}"
            yield (
                name,
                f"CustomResourceDefinition {name} is older than this program: it does not know "
                f"{some(missing, _SHOWN)}, so the API server drops that. Apply crds/ of this version: "
                "kubectl apply --server-side --force-conflicts -f crds/",
            )


def _missing(own: Schema, parent: Schema, path: str, ours: Schema) -> Iterator[str]:
    """The fields at and below a path that the parent's schema does not have."""
    name = path.rpartition(".")[2]
    at = _meant(parent).get("properties", {})
    if name not in at:
        yield path
        return
    theirs, mine = _meant(at[name]), _resolved(own, ours)
    theirs = _meant(theirs.get("items", theirs))
    mine = _resolved(mine.get("items", mine), ours)
    if "properties" in theirs:
        for field, schema in mine.get("properties", {}).items():
            yield from _missing(schema, theirs, f"{path}.{field}", ours)


def _resolved(schema: Schema, ours: Schema) -> Schema:
    choices = schema.get("anyOf", [schema])
    for each in choices:
        if "$ref" in each:
            return dict(ours[each["$ref"]])
        if each.get("type") in ("array", "object"):
            return dict(each)
    return schema


def _meant(schema: Schema) -> Schema:
    """OpenAPI wraps what has a default or a description of its own."""
    (inner,) = schema.get("allOf", [schema])
    return dict(inner)


async def tell(api: Api) -> None:
    """Says it in the log, once the API server answers."""
    while True:
        try:
            for sentence in (await outdated(api)).values():
                log.error(sentence)
            return
        except ApiError as error:
            log.debug("definitions cannot be looked at", error=str(error))
        await asyncio.sleep(AGAIN_SECONDS)
