"""All that ever happened to the NetloomNodes, as the API server ordered it.

A look at the end would miss two nodes that shared an address for a moment in between. A watch misses nothing: etcd
gives it every version of every object, in one order.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from netloom_e2e.allocations import NETLOOM_NODES, Cluster, Network, cidrs_of
from netloom_e2e.client import collection_path
from netloom_e2e.lab import wait_for


@dataclass
class History:
    """Every version of every NetloomNode, in the API server's order."""

    versions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Type of the watch event, and the object."""

    def live(self) -> dict[str, str]:
        """The resourceVersions of the objects that are there at the end."""
        found: dict[str, str] = {}
        for type_, obj in list(self.versions):
            name, version = obj["metadata"]["name"], obj["metadata"]["resourceVersion"]
            if type_ == "DELETED":
                found.pop(name, None)
            else:
                found[name] = version
        return found

    def check(self) -> None:
        """At no moment did two nodes hold one address, and none ever lost or changed a CIDR while it lived."""
        now: dict[str, tuple[str, tuple[Network, ...]]] = {}
        for type_, obj in self.versions:
            assert type_ in ("ADDED", "MODIFIED", "DELETED"), obj
            name, uid, cidrs = obj["metadata"]["name"], obj["metadata"]["uid"], cidrs_of(obj)
            was_uid, was = now.pop(name, (uid, ()))
            if type_ == "DELETED":
                continue
            assert was_uid == uid, f"{name} was replaced without having been deleted"
            assert not was or was == cidrs, f"{name} held {was}, then {cidrs}"
            if cidrs != was:
                for other, (_, theirs) in now.items():
                    for mine, their in itertools.product(cidrs, theirs):
                        version = obj["metadata"]["resourceVersion"]
                        assert not mine.overlaps(their), f"at {version} {mine} of {name} overlaps {their} of {other}"
            now[name] = uid, cidrs


@contextmanager
def recorded(cluster: Cluster) -> Iterator[History]:
    """Watches from before the first NetloomNode until the end; what is given is complete only afterwards."""
    path = collection_path(NETLOOM_NODES)
    start = cluster.client.request("GET", path)
    assert not start["items"], "the record has to begin before the first NetloomNode"
    history = History()
    connection = cluster.client.connection(timeout=600)
    connection.request("GET", f"{path}?watch=1&resourceVersion={start['metadata']['resourceVersion']}")
    response = connection.getresponse()
    assert response.status == 200, response.read()

    def follow() -> None:
        with suppress(OSError, http.client.HTTPException):  # how a severed connection ends
            for line in response:
                event = json.loads(line)
                history.versions.append((event["type"], event["object"]))

    thread = threading.Thread(target=follow, name="history")
    thread.start()
    try:
        yield history
        _complete(cluster, history)
    finally:
        _sever(connection)
        thread.join(10)


def _complete(cluster: Cluster, history: History) -> None:
    """Waits until the record has reached the present."""
    listed = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in cluster.list(NETLOOM_NODES)}
    wait_for("the record is complete", lambda: history.live() == listed)


def _sever(connection: http.client.HTTPConnection) -> None:
    """Ends a read in another thread."""
    with suppress(OSError):
        connection.sock.shutdown(socket.SHUT_RDWR)
