"""All that an API server holds, to compare before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from netloom_e2e.cluster import ControlPlane
from netloom_e2e.images import REPOSITORY

COMES_AND_GOES = ("apiservices", "componentstatuses", "endpointslices", "events", "leases")
"""What components write all the time."""


def objects(plane: ControlPlane, but: tuple[str, ...] = COMES_AND_GOES) -> set[str]:
    """As KIND/NAMESPACE/NAME, but for these resources."""
    return {name for name, _ in _every(plane, but)}


def versions(plane: ControlPlane, but: tuple[str, ...] = COMES_AND_GOES) -> set[str]:
    """The same, with what any write changes: where two of these are equal, nothing was done in between."""
    return {f"{name} {body['metadata']['resourceVersion']}" for name, body in _every(plane, but)}


def mentioning(plane: ControlPlane, word: str, but: tuple[str, ...] = COMES_AND_GOES) -> set[str]:
    """The same, but of those that say this word anywhere: in a label, a taint, a finalizer, a condition. Not counted:
    who once wrote a field, which images a node has, and where those of the test bed are."""
    found = set()
    for name, body in _every(plane, but):
        body["metadata"].pop("managedFields", None)
        body.get("status", {}).pop("images", None)
        if word in json.dumps(body).replace(f"{REPOSITORY}/", ""):
            found.add(name)
    return found


def _every(plane: ControlPlane, but: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    client = plane.client
    groups = client.request("GET", "/apis")["groups"]
    for path in ("/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)):
        for each in client.request("GET", path)["resources"]:
            if "list" in each.get("verbs", ()) and each["name"] not in but:
                for body in client.request("GET", f"{path}/{each['name']}")["items"]:
                    meta = body["metadata"]
                    yield f"{each['kind']}/{meta.get('namespace', '')}/{meta['name']}", body
