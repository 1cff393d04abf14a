"""What roles may do, as RBAC objects say it, and what they did, as the API server's audit log says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


class Right(NamedTuple):
    """`resource` with its subresource, as RBAC writes it: `netloomnodes/status`."""

    group: str
    resource: str
    verb: str


def granted(manifests: Iterable[Mapping[str, Any]], *roles: str) -> set[Right]:
    """What the Roles and ClusterRoles of these names grant; that a rule is for some names only does not count."""
    rules = [
        rule
        for each in manifests
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"] in roles
        for rule in each["rules"]
    ]
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Audit:
    """The audit log of a control plane that is started with `flags`."""

    def __init__(self, folder: Path) -> None:
        self._policy = folder / "audit-policy.yaml"
        self._log = folder / "audit.log"
        self._policy.write_text(POLICY)

    @property
    def flags(self) -> tuple[str, ...]:
        """For `ControlPlane(apiserver_flags=...)`. In its blocking mode nothing is answered before it is logged."""
        return f"--audit-policy-file={self._policy}", f"--audit-log-path={self._log}", "--audit-log-mode=blocking"

    def used(self, user: str) -> set[Right]:
        """What the user asked for and was granted."""
        return {right for right, allowed in self._asked(user) if allowed}

    def forbidden(self, user: str) -> set[Right]:
        """What the user asked for and RBAC refused."""
        return {right for right, allowed in self._asked(user) if not allowed}

    def _asked(self, user: str) -> set[tuple[Right, bool]]:
        found = set()
        for line in self._log.read_text().splitlines():
            event = json.loads(line)
            about = event.get("objectRef", {})
            if event["user"]["username"] != user or "resource" not in about:
                continue
            resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
            decision = event.get("annotations", {}).get("authorization.k8s.io/decision")
            found.add((Right(about.get("apiGroup", ""), resource, event["verb"]), decision == "allow"))
        return found
