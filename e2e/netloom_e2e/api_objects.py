"""All that an API server holds, to compare before and after."""

from __future__ import annotations

from netloom_e2e.cluster import ControlPlane

COMES_AND_GOES = ("apiservices", "componentstatuses", "endpointslices", "events", "leases")
"""What components write all the time."""


def objects(plane: ControlPlane, but: tuple[str, ...] = COMES_AND_GOES) -> set[str]:
    """As KIND/NAMESPACE/NAME, but for these resources."""
    client, found = plane.client, set()
    groups = client.request("GET", "/apis")["groups"]
    for path in ("/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)):
        for each in client.request("GET", path)["resources"]:
            if "list" in each.get("verbs", ()) and each["name"] not in but:
                metas = [obj["metadata"] for obj in client.request("GET", f"{path}/{each['name']}")["items"]]
                found |= {f"{each['kind']}/{meta.get('namespace', '')}/{meta['name']}" for meta in metas}
    return found
