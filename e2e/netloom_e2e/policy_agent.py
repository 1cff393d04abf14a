"""Admission webhooks that the guard is compared with, beside a control plane: Open Policy Agent, and a constant."""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from netloom.webhook.names import PATH
from netloom_e2e import binaries
from netloom_e2e.bench import Wrong
from netloom_e2e.certificates import Authority, KeyPair
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import free_port

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@dataclass(frozen=True)
class Peer:
    """A webhook. command: what runs it on 127.0.0.1, with a port and a certificate. data: for `/v1/data/nodes`."""

    name: str
    command: Callable[[int, KeyPair], list[str | Path]]
    path: str
    data: Mapping[str, Any] = field(default_factory=dict)


def opa(policy: Path, nodes: Mapping[str, Any]) -> Peer:
    """`opa run --server` with a policy and `data.nodes`."""

    def command(port: int, pair: KeyPair) -> list[str | Path]:
        return [
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

    return Peer("opa", command, "/", nodes)


def constant() -> Peer:
    """The guard's HTTPS server without a guard: what it cannot be faster than. See `netloom_e2e.constant`."""

    def command(port: int, pair: KeyPair) -> list[str | Path]:
        return [sys.executable, "-m", "netloom_e2e.constant", str(port), pair.certificate, pair.key]

    return Peer("constant", command, PATH)


@contextmanager
def asked(plane: ControlPlane, peer: Peer, refused: Callable[[], bool]) -> Iterator[int]:
    """It runs, and the API server asks it about CiliumPodIPPools; its pid. refused: whether a write was refused that it
    refuses."""
    folder = plane.state / peer.name
    authority = Authority(folder, f"{peer.name}-authority")
    pair = authority.issue(peer.name, peer.name, hosts=["127.0.0.1"])
    port = free_port()
    process = plane.folder.spawn(peer.name, peer.command(port, pair))
    try:
        client = _Https(port, authority.certificate)
        wait_for(f"{peer.name} answers", client.answers)
        if peer.data:
            client.put("/v1/data/nodes", peer.data)
        configuration = _configuration(peer.name, f"https://127.0.0.1:{port}{peer.path}", authority.certificate)
        plane.client.request("POST", WEBHOOKS, configuration)
        wait_for(f"the API server asks {peer.name}", refused)
        yield process.pid
    finally:
        process.kill()
        try:
            plane.client.request("DELETE", f"{WEBHOOKS}/{peer.name}")
        except ApiFailure as failure:
            if failure.status != HTTPStatus.NOT_FOUND:
                raise


class _Https:
    """A server with a certificate of its own."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(certificate))

    def answers(self) -> bool:
        """OPA says 200 once it is ready, the guard's server 404."""
        try:
            return self._status("GET", "/health", "") < 500
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


def _configuration(name: str, url: str, certificate: Path) -> dict[str, Any]:
    """As narrow as the guard's: pools only, and only where their spec changes."""
    bundle = base64.b64encode(certificate.read_bytes()).decode()
    webhook = {
        "name": f"pools.{name}.example.com",
        "clientConfig": {"url": url, "caBundle": bundle},
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
        "metadata": {"name": name},
        "webhooks": [webhook],
    }
