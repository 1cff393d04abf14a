"""The guard as people meet it: what kubectl, Helm and controllers are told, on a real API server, word by word.

The tables are in `guard/`: objects and scenes (what there is), and rows (who changes what, by which verbs, and what is
said of it). A row counts once for each verb and setting. `answers.yaml` holds how each program prints a refusal.

With policies, the ValidatingAdmissionPolicies answer a change of the mode before the guard is asked; without them, and
without their bindings, the guard does. The words have to be the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom_e2e.asking import (
    ADMIN_GROUPS,
    Ask,
    HelmAsk,
    Manifest,
    collection_of,
    is_like,
    merged,
    path_of,
    put,
    remove,
)
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import Guard, Guards, apply, guarding, install_cilium, uninstall_cilium
from netloom_e2e.lab import wait_for

TABLES = Path(__file__).parent / "guard"
CHART = Path(__file__).parents[1] / "netloom_e2e" / "cilium_chart"
ANSWERS = yaml.load((TABLES / "answers.yaml").read_text(), yaml.CSafeLoader)
RECORD = "/api/v1/namespaces/netloom-system/configmaps/netloom-guard"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
MODE_BINDINGS = ("netloom-guard-network", "netloom-guard-cilium", "netloom-guard-cilium-node-config")
WITH, WITHOUT = "policies and webhook", "webhook only"
HELM = ("upgrade", "upgrade client-side", "upgrade with conflicts", "upgrade --install", "rollback", "uninstall")
SECRETS = "/api/v1/namespaces/kube-system/secrets"
RELEASES = f"{SECRETS}?fieldSelector=type%3Dhelm.sh%2Frelease.v1"
COLLECTIONS = (
    "/apis/netloom.dev/v1alpha1/netloomnetworks",
    "/apis/netloom.dev/v1alpha1/netloomippools",
    "/apis/netloom.dev/v1alpha1/netloomnodes",
    "/apis/cilium.io/v2/ciliumnodes",
    "/apis/cilium.io/v2alpha1/ciliumpodippools",
    "/apis/cilium.io/v2/ciliumnodeconfigs",
    "/api/v1/nodes",
)
NETWORK_PROBE = {
    "apiVersion": "netloom.dev/v1alpha1",
    "kind": "NetloomNetwork",
    "metadata": {"name": "default"},
    "spec": {"ipam": {"mode": "gke"}, "routing": {"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8"}},
}
STATUS_PROBE = {
    "apiVersion": "netloom.dev/v1alpha1",
    "kind": "NetloomNetwork",
    "metadata": {"name": "default"},
    "status": {"ipam": {"epoch": 77}},
}
"""What the CRD's own rules allow, so that it shows the policies where those rules are the first to refuse a mode."""
CILIUM_CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "cilium-config", "namespace": "kube-system"},
}
CILIUM_PROBE = CILIUM_CONFIG | {"data": {"ipam": "probe"}}
NODE_CONFIG_PROBE = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNodeConfig",
    "metadata": {"name": "probe", "namespace": "kube-system"},
    "spec": {"defaults": {"ipam": "probe"}, "nodeSelector": {}},
}
MIGRATION = "migration"
KINDS = ("NetloomNetwork", "NetloomIPPool", "NetloomNode", "Node", "CiliumNode", "CiliumPodIPPool")


@dataclass(frozen=True)
class Scene:
    """What there is before a request: objects, and what the guard has to have seen of them."""

    name: str
    objects: tuple[Manifest, ...]
    release: Mapping[str, Any] | None = None
    netloom_in_use: str = ""
    cilium_in_use: str = ""
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Row:
    """One request, and what is said of it."""

    setting: str
    table: str
    name: str
    scene: Scene
    verb: str
    manifest: Manifest
    change: Mapping[str, Any]
    user: str
    said_by: str
    says: str
    warns: tuple[str, ...]
    calls: int | None
    values: Mapping[str, Any] | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.setting}: {self.table}: {self.scene.name}: {self.name}: {self.verb}"


def rows() -> Iterator[Row]:
    tables = ("network", "pool", "node", "cilium-config", "cilium-helm", "cilium-pool", "cilium-node-config")
    # Each worker of pytest reads them: in Python it takes 0.6 s of a core, in C a tenth of that.
    contents = {table: yaml.load((TABLES / f"{table}.yaml").read_text(), yaml.CSafeLoader) for table in tables}
    for setting in (WITHOUT, WITH):
        for table, content in contents.items():
            # The rows of a scene together: to set one up, the guard and the policies have to see it.
            scenes = list(content["scenes"])
            yield from sorted(_rows_of(table, content, setting), key=lambda row: scenes.index(row.scene.name))


def _rows_of(table: str, content: Mapping[str, Any], setting: str) -> Iterator[Row]:
    objects: dict[str, Manifest] = {}
    for name, manifest in content["objects"].items():
        objects[name] = merged(objects[manifest["like"]], manifest["but"]) if "like" in manifest else manifest
    scenes = {name: _scene(name, scene, objects) for name, scene in content["scenes"].items()}
    for row in content["rows"]:
        if setting == WITH and not row.get("policy"):
            continue
        verbs = itertools.chain.from_iterable(ANSWERS["verbs"].get(verb, [verb]) for verb in row["by"])
        said_by = row.get("said by", "") if setting == WITHOUT else row["policy"]
        changes = row["changes"].items() if "changes" in row else [("", row)]
        for scene, verb, (name, change) in itertools.product(row["in"], verbs, changes):
            yield Row(
                setting=setting,
                table=table,
                name=f"{row['name']} {name}".strip(),
                scene=scenes[scene],
                verb=verb,
                manifest=objects[row["object"]],
                change=change.get("change", {}),
                user=row.get("user", "an administrator"),
                said_by="" if "says" not in change else said_by,
                says=change.get("says", "").strip(),
                # A policy refuses before the guard is asked, which then has nothing to warn of.
                warns=() if setting == WITH and "says" in change else tuple(change.get("warns", ())),
                calls=row.get("calls"),
                values=change.get("values"),
                flags=tuple(row.get("flags", ())),
            )


def _scene(name: str, scene: Mapping[str, Any], objects: Mapping[str, Manifest]) -> Scene:
    return Scene(
        name=name,
        objects=tuple(objects[each] for each in scene.get("objects", ())),
        release=scene.get("release"),
        netloom_in_use=scene.get("netloom in use", ""),
        cilium_in_use=scene.get("cilium in use", ""),
        history=tuple(scene.get("history", ())),
    )


@dataclass
class Stage:
    """The control plane with one scene on it at a time. Only what a row has changed is set up anew."""

    plane: ControlPlane
    guards: Guards
    setting: str = WITH
    scene: Scene | None = None
    spoilt: bool = field(default=False, init=False)
    repairs: dict[str, Manifest] = field(default_factory=dict, init=False)
    """By path, what rows have changed that nobody's addresses depend on."""

    def enter(self, setting: str, scene: Scene) -> None:
        if setting != self.setting:
            self._clear()
            self._set(setting)
        elif scene == self.scene and not self.spoilt:
            if self.repairs:
                self._repair(scene)
            return
        else:
            self._clear()
        self.scene, self.spoilt = scene, False
        self.repairs.clear()
        if scene.release is not None:
            for values in (*scene.history, scene.release):
                verb = "install" if values is (*scene.history, scene.release)[0] else "upgrade"
                answer = HelmAsk(verb, CHART, values).run(self.plane)
                assert answer.returncode == 0, answer.stderr
        for manifest in scene.objects:
            put(self.plane, manifest)
        self._wait_seen(scene)

    def changed(self, row: Row, target: Manifest) -> None:
        """A row has changed an object."""
        if (
            target["kind"] in ("NetloomNode", "Node")
            or row.values is not None
            or row.verb in HELM
            or MIGRATION in row.name
        ):
            self.spoilt = True
        self.repairs[path_of(target)] = target

    def _repair(self, scene: Scene) -> None:
        """Objects that hold no addresses are made anew; who holds some stays, and so does the record."""
        belong = {path_of(manifest): manifest for manifest in scene.objects}
        for path, manifest in self.repairs.items():
            remove(self.plane, manifest)
            if path in belong:
                put(self.plane, belong[path])
        self.repairs.clear()
        self._wait_seen(scene)

    def _clear(self) -> None:
        """Past the guard, which then has to see that nothing is in use."""
        if self.scene is None:
            return
        for collection in COLLECTIONS:
            listed = self.plane.client.request("GET", collection)
            for item in listed["items"]:
                kind = listed["kind"].removesuffix("List")
                remove(self.plane, {"apiVersion": listed["apiVersion"], "kind": kind, **item})
        for manifest in (*self.scene.objects, CILIUM_CONFIG):
            if manifest["kind"] == "ConfigMap":
                remove(self.plane, manifest)
        for secret in self.plane.client.request("GET", RELEASES)["items"]:
            self.plane.client.request("DELETE", f"{SECRETS}/{secret['metadata']['name']}")
        self.scene = None
        self._wait_seen(Scene("nothing", ()))

    def _set(self, setting: str) -> None:
        if setting == WITHOUT:
            for name in MODE_BINDINGS:
                self.plane.client.request("DELETE", f"{BINDINGS}/{name}")
        else:
            bindings = [each for each in self.guards.manifests if each["metadata"]["name"] in MODE_BINDINGS]
            apply(self.plane, [each for each in bindings if each["kind"] == "ValidatingAdmissionPolicyBinding"])
        self.setting = setting

    def _wait_seen(self, scene: Scene) -> None:
        counts: dict[str, float] = dict.fromkeys(KINDS, 0)
        for manifest in scene.objects:
            if manifest["kind"] in counts:
                counts[manifest["kind"]] += 1
        (guard,) = self.guards.running
        wait_for(f"the guard sees {counts}", lambda: counts.items() <= _seen_by(guard).items())
        # The policies read the record, whose texts come a second later than its modes.
        record = {"netloomInUse": scene.netloom_in_use, "ciliumInUse": scene.cilium_in_use}
        if self.setting == WITH or not any(record.values()):
            wait_for(f"the record is {record}", lambda: record.items() <= self._record().items())
        wait_for("the policies answer as they should", lambda: self._policies_see(scene))

    def _record(self) -> dict[str, str]:
        data = self.plane.client.request("GET", RECORD).get("data", {})
        return {"netloomInUse": "", "ciliumInUse": "", **data}

    def _policies_see(self, scene: Scene) -> bool:
        """The API server watches policies, bindings and the record by itself: a probe shows how far it has come."""
        probes = [(NETWORK_PROBE, scene.netloom_in_use)]
        if any(manifest["kind"] == "NetloomNetwork" for manifest in scene.objects):
            probes.append((STATUS_PROBE, scene.netloom_in_use))
        probes += [(probe, scene.cilium_in_use) for probe in (CILIUM_PROBE, NODE_CONFIG_PROBE)]
        return all(self._answers(probe, in_use) for probe, in_use in probes)

    def _answers(self, probe: Manifest, in_use: str) -> bool:
        """Whether a change of the mode, as a dry run, is answered as it should be by whom it should be."""
        try:
            self._write_dry(probe)
        except ApiFailure as failure:
            said = str(failure)
            by_policy = "ValidatingAdmissionPolicy" in said
            by_rule = "is invalid" in said  # the CRD's own, which is first
            return bool(in_use) and (by_rule or (by_policy == (self.setting == WITH) and in_use in said))
        return not in_use

    def _write_dry(self, probe: Manifest) -> None:
        try:
            path = path_of(probe) + ("/status" if "status" in probe else "")
            self.plane.client.request("PATCH", f"{path}?dryRun=All", probe)
        except ApiFailure as failure:
            if failure.status != 404:
                raise
            self.plane.client.request("POST", f"{collection_of(probe)}?dryRun=All", probe)


def _seen_by(guard: Guard) -> dict[str, float]:
    """How many objects of each kind."""
    seen = {sample.labels["kind"]: sample.value for sample in guard.samples("netloom_cached_objects")}
    return dict.fromkeys(KINDS, 0.0) | seen


@pytest.fixture(scope="module")
def stage(crds_installed: ControlPlane, helm_binary: Path) -> Iterator[Stage]:
    plane = crds_installed
    install_cilium(plane)
    with guarding(plane) as guards:
        made = Stage(plane, guards)
        yield made
        made._clear()
    uninstall_cilium(plane)
    plane.delete_all("events", namespace="kube-system")


def stored(plane: ControlPlane, manifest: Manifest) -> Manifest:
    """The object as it is; empty where there is none."""
    try:
        found: Manifest = plane.client.request("GET", path_of(manifest))
    except ApiFailure as failure:
        if failure.status != 404:
            raise
        return {}
    return found


@pytest.mark.parametrize("row", [pytest.param(row, id=str(row)) for row in rows()])
def test_what_is_said(stage: Stage, row: Row) -> None:
    stage.enter(row.setting, row.scene)
    plane = stage.plane
    target = merged(row.manifest, {"metadata": row.change.get("metadata", {})})
    before, asked = stored(plane, target), stage.guards.requests()
    if row.values is not None or row.verb in ("rollback", "uninstall"):
        answer = HelmAsk(row.verb, CHART, row.values or {}, flags=row.flags).run(plane)
    else:
        user = ANSWERS["users"][row.user]
        ask = Ask(
            row.verb,
            row.manifest,
            row.change,
            user=user.get("name", "admin"),
            groups=[*ADMIN_GROUPS, *user.get("groups", ())],
            flags=[*user.get("flags", ()), *row.flags],
        )
        answer = ask.run(plane)
    calls = stage.guards.requests() - asked
    after = stored(plane, target)
    if before != after or row.verb in HELM:
        stage.changed(row, target)
    if row.verb == "delete collection":
        stage.spoilt = True  # others go before one is refused
    said = _without_log(answer.stderr)
    expected = "\n".join(f"Warning: {text}" for text in row.warns)
    if row.says:
        expected += ("\n" if expected else "") + refusal(row, new=not before)
    assert is_like(said, expected), f"{row}\nsaid:     {said}\nexpected: {expected}\nstdout: {answer.stdout}"
    assert (answer.returncode == 0) == (not row.says), answer.stdout
    if row.says or "dry run" in row.verb:
        assert before == after
    if row.calls is not None:
        assert calls == row.calls


def _without_log(said: str) -> str:
    """What a program said. Helm logs warnings with a time and in quotes; the API server cuts long ones in pieces."""
    said = re.sub(r'^I\d{4} \S+ +\d+ warnings\.go:\d+\] "(.*)"$', r"\1", said.strip(), flags=re.MULTILINE)
    return re.sub(r" \.\.\.\nWarning: \.\.\. ", " ", said)


def refusal(row: Row, *, new: bool) -> str:
    """A refusal as the program prints it. new: of an object that does not exist."""
    name = merged(row.manifest, row.change)["metadata"]["name"]
    holes = {"text": row.says, "name": name, "kind": row.manifest["kind"]}
    group = row.manifest["apiVersion"].rpartition("/")[0]
    holes["resource"] = ANSWERS["resources"][row.manifest["kind"]]
    holes["typed"] = holes["resource"] + (f".{group}" if group else "")
    if row.verb == "delete collection":
        holes["name"] = "Unknown"  # as the API server has it: the request names none
    if row.said_by in ANSWERS["not the guard"]:
        form, said = ANSWERS["not the guard"][row.said_by], row.says
    else:
        form, said = ANSWERS["printed"], ANSWERS["said by"][row.said_by].format(**holes)
    verb = "create" if new and row.verb in ("apply", "apply dry run") else row.verb
    return str(form.get(verb, form["otherwise"])).strip().format(said=said.strip(), **holes)


@pytest.mark.parametrize(("count", "calls"), [(512, 0), (514, 1)])
def test_a_node_with_many_blocks_gives_one_back(stage: Stage, count: int, calls: int) -> None:
    """An expression that costs the API server too much is a refusal: from some number on, the guard compares them."""
    stage.enter(WITH, Scene("nothing", ()))
    texts = [f"10.64.{number // 8}.{number % 8 * 32}/27" for number in range(count)]
    pools = [{"pool": f"p{at}", "cidrs": texts[at : at + 256]} for at in range(0, count, 256)]
    node = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "a"}}
    node["spec"] = {"ipam": {"mode": "multi-pool", "pools": {"allocated": pools}}}
    put(stage.plane, node)
    asked = stage.guards.requests()
    fewer = [*pools[:-1], {"pool": pools[-1]["pool"], "cidrs": pools[-1]["cidrs"][1:]}]
    patch, agent = {"spec": {"ipam": {"pools": {"allocated": fewer}}}}, ANSWERS["users"]["the agent of node a"]
    said = Ask("patch merge", node, patch, flags=agent["flags"]).run(stage.plane)
    remove(stage.plane, node)
    assert said.returncode == 0, said.stderr
    assert stage.guards.requests() - asked == calls
