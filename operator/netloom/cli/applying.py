"""Applies manifests to a cluster, one after the other, and says of each what it did."""

from contextlib import suppress
from typing import Any

import msgspec
from rich.console import Console

from netloom.api.errors import UserError
from netloom.runtime.client import PATCH_TYPES, Api
from netloom.runtime.errors import ApiError, NotFound
from netloom.runtime.wire import MetaOnly

FIELD_MANAGER = "netloom-guard-install"

_PLURALS = {"ValidatingAdmissionPolicy": "validatingadmissionpolicies"}
"""Of kinds that do not just take an "s"."""


def path_of(manifest: dict[str, Any]) -> str:
    """URL path of the object, which has a namespace where its kind has one."""
    version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    inside = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{prefix}{inside}/{plural}/{metadata['name']}"


async def apply_all(
    manifests: list[dict[str, Any]], kubeconfig: str | None, context: str | None, *, manager: str = FIELD_MANAGER
) -> None:
    """By server-side apply, in order. Raises UserError, which names the object that was refused.

    manager: whom the API server notes as the one who wants it so.
    """
    console = Console(soft_wrap=True, highlight=False)
    async with await Api.connect(kubeconfig, context, user_agent=manager) as api:
        await api.check()
        for manifest in manifests:
            metadata = manifest["metadata"]
            name = f"{manifest['kind']} {'/'.join(filter(None, (metadata.get('namespace'), metadata['name'])))}"
            try:
                done = await _apply(api, manifest, manager)
            except ApiError as error:
                raise UserError(f"{name}: {error}") from error
            console.print(f"{name}: {done}")


async def _apply(api: Api, manifest: dict[str, Any], manager: str) -> str:
    path = path_of(manifest)
    before = ""
    with suppress(NotFound):
        before = _version(await api.request("GET", path))
    query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
    body = msgspec.json.encode(manifest)
    after = _version(await api.request("PATCH", path, query=query, body=body, content_type=PATCH_TYPES["apply"]))
    return "created" if not before else "unchanged" if before == after else "changed"


def _version(body: bytes) -> str:
    return msgspec.json.decode(body, type=MetaOnly).metadata.resource_version
