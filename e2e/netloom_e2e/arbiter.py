"""A real API server in the place of the model that the allocation's state machine runs against.

The machine holds every request until it wants it executed, so here they come one after the other, over one connection,
and nobody else writes. What changed therefore follows from the answers, and the events of the watches with it: what the
machine knows of the server is exact, and needs no watch that it would have to wait for.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from netloom.runtime.errors import from_answer
from netloom_e2e.cluster import ControlPlane

Json = dict[str, Any]

_KINDS = {
    "nodes": ("v1", "Node"),
    "pods": ("v1", "Pod"),
    "netloomnetworks": ("netloom.dev/v1alpha1", "NetloomNetwork"),
    "netloomnodes": ("netloom.dev/v1alpha1", "NetloomNode"),
    "netloomledgers": ("netloom.dev/v1alpha1", "NetloomLedger"),
    "netloomippools": ("netloom.dev/v1alpha1", "NetloomIPPool"),
}
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "replace": "PUT", "patch": "PATCH", "delete": "DELETE"}
_APPLY = "?fieldManager={}&force=true"


@dataclass(frozen=True)
class Happened:
    """One line of a watch."""

    type: str
    plural: str
    object: Json


@dataclass
class Arbiter:
    """`request` objects have the fields of the machine's `Request`; `written` is called after every change."""

    connection: http.client.HTTPSConnection
    written: Callable[[], None] = lambda: None
    events: list[Happened] = field(default_factory=list)
    executed: list[Any] = field(default_factory=list)
    known: dict[str, dict[str, Json]] = field(default_factory=dict)

    @classmethod
    def of(cls, plane: ControlPlane) -> Arbiter:
        """A connection of its own."""
        return cls(plane.client.connection(30))

    def all(self, plural: str) -> dict[str, Json]:
        """The objects of a kind by name, as the API server has them."""
        return self.known.setdefault(plural, {})

    def execute(self, request: Any) -> Any:
        """The answer, as JSON. Raises the errors of `netloom.runtime.errors`."""
        self.executed.append(request)
        answer = self._send(request)
        if request.verb == "list":
            return {"resourceVersion": answer["metadata"]["resourceVersion"], "items": answer["items"]}
        if request.verb == "get":
            return answer
        if request.verb == "delete":
            if answer.get("kind") == "Status":
                self._gone(request.plural, self.all(request.plural)[request.name])
            else:
                self._changed(request.plural, answer)
            return None
        self._changed(request.plural, answer)
        return answer

    def check(self) -> None:
        """Everything known is what the API server has: nothing escaped."""
        for plural in _KINDS:
            really = self._ask("GET", _path(plural), None, "")["items"]
            known = self.all(plural).values()
            assert {_version(obj) for obj in really} == {_version(obj) for obj in known}, plural

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def _changed(self, plural: str, obj: Json) -> None:
        name, meta = obj["metadata"]["name"], obj["metadata"]
        old = self.all(plural).get(name)
        if old is not None and old["metadata"]["resourceVersion"] == meta["resourceVersion"]:
            return
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            self._gone(plural, obj)
            return
        self.all(plural)[name] = obj
        self.events.append(Happened("ADDED" if old is None else "MODIFIED", plural, obj))
        self.written()

    def _gone(self, plural: str, obj: Json) -> None:
        """The answer does not say at which version; that of a list lies between this write and the next."""
        del self.all(plural)[obj["metadata"]["name"]]
        version = self._ask("GET", _path(plural) + "?limit=1", None, "")["metadata"]["resourceVersion"]
        last = {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}
        self.events.append(Happened("DELETED", plural, last))
        self.written()

    def _send(self, request: Any) -> Json:
        path = _path(request.plural)
        if request.verb not in ("create", "list"):
            path += f"/{request.name}"
        if request.subresource:
            path += f"/{request.subresource}"
        content_type, body = "application/json", request.body
        if request.verb == "patch":
            content_type = "application/merge-patch+json"
        if request.kind == "apply":
            content_type, path = "application/apply-patch+yaml", path + _APPLY.format(request.manager)
        if body is not None and request.kind != "merge":
            api_version, kind = _KINDS[request.plural]
            body = {"apiVersion": api_version, "kind": kind, **body}
        if request.verb == "delete":
            conditions = {"uid": request.uid, "resourceVersion": request.version}
            body = {"preconditions": {key: value for key, value in conditions.items() if value}}
        return self._ask(_METHODS[request.verb], path, body, content_type)

    def _ask(self, method: str, path: str, body: Json | None, content_type: str) -> Json:
        headers = {"Content-Type": content_type} if content_type else {}
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self.connection.getresponse()
        text = response.read()
        if response.status // 100 != 2:
            raise from_answer(response.status, response.reason, text, None, f"{method} {path}")
        answer: Json = json.loads(text)
        return answer


def _path(plural: str) -> str:
    version, _ = _KINDS[plural]
    return f"/apis/{version}/{plural}" if "/" in version else f"/api/{version}/{plural}"


def _version(obj: Json) -> tuple[str, str, str]:
    meta = obj["metadata"]
    return meta["name"], meta["uid"], meta["resourceVersion"]
