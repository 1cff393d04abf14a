"""Installs the CustomResourceDefinitions of this tree so that the next request for one of their objects succeeds."""

from __future__ import annotations

import time
from pathlib import Path

from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane

FOLDER = Path(__file__).parent.parent.parent / "crds"
_SERVED_SECONDS = 30.0


def install(plane: ControlPlane, folder: Path = FOLDER) -> None:
    """Applies all manifests of a folder, and returns when the API server serves what they define."""
    plane.kubectl("apply", "--server-side", "--filename", folder)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "--filename", folder)
    deadline = time.monotonic() + _SERVED_SECONDS
    for crd in plane.client.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]:
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        for version in crd["spec"]["versions"]:
            if version["served"]:
                _wait_served(plane, f"/apis/{group}/{version['name']}/{plural}?limit=1", deadline)


def _wait_served(plane: ControlPlane, path: str, deadline: float) -> None:
    """An established CRD is answered with 404, then with 429 (its watch cache is filled), for some 100 ms."""
    while True:
        try:
            plane.client.request("GET", path)
            return
        except ApiFailure:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)
