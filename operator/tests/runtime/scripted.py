"""An API server for tests that misbehaves as it is told. It exists to inject faults; a real one serves the e2e tests.

It holds objects, numbers their versions, keeps their history, and answers list (chunked), ask (a list of one object),
watch, get, create, update, merge patch and delete, with compare-and-swap. `server.on(verb, fault, ...)` gives the next
requests of that verb to the faults, in order; None stands for the ordinary answer. Every request is recorded, so that a
test can say how many there may be.
"""

import asyncio
import copy
import datetime as dt
import email.utils
import json
import re
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_PATH = re.compile(
    r"(?P<api>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(/(?P<name>[^/]+))?(/(?P<subresource>[^/]+))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Fault = Callable[["Call"], Awaitable[web.StreamResponse]]
Object = dict[str, Any]


class Refusal(Exception):
    """An answer that is a metav1.Status."""

    def __init__(self, code: int, reason: str, message: str = "", *fields: str) -> None:
        self.code = code
        self.body = status(code, reason, message or reason)
        if fields:
            causes = [{"reason": "FieldValueInvalid", "message": message, "field": each} for each in fields]
            self.body["details"] = {"causes": causes}


def status(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    }  # fmt: skip


@dataclass
class Call:
    """One request, as a fault sees it."""

    server: "ScriptedApi"
    verb: str
    request: web.Request
    collection: str
    name: str
    body: Any = None
    stream: web.StreamResponse | None = None

    @property
    def query(self) -> dict[str, str]:
        return dict(self.request.query)

    async def open(self) -> web.StreamResponse:
        """Begins a watch's answer."""
        self.stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await self.stream.prepare(self.request)
        return self.stream

    async def send(self, type_: str, obj: Object) -> None:
        await self.write(json.dumps({"type": type_, "object": obj}).encode() + b"\n")

    async def write(self, content: bytes) -> None:
        stream = self.stream or await self.open()
        await stream.write(content)

    async def ordinary(self) -> web.StreamResponse:
        return await self.server.answer(self)


@dataclass
class Recorded:
    verb: str
    collection: str
    name: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedApi:
    url: str = ""
    version: int = 100
    compacted: int = 0
    """Watches from before this version are Gone."""
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    history: list[tuple[int, str, str, Object]] = field(default_factory=list)
    calls: list[Recorded] = field(default_factory=list)
    scripts: dict[str, deque[Fault | None]] = field(default_factory=lambda: defaultdict(deque))
    faulty: Fault | None = None
    """Asked for every request that no script claims."""
    snapshots: dict[str, list[Object]] = field(default_factory=dict)
    transports: set[asyncio.Transport] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ahead: dt.timedelta = dt.timedelta()
    """Of its clock, as the Date of its answers tells it; the test's own is right."""

    def on(self, verb: str, *faults: Fault | None) -> None:
        self.scripts[verb].extend(faults)

    def count(self, verb: str) -> int:
        return sum(call.verb == verb for call in self.calls)

    def queries(self, verb: str) -> list[dict[str, str]]:
        return [call.query for call in self.calls if call.verb == verb]

    # The truth

    def put(self, collection: str, obj: Object) -> Object:
        """Stores an object as if another client had written it."""
        self.version += 1
        meta = obj.setdefault("metadata", {})
        held = self.objects[collection].get(meta["name"])
        meta["uid"] = held["metadata"]["uid"] if held else str(uuid.uuid4())
        meta["resourceVersion"] = str(self.version)
        stored = copy.deepcopy(obj)
        self.objects[collection][meta["name"]] = stored
        self._record(collection, "MODIFIED" if held else "ADDED", stored)
        return stored

    def drop(self, collection: str, name: str) -> Object:
        """Deletes an object as if another client had."""
        self.version += 1
        gone = copy.deepcopy(self.objects[collection].pop(name))
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._record(collection, "DELETED", gone)
        return gone

    def _record(self, collection: str, type_: str, obj: Object) -> None:
        self.history.append((self.version, collection, type_, obj))
        self.changed.set()
        self.changed = asyncio.Event()

    def disconnect(self) -> None:
        """Cuts every connection."""
        for transport in self.transports:
            transport.abort()
        self.transports.clear()

    # Answers

    async def date(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self.ahead:
            now = dt.datetime.now(dt.UTC) + self.ahead
            response.headers["Date"] = email.utils.format_datetime(now, usegmt=True)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            verb, collection, name = "version", "", ""
        else:
            match = _PATH.fullmatch(request.path)
            if match is None:
                return web.json_response(status(404, "NotFound", "no such path"), status=404)
            within = f"/namespaces/{match['namespace']}" if match["namespace"] else ""
            collection, name = f"{match['api']}{within}/{match['plural']}", match["name"] or ""
            verb = _VERBS.get(request.method) or _read(request, name)
        if request.transport is not None:
            self.transports.add(request.transport)
        content = await request.read()
        call = Call(self, verb, request, collection, name, json.loads(content) if content else None)
        self.calls.append(
            Recorded(verb, collection, name, dict(request.query), dict(request.headers), copy.deepcopy(call.body))
        )
        script = self.scripts[verb]
        fault = script.popleft() if script else self.faulty
        try:
            return await (fault(call) if fault else self.answer(call))
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.code)

    async def answer(self, call: Call) -> web.StreamResponse:
        if call.verb == "watch":
            return await self._watch(call)
        if call.verb == "ask":
            return web.json_response(self._list(call))
        return web.json_response(getattr(self, f"_{call.verb}")(call))

    def _version(self, _call: Call) -> Object:
        return {"gitVersion": "v1.37.2"}

    def _list(self, call: Call) -> Object:
        limit = int(call.query.get("limit", 0))
        if token := call.query.get("continue", ""):
            if token not in self.snapshots:
                raise Refusal(410, "Expired", "The provided continue parameter is too old")
            version, items = token.split("-")[0], self.snapshots.pop(token)
        else:
            version, items = str(self.version), copy.deepcopy(list(self.objects[call.collection].values()))
        meta = {"resourceVersion": version}
        if limit and len(items) > limit:
            meta["continue"] = f"{version}-{uuid.uuid4()}"
            self.snapshots[meta["continue"]] = items[limit:]
            items = items[:limit]
        return {"kind": "List", "metadata": meta, "items": items}

    async def _watch(self, call: Call) -> web.StreamResponse:
        position = int(call.query["resourceVersion"])
        if position < self.compacted:
            raise Refusal(410, "Expired", f"too old resource version: {position} ({self.compacted})")
        stream = await call.open()
        while True:
            changed = self.changed
            for version, collection, type_, obj in self.history:
                if version > position and collection == call.collection:
                    await call.send(type_, obj)
            position = max(position, self.version)
            await changed.wait()
        return stream

    def _get(self, call: Call) -> Object:
        if call.name not in self.objects[call.collection]:
            raise Refusal(404, "NotFound", f"{call.name} not found")
        return self.objects[call.collection][call.name]

    def _create(self, call: Call) -> Object:
        if call.body["metadata"]["name"] in self.objects[call.collection]:
            raise Refusal(409, "AlreadyExists", f"{call.body['metadata']['name']} already exists")
        return self.put(call.collection, call.body)

    def _update(self, call: Call) -> Object:
        self._check(call, self._get(call), call.body["metadata"])
        return self.put(call.collection, call.body)

    def _patch(self, call: Call) -> Object:
        held = self._get(call)
        if call.body.get("metadata", {}).get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            raise Refusal(422, "Invalid", "field is immutable", "metadata.uid")
        return self.put(call.collection, _merged(held, call.body))

    def _delete(self, call: Call) -> Object:
        self._check(call, self._get(call), (call.body or {}).get("preconditions") or {})
        return self.drop(call.collection, call.name)

    def _check(self, call: Call, held: Object, wanted: Object) -> None:
        for key in ("uid", "resourceVersion"):
            if wanted.get(key, held["metadata"][key]) != held["metadata"][key]:
                raise Refusal(409, "Conflict", f"the {key} of {call.name} is another")


def _read(request: web.Request, name: str) -> str:
    """A list of one object is a question: how far does your history reach?"""
    if name:
        return "get"
    return "watch" if "watch" in request.query else "ask" if request.query.get("limit") == "1" else "list"


def _named(objects: list[Any]) -> bool:
    return all(isinstance(each, dict) and "name" in each for each in objects)


def _merged(held: Any, patch: Any) -> Any:
    """RFC 7386; and lists of objects with names are merged by these, as server-side apply does."""
    if isinstance(held, list) and _named(held) and isinstance(patch, list) and _named(patch):
        changes = {each["name"]: each for each in patch}
        return [_merged(each, changes.get(each["name"], {})) for each in held]
    if not isinstance(patch, dict):
        return patch
    merged = dict(held) if isinstance(held, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[ScriptedApi]:
    """A scripted API server on a free port. `options` go to the site, for TLS."""
    server = ScriptedApi()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", server.handle)
    app.on_response_prepare.append(server.date)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, **options).start()
        scheme = "https" if options.get("ssl_context") else "http"
        server.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], object], what: str = "", seconds: float = 20.0) -> None:
    """Returns when the condition holds; fails after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what or 'the condition'}") from None


# Faults


def refuse(code: int, reason: str, message: str = "", **headers: str) -> Fault:
    """An ordinary refusal, with a Status."""

    async def fault(_call: Call) -> web.StreamResponse:
        return web.json_response(status(code, reason, message or reason), status=code, headers=headers)

    return fault


def refuse_in_text(code: int, text: str, **headers: str) -> Fault:
    """What a proxy in front of the API server says."""

    async def fault(_call: Call) -> web.StreamResponse:
        return web.Response(status=code, text=text, headers=headers)

    return fault


async def close_at_once(call: Call) -> web.StreamResponse:
    """200, and the connection is closed."""
    stream = await call.open()
    assert call.request.transport is not None
    call.request.transport.close()
    return stream


async def end_at_once(call: Call) -> web.StreamResponse:
    """200, and a proper end, without any event."""
    return await call.open()


async def hang(_call: Call) -> web.StreamResponse:
    """The request is taken and never answered."""
    await asyncio.Event().wait()
    raise AssertionError


async def half_open(call: Call) -> web.StreamResponse:
    """The watch begins, and nothing ever comes, not even an end."""
    await call.open()
    await asyncio.Event().wait()
    raise AssertionError


def events(*lines: tuple[str, Object] | bytes, then: str = "end") -> Fault:
    """A watch that says just this, and then ends, aborts, or goes on with silence ("hang") or the truth ("truth")."""

    async def fault(call: Call) -> web.StreamResponse:
        stream = await call.open()
        for line in lines:
            await (call.write(line) if isinstance(line, bytes) else call.send(*line))
        if then == "abort":
            assert call.request.transport is not None
            call.request.transport.abort()
        elif then == "hang":
            await asyncio.Event().wait()
        return stream

    return fault


def in_stream(code: int, reason: str, message: str = "") -> Fault:
    """An ERROR event."""
    return events(("ERROR", status(code, reason, message or reason)))
