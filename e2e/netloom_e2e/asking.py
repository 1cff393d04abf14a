"""The ways by which people change an object, from one description of the change: kubectl's verbs, and Helm.

A change is a merge patch (RFC 7386) of the object's manifest; `Ask` makes of it what each verb sends.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import yaml

from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane

Manifest = dict[str, Any]

PLURALS = {
    "NetloomNetwork": "netloomnetworks",
    "NetloomIPPool": "netloomippools",
    "NetloomNode": "netloomnodes",
    "CiliumNode": "ciliumnodes",
    "CiliumPodIPPool": "ciliumpodippools",
    "CiliumNodeConfig": "ciliumnodeconfigs",
    "ConfigMap": "configmaps",
    "Node": "nodes",
}
ADMIN_GROUPS = ("system:masters",)
BREAK_GLASS = (*ADMIN_GROUPS, "netloom:break-glass")


def merged(manifest: Manifest, patch: Mapping[str, Any]) -> Manifest:
    """What a merge patch makes of a manifest (RFC 7386)."""
    result = copy.deepcopy(manifest)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def path_of(manifest: Manifest) -> str:
    """Of an object in the API."""
    return f"{collection_of(manifest)}/{manifest['metadata']['name']}"


def collection_of(manifest: Manifest) -> str:
    """Of the objects of its kind (and namespace)."""
    version, namespace = manifest["apiVersion"], manifest["metadata"].get("namespace")
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{prefix}/{f'namespaces/{namespace}/' if namespace else ''}{PLURALS[manifest['kind']]}"


def put(plane: ControlPlane, manifest: Manifest) -> None:
    """Creates an object as `kubectl apply` has left it, past the guard; with its status, if it has one.

    Both ways to apply it go on from here: it says what was applied last, and kubectl owns its fields.
    """
    client = plane.client_of("admin", BREAK_GLASS)
    status = manifest.get("status")
    bare = {key: value for key, value in manifest.items() if key != "status"}
    noted = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(bare, separators=(",", ":")) + "\n"}
    body = merged(bare, {"metadata": {"annotations": noted}})
    path = path_of(manifest)
    client.apply(path, body)
    if status:
        client.request("PATCH", f"{path}/status", {"status": status})


def remove(plane: ControlPlane, manifest: Manifest) -> None:
    """Deletes an object past the guard, whatever holds it."""
    client = plane.client_of("admin", BREAK_GLASS)
    path = path_of(manifest)
    try:
        client.request("PATCH", path, {"metadata": {"finalizers": None}})
        client.request("DELETE", path)
    except ApiFailure as failure:
        if failure.status != 404:
            raise


@dataclass(frozen=True)
class Ask:
    """One request: who asks for what, and how. `values` and `release` are Helm's."""

    verb: str
    manifest: Manifest
    change: Mapping[str, Any] = field(default_factory=dict)
    user: str = "admin"
    groups: Sequence[str] = ADMIN_GROUPS
    flags: Sequence[str] = ()

    def run(self, plane: ControlPlane) -> CompletedProcess[str]:
        """What kubectl says of it."""
        arguments, standard_input, environment = self._command(plane)
        return plane.kubectl(
            *arguments,
            *self.flags,
            input=standard_input,
            check=False,
            user=self.user,
            groups=self.groups,
            env=environment,
        )

    def _command(self, plane: ControlPlane) -> tuple[list[str], str | None, dict[str, str]]:
        after = merged(self.manifest, self.change)
        text = json.dumps(after)
        target = self._target
        if self.verb in _OF_FILES:
            return [*_OF_FILES[self.verb], "--filename=-"], text, {}
        if self.verb in _OF_NAMES:
            return [*_OF_NAMES[self.verb][:1], *target, *_OF_NAMES[self.verb][1:]], None, {}
        match self.verb:
            case "edit":
                return ["edit", *target], None, self._editor(plane)
            case "edit status":
                return ["edit", *target, "--subresource=status"], None, self._editor(plane)
            case "patch json" | "patch json status":
                return ["patch", *target, *_PATCH[self.verb], f"--patch={json.dumps(self._json_patch())}"], None, {}
            case "replace status":
                live = plane.client.request("GET", path_of(self.manifest))
                return ["replace", "--subresource=status", "--filename=-"], json.dumps(merged(live, self.change)), {}
            case "delete collection":
                return ["delete", "--raw", collection_of(self.manifest)], None, {}
            case verb:
                return ["patch", *target, *_PATCH[verb], f"--patch={json.dumps(self.change)}"], None, {}

    @property
    def _target(self) -> list[str]:
        group = self.manifest["apiVersion"].rpartition("/")[0]
        resource = f"{PLURALS[self.manifest['kind']]}{'.' if group else ''}{group}"
        namespace = self.manifest["metadata"].get("namespace")
        return [resource, self.manifest["metadata"]["name"], *([f"--namespace={namespace}"] if namespace else [])]

    def _editor(self, plane: ControlPlane) -> dict[str, str]:
        """The environment in which an editor saves the object with the change made, as a person would. What is refused
        kubectl leaves in a file for the next try, here with all else of the control plane."""
        live = plane.client.request("GET", path_of(self.manifest))
        edited = plane.state / "edited.yaml"
        edited.write_text(yaml.safe_dump(merged(live, self.change)))
        return {"KUBE_EDITOR": f"cp {shlex.quote(str(edited))}", "TMPDIR": str(plane.state)}

    def _json_patch(self) -> list[Manifest]:
        """One operation for each field below the top that the change sets or takes away."""
        operations = []
        for top, below in self.change.items():
            if not isinstance(below, dict) or top not in self.manifest:
                operations.append(_operation(self.manifest, [top], below))
                continue
            operations += [_operation(self.manifest, [top, key], value) for key, value in below.items()]
        return operations


_OF_FILES = {
    "create": ["create"],
    "create dry run": ["create", "--dry-run=server"],
    "apply": ["apply"],
    "apply dry run": ["apply", "--dry-run=server"],
    "apply server-side": ["apply", "--server-side"],
    "apply server-side by another": ["apply", "--server-side", "--field-manager=flux", "--force-conflicts"],
    "apply server-side dry run": ["apply", "--server-side", "--dry-run=server"],
    "replace": ["replace"],
    "replace dry run": ["replace", "--dry-run=server"],
    "replace force": ["replace", "--force"],
}
_OF_NAMES = {
    "delete": ["delete", "--wait=false"],
    "delete dry run": ["delete", "--dry-run=server"],
    "delete in the background": ["delete", "--wait=false", "--cascade=background"],
    "delete orphaning": ["delete", "--wait=false", "--cascade=orphan"],
    "delete now": ["delete", "--wait=false", "--now"],
    "delete force": ["delete", "--wait=false", "--force"],
    "label": ["label", "team=network", "--overwrite"],
    "annotate": ["annotate", "note=harmless", "--overwrite"],
    "scale": ["scale", "--replicas=2"],
}
_PATCH = {
    "patch merge": ["--type=merge"],
    "patch merge dry run": ["--type=merge", "--dry-run=server"],
    "patch strategic": ["--type=strategic"],
    "patch json": ["--type=json"],
    "patch merge status": ["--type=merge", "--subresource=status"],
    "patch json status": ["--type=json", "--subresource=status"],
}


def _operation(manifest: Manifest, keys: Sequence[str], value: object) -> Manifest:
    pointer = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
    if value is None:
        return {"op": "remove", "path": pointer}
    below: Any = manifest
    for key in keys:
        below = below.get(key, {})
    if isinstance(value, dict) and isinstance(below, dict):
        value = merged(below, value)
    return {"op": "add", "path": pointer, "value": value}


@dataclass(frozen=True)
class HelmAsk:
    """One command of Helm: `upgrade` to values, `rollback`, `uninstall`, with the release `cilium` or another."""

    verb: str
    chart: Path
    values: Mapping[str, Any]
    release: str = "cilium"
    namespace: str = "kube-system"
    flags: Sequence[str] = ()

    def run(self, plane: ControlPlane) -> CompletedProcess[str]:
        file = plane.state / "values.yaml"
        file.write_text(yaml.safe_dump(dict(self.values)))
        common = [f"--namespace={self.namespace}", *self.flags]
        match self.verb:
            case "rollback":
                return plane.helm("rollback", self.release, "1", *common, check=False)
            case "uninstall":
                return plane.helm("uninstall", self.release, *common, check=False)
            case verb:
                command, *flags = _OF_HELM.get(verb, (verb,))
                arguments: list[str | Path] = [self.release, self.chart, f"--values={file}", *flags, *common]
                return plane.helm(command, *arguments, check=False)


_OF_HELM = {
    "upgrade dry run": ("upgrade", "--dry-run=server"),
    "upgrade client-side": ("upgrade", "--server-side=false"),
    "upgrade with conflicts": ("upgrade", "--server-side=true", "--force-conflicts"),
    "upgrade --install": ("upgrade", "--install"),
}


def is_like(said: str, expected: str) -> bool:
    """Whether a text is the expected one, in which each `<...>` stands for what differs from run to run."""
    pattern = ".*?".join(re.escape(part) for part in re.split(r"<[a-z ]+>", expected.strip()))
    return re.fullmatch(pattern, said.strip(), re.DOTALL) is not None
