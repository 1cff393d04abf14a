"""Open Policy Agent as an admission webhook beside a control plane: what the guard is compared with."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from netloom_e2e import binaries
from netloom_e2e.bench import Wrong
from netloom_e2e.certificates import Authority
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import free_port

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@contextmanager
def asked(plane: ControlPlane, policy: Path, nodes: Mapping[str, Any], refused: Callable[[], bool]) -> Iterator[int]:
    """`opa run --server` with a policy and `data.nodes`, and a webhook configuration by which the API server asks it
    about CiliumPodIPPools; its pid. refused: whether a write was refused that the policy refuses."""
    folder = plane.state / "opa"
    authority = Authority(folder, "opa-authority")
    pair = authority.issue("opa", "opa", hosts=["127.0.0.1"])
    port = free_port()
    command: list[str | Path] = [
        binaries.opa(),
        "run",
        "--server",
        f"--addr=127.0.0.1:{port}",
        "--log-level=error",
        "--skip-version-check",
        f"--tls-cert-file={pair.certificate}",
        f"--tls-private-key-file={pair.key}",
        policy,
    ]
    process = plane.folder.spawn("opa", command)
    try:
        client = _Https(port, authority.certificate)
        wait_for("OPA answers", client.healthy)
        client.put("/v1/data/nodes", nodes)
        plane.client.request("POST", WEBHOOKS, _configuration(port, authority.certificate))
        wait_for("the API server asks OPA", refused)
        yield process.pid
    finally:
        process.kill()
        try:
            plane.client.request("DELETE", f"{WEBHOOKS}/opa")
        except ApiFailure as failure:
            if failure.status != HTTPStatus.NOT_FOUND:
                raise


class _Https:
    """A server with a certificate of its own."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(certificate))

    def healthy(self) -> bool:
        try:
            return self._status("GET", "/health", "") == 200
        except OSError:
            return False

    def put(self, path: str, body: object) -> None:
        if (status := self._status("PUT", path, json.dumps(body))) >= 300:
            raise Wrong(f"PUT {path}: HTTP {status}")

    def _status(self, method: str, path: str, body: str) -> int:
        connection = HTTPSConnection("127.0.0.1", self._port, context=self._tls, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()


def _configuration(port: int, certificate: Path) -> dict[str, Any]:
    """As narrow as the guard's: pools only, and only where their spec changes."""
    bundle = base64.b64encode(certificate.read_bytes()).decode()
    webhook = {
        "name": "pools.opa.example.com",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": bundle},
        "rules": [
            {
                "apiGroups": ["cilium.io"],
                "apiVersions": ["*"],
                "operations": ["UPDATE", "DELETE"],
                "resources": ["ciliumpodippools"],
            }
        ],
        "matchConditions": [
            {"name": "changed", "expression": "request.operation != 'UPDATE' || object.spec != oldObject.spec"}
        ],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 3,
        "admissionReviewVersions": ["v1"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "opa"},
        "webhooks": [webhook],
    }
