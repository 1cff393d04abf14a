"""A model of the API server, faithful in what allocation rests on.

Versions and compare-and-swap, uids and preconditions, name-unique creation, writes that change nothing and so make no
new version, the status subresource, finalizers, and the CRDs' transition rules. Objects are JSON as on the wire.
What it does not model: validation of values, admission, defaults.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from netloom.cidr import Cidr
from netloom.runtime.errors import AlreadyExists, Conflict, Invalid, NotFound, Status, from_status

Json = dict[str, Any]

HAS_STATUS = frozenset({"netloomnetworks", "netloomnodes", "netloomippools"})


@dataclass(frozen=True)
class Request:
    """One request as it leaves a client."""

    verb: str
    plural: str
    name: str = ""
    body: Any = None
    subresource: str = ""
    kind: str = ""
    manager: str = ""
    uid: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.plural}/{self.name}" + (f"/{self.subresource}" if self.subresource else "")


@dataclass(frozen=True)
class Event:
    """One line of a watch: `object` as it is then (for DELETED: as it last was, at the deletion's version)."""

    type: str
    plural: str
    object: Json


class ModelServer:
    """`written` is called after every write that changed something."""

    def __init__(self, written: Callable[[], None] = lambda: None) -> None:
        self.revision = 100
        self.events: list[Event] = []
        self.executed: list[Request] = []
        self.written = written
        self._uids = 0
        self._objects: dict[str, dict[str, Json]] = {}
        self._applied: dict[tuple[str, str], set[str]] = {}
        """Conditions that a field manager applied last, by it and the object's uid."""

    def all(self, plural: str) -> dict[str, Json]:
        """The objects of a kind by name; not to be changed."""
        return self._objects.setdefault(plural, {})

    def execute(self, request: Request) -> Any:
        """The answer, as JSON. Raises the errors of `netloom.runtime.errors`."""
        self.executed.append(request)
        before = self.revision
        answer = _copy(getattr(self, f"_{request.verb}")(request))
        if self.revision != before:
            self.written()
        return answer

    def backup(self) -> Callable[[], None]:
        """What makes everything as it is now again, versions included: a restore of etcd."""
        revision, objects = self.revision, _copy(self._objects)

        def restore() -> None:
            self.revision, self._objects = revision, _copy(objects)

        return restore

    def check(self) -> None:
        """Whether `all` tells the truth: a model knows nothing else."""

    def close(self) -> None:
        """A model has nothing to close."""

    # Verbs

    def _get(self, request: Request) -> Json:
        return self._existing(request)

    def _list(self, request: Request) -> Json:
        return {"resourceVersion": str(self.revision), "items": list(self.all(request.plural).values())}

    def _create(self, request: Request) -> Json:
        obj = _copy(request.body)
        name = obj["metadata"]["name"]
        if name in self.all(request.plural):
            raise AlreadyExists(409, "AlreadyExists", f"{request.plural} {name} already exists")
        if request.plural in HAS_STATUS:
            obj.pop("status", None)
        self._uids += 1
        obj["metadata"] |= {"uid": f"uid-{self._uids}", "generation": 1, "creationTimestamp": f"{self.revision:08}"}
        _rules(request.plural, None, obj)
        return self._store(request.plural, "ADDED", obj)

    def _replace(self, request: Request) -> Json:
        old = self._existing(request)
        if request.body["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", f"{request}: the object has been modified")
        new = _copy(old)
        new["spec"] = _copy(request.body.get("spec", {}))
        return self._update(request.plural, old, new)

    def _patch(self, request: Request) -> Json:
        old = self._existing(request)
        meta = request.body.get("metadata", {})
        differ = [
            field
            for field in ("resourceVersion", "uid")
            if meta.get(field, old["metadata"][field]) != old["metadata"][field]
        ]
        if "resourceVersion" in differ:
            raise Conflict(409, "Conflict", f"{request}: the object has been modified")
        if differ and request.subresource != "status":  # there, all metadata of a patch is passed over
            refusal = Status(code=422, reason="Invalid", details={"causes": [{"field": "metadata.uid"}]})
            raise from_status(refusal, f"{request}: metadata.uid: field is immutable")
        new = _copy(old)
        if request.subresource == "status":
            change = {"status": request.body.get("status", {})}
        else:
            change = {key: value for key, value in request.body.items() if key != "status"}
            kept = ("annotations", "finalizers", "labels", "ownerReferences")
            change["metadata"] = {key: meta[key] for key in kept if key in meta}
        if request.kind == "apply":
            gone = self._applied.setdefault((request.manager, old["metadata"]["uid"]), set())
            _apply_conditions(new, change, gone)
        else:
            _merge(new, change)
        return self._update(request.plural, old, new)

    def _delete(self, request: Request) -> None:
        old = self._existing(request)
        meta = old["metadata"]
        if request.uid and request.uid != meta["uid"]:
            raise Conflict(409, "Conflict", f"{request}: the uid is {meta['uid']}")
        if request.version and request.version != meta["resourceVersion"]:
            raise Conflict(409, "Conflict", f"{request}: the version is {meta['resourceVersion']}")
        if meta.get("finalizers"):
            if "deletionTimestamp" not in meta:
                new = _copy(old)
                new["metadata"]["deletionTimestamp"] = "now"
                self._store(request.plural, "MODIFIED", new)
            return
        self._remove(request.plural, old)

    # Storage

    def _existing(self, request: Request) -> Json:
        obj = self.all(request.plural).get(request.name)
        if obj is None:
            raise NotFound(404, "NotFound", f"{request.plural} {request.name} not found")
        return obj

    def _update(self, plural: str, old: Json, new: Json) -> Json:
        if new == old:
            return old
        _rules(plural, old, new)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            self._remove(plural, new)
            return new
        return self._store(plural, "MODIFIED", new)

    def _store(self, plural: str, kind: str, obj: Json) -> Json:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        self.all(plural)[obj["metadata"]["name"]] = obj
        self.events.append(Event(kind, plural, obj))
        return obj

    def _remove(self, plural: str, obj: Json) -> None:
        self.revision += 1
        del self.all(plural)[obj["metadata"]["name"]]
        last = _copy(obj)
        last["metadata"]["resourceVersion"] = str(self.revision)
        self.events.append(Event("DELETED", plural, last))


def _copy(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _merge(target: Json, change: Mapping[str, Any]) -> None:
    """RFC 7386."""
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = _copy(value)


def _apply_conditions(target: Json, change: Json, applied: set[str]) -> None:
    """Server-side apply, of a list of conditions keyed by their type, and of fields beside it. `applied`: those that
    the field manager applied before; what it does not list again goes."""
    assert set(change) == {"status"}
    status = target.setdefault("status", {})
    beside = {key: value for key, value in change["status"].items() if key != "conditions"}
    for key in {each.removeprefix(".") for each in applied if each.startswith(".")} - set(beside):
        status.pop(key, None)
    status |= _copy(beside)
    if "conditions" not in change["status"]:  # of a manager that has none
        applied.clear()
        applied.update(f".{key}" for key in beside)
        return
    by_type = {each["type"]: each for each in status.get("conditions", [])}
    listed = {each["type"]: each for each in change["status"]["conditions"]}
    for type_ in applied - set(listed):
        by_type.pop(type_, None)
    by_type |= listed
    applied.clear()
    applied.update(listed, {f".{key}" for key in beside})
    status["conditions"] = list(by_type.values())


def _rules(plural: str, old: Json | None, new: Json) -> None:
    """The CRDs' CEL rules that allocation relies on."""
    if plural == "netloomnetworks" and old is not None:
        was, wanted = old["spec"]["ipam"].get("mode", "cluster-pool"), new["spec"]["ipam"].get("mode", "cluster-pool")
        force, forced = _mode(old), _mode(new)
        _check(was == wanted or forced in ("", wanted), "the IPAM mode of a live cluster cannot change")
        _check(force == "" or forced in ("", force), "the mode in force cannot change at once")
        if forced == "cluster-pool":
            pool, before = new["spec"]["ipam"]["clusterPool"], old["spec"]["ipam"]["clusterPool"]
            for name in ("ipv4", "ipv6"):
                cidrs, had = pool.get(f"{name}PodCIDRList", ()), before.get(f"{name}PodCIDRList", ())
                lost = [cidr for cidr in had if not any(Cidr.parse(each).contains(Cidr.parse(cidr)) for each in cidrs)]
                ranges = new["status"]["ipam"].get("ledgerRanges")
                used = [
                    cidr
                    for cidr in lost
                    if not ranges or any(Cidr.parse(each).overlaps(Cidr.parse(cidr)) for each in ranges)
                ]
                _check(not used, "a CIDR cannot be removed or made smaller while nodes hold addresses")
                mask = f"{name}MaskSize"
                _check(not had or pool.get(mask) == before.get(mask), "the mask size cannot change")
    if plural == "netloomledgers":
        spec = new["spec"]
        _check(bool(spec.get("mode")) or not spec.get("used"), "a closed ledger holds no allocations")
        if old is not None:
            had = old["spec"].get("mode", "")
            _check(not had or spec.get("mode", "") in ("", had), "the mode of an open ledger cannot change")
            _check(spec["range"] == old["spec"]["range"], "the range cannot change")
    if plural == "netloomnodes" and old is not None:
        ipam, before = new["spec"].get("ipam", {}), old["spec"].get("ipam", {})
        _check(set(before.get("podCIDRs", ())) <= set(ipam.get("podCIDRs", ())), "a CIDR cannot be taken away")
        holds = before.get("podCIDRs") or before.get("pools", {}).get("allocated") or before.get("pool")
        _check(not holds or before.get("mode", "") in ("", ipam.get("mode", "")), "the mode cannot change")
        of_pools = ipam.get("mode", "") in ("", "multi-pool")
        _check(of_pools or not (ipam.get("pools") or {}).get("requested"), "no more of pools in another mode")


def _mode(network: Json) -> str:
    mode: str = network.get("status", {}).get("ipam", {}).get("mode", "")
    return mode


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise Invalid(422, "Invalid", message)
