"""The socket at which pods' addresses are asked for, spoken to by hand."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ADDRESSES = "/v1/addresses"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class AddressSocket:
    """Of one agent. Answers are (status, JSON)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> tuple[int, Any]:
        """Raises OSError where nobody listens."""
        connection = _Connection(self.path)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def allocate(self, name: str, container: str = "", **more: object) -> tuple[str, ...]:
        """The addresses that it has now. Raises AssertionError with what was said else."""
        status, said = self.ask("POST", ADDRESSES, {"name": name, "container": container, **more})
        assert status == 200, said
        return tuple(each["address"] for each in said["addresses"])

    def release(self, name: str, container: str = "", *addresses: str) -> tuple[str, ...]:
        """What it had."""
        query = [("name", name), ("container", container), *(("address", each) for each in addresses)]
        status, said = self.ask("DELETE", f"{ADDRESSES}?{urlencode(query)}")
        assert status == 200, said
        return tuple(said["released"])

    def held(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """By name and container, who has what."""
        _, said = self.ask("GET", ADDRESSES)
        return {
            (each["name"], each["container"]): tuple(given["address"] for given in each["addresses"])
            for each in said["assignments"]
        }
