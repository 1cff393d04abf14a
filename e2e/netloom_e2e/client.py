"""A bare HTTP client for the API server, for what tests do beside the thing that they test.

kubectl takes 0.1 s to start and deletes one object after the other; this does neither.
"""

from __future__ import annotations

import http.client
import json
import select
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

_DELETE_SECONDS = 60.0
_TOO_MANY_REQUESTS = 429
_RETRY_SECONDS = 0.1
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class ApiFailure(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


class Client:
    """Keeps its connections: what waits for a condition asks fifty times a second, and nine tenths of what a request
    costs are its handshake. May be used by several threads."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext, token: str = "") -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._idle: list[http.client.HTTPSConnection] = []

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends connections that are idle; a later request makes another."""
        while self._idle:
            self._idle.pop().close()

    @classmethod
    def from_kubeconfig(cls, path: Path, *, port: int = 0) -> Client:
        """Of a kubeconfig of ours, which refers to files. port: another server's on the same host."""
        config = yaml.safe_load(path.read_text())
        cluster = config["clusters"][0]["cluster"]
        user = config["users"][0]["user"]
        tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        if "token" not in user:
            tls.load_cert_chain(user["client-certificate"], user["client-key"])
        server = urlsplit(cluster["server"])
        return cls(str(server.hostname), port or int(server.port or 443), tls, user.get("token", ""))

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        accept: str = "application/json",
        content_type: str = "",
        timeout: float = 10,
    ) -> Any:
        """The decoded JSON, or the text where it is none. Raises ApiFailure, or OSError where nobody answers.

        content_type: left out, a PATCH is a merge patch.

        429 says that nothing was done and that it may be asked again (a cache is filled after a start, for one): it
        is, as kubectl does.
        """
        content_type = content_type or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        headers = {"Content-Type": content_type, "Accept": accept, **self._authorization}
        deadline = time.monotonic() + timeout
        while True:
            status, text = self._exchange(method, path, None if body is None else json.dumps(body), headers, timeout)
            if status // 100 == 2:
                return json.loads(text) if text.startswith("{") else text
            if status != _TOO_MANY_REQUESTS or time.monotonic() > deadline:
                raise ApiFailure(status, text)
            time.sleep(_RETRY_SECONDS)

    def apply(self, path: str, manifest: object) -> None:
        """What `kubectl apply --server-side` does, in its name, with an object: a quarter of the cost."""
        options = "fieldManager=kubectl&force=true"
        self.request("PATCH", f"{path}?{options}", manifest, content_type="application/apply-patch+yaml")

    def _exchange(
        self, method: str, path: str, body: str | None, headers: dict[str, str], timeout: float
    ) -> tuple[int, str]:
        """Status and text of one answer."""
        connection = self._idle_connection(timeout) or self.connection(timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return response.status, text

    def _idle_connection(self, timeout: float) -> http.client.HTTPSConnection | None:
        """One that the server has not hung up on: there is nothing to be read from it."""
        while self._idle:
            connection = self._idle.pop()
            waiting = select.poll()
            if connection.sock:
                waiting.register(connection.sock, select.POLLIN)
                if not waiting.poll(0):
                    connection.sock.settimeout(timeout)
                    return connection
            connection.close()
        return None

    def connection(self, timeout: float = 10) -> http.client.HTTPSConnection:
        """A new one, for whoever has use for one alone."""
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls, timeout=timeout)

    def delete_collection(self, resource: str, namespace: str = "") -> None:
        """Returns when no object is left. Finalizers are taken off: what would have served them may have stopped."""
        path = collection_path(resource, namespace)
        deadline = time.monotonic() + _DELETE_SECONDS
        if not self._left(path):  # as of most, and that costs less to ask than to delete nothing
            return
        self.request("DELETE", path, {"gracePeriodSeconds": 0}, timeout=_DELETE_SECONDS)
        while left := self._left(path):
            for item in left:
                if item["metadata"].get("finalizers"):
                    self._release(f"{path}/{item['metadata']['name']}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(left)} {resource} are still there after {_DELETE_SECONDS:.0f} s")
            time.sleep(0.02)

    def _left(self, collection: str) -> list[dict[str, Any]]:
        """Its objects, of each its metadata alone."""
        listed: list[dict[str, Any]] = self.request("GET", collection, accept=_METADATA_ONLY)["items"]
        return listed

    def _release(self, path: str) -> None:
        try:
            self.request("PATCH", path, {"metadata": {"finalizers": None}})
        except ApiFailure as failure:
            if failure.status != http.HTTPStatus.NOT_FOUND:
                raise


def collection_path(resource: str, namespace: str = "") -> str:
    """Of a resource in kubectl's full form: `nodes`, or `leases.v1.coordination.k8s.io` (plural, version, group)."""
    plural, _, rest = resource.partition(".")
    version, _, group = rest.partition(".")
    prefix = f"/apis/{group}/{version}" if group else "/api/v1"
    return f"{prefix}/namespaces/{namespace}/{plural}" if namespace else f"{prefix}/{plural}"
