"""What Roles grant to a service account or user, and what it did, as the API server's audit log says it.

Compared grant by grant: a verb on a resource, in a namespace or everywhere, of any name or of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from netloom_e2e import audit_log

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata%s}]
"""
_BINDINGS = {"ClusterRoleBinding": "ClusterRole", "RoleBinding": "Role"}


class Account(NamedTuple):
    """A service account."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"


class Right(NamedTuple):
    """A verb on a resource with its subresource, as RBAC writes it: `netloomnodes/status`.

    Of a grant: namespace and name are "" where it is for all of them. Of a request: where it is about all of them.
    """

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def allows(self, asked: Right) -> bool:
        """Whether this grant is enough for that request."""
        return self[:3] == asked[:3] and self.namespace in ("", asked.namespace) and self.name in ("", asked.name)


def accounts(manifests: Iterable[Mapping[str, Any]]) -> set[Account]:
    """Whom these manifests grant anything."""
    return {
        Account(subject["namespace"], subject["name"])
        for each in manifests
        if each["kind"] in _BINDINGS
        for subject in each["subjects"]
    }


def granted(manifests: Iterable[Mapping[str, Any]], account: Account) -> set[Right]:
    """What the Roles and ClusterRoles that are bound to it grant."""
    every = [each for each in manifests if each["kind"] in (*_BINDINGS, *_BINDINGS.values())]
    roles = {_key(each["kind"], each["metadata"]): each["rules"] for each in every if "rules" in each}
    found: set[Right] = set()
    for binding in every:
        if binding["kind"] not in _BINDINGS:
            continue
        if account not in {Account(each.get("namespace", ""), each["name"]) for each in binding["subjects"]}:
            continue
        namespace = binding["metadata"].get("namespace", "")
        assert binding["roleRef"]["kind"] == _BINDINGS[binding["kind"]]
        role = _key(binding["roleRef"]["kind"], {"name": binding["roleRef"]["name"], "namespace": namespace})
        for rule in roles[role]:
            found |= {
                Right(group, resource, verb, namespace, name)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
                for name in rule.get("resourceNames", [""])
            }
    return found


def _key(kind: str, metadata: Mapping[str, str]) -> tuple[str, str, str]:
    return kind, metadata.get("namespace", ""), metadata["name"]


def unused(grants: Iterable[Right], used: Iterable[Right]) -> list[Right]:
    """Grants that no request needed."""
    asked = set(used)
    return sorted(grant for grant in grants if not any(map(grant.allows, asked)))


def too_wide(grants: Iterable[Right], used: Iterable[Right]) -> dict[str, str]:
    """Resources that are granted in all namespaces, and were asked for in one only: which that is, by resource."""
    grants, asked = list(grants), set(used)
    found = {}
    for group, resource in sorted({grant[:2] for grant in grants if not grant.namespace}):
        narrow = [grant for grant in grants if grant.namespace]
        needing = {
            each.namespace
            for each in asked
            if each[:2] == (group, resource) and not any(g.allows(each) for g in narrow)
        }
        if len(needing) == 1 and needing != {""}:
            found[f"{resource}.{group}".rstrip(".")] = needing.pop()
    return found


class Audit:
    """The audit log of a control plane that is started with `flags`. namespace: of service accounts, if requests of
    others are not to be logged."""

    def __init__(self, folder: Path, namespace: str = "") -> None:
        self._policy = folder / "audit-policy.yaml"
        self._log = folder / "audit.log"
        self._policy.write_text(POLICY % (f', userGroups: ["system:serviceaccounts:{namespace}"]' if namespace else ""))
        self._from = 0

    @property
    def flags(self) -> tuple[str, ...]:
        """For `ControlPlane(apiserver_flags=...)`. In its blocking mode nothing is answered before it is logged."""
        return f"--audit-policy-file={self._policy}", f"--audit-log-path={self._log}", "--audit-log-mode=blocking"

    def begin(self) -> None:
        """What was until now is not counted."""
        self._from = len(audit_log.lines(self._log))

    def used(self, user: str) -> set[Right]:
        """What the user asked for and was granted."""
        return {right for right, allowed in self._asked(user) if allowed}

    def forbidden(self, user: str) -> set[Right]:
        """What the user asked for and was refused, by RBAC or by a policy."""
        return {right for right, allowed in self._asked(user) if not allowed}

    def all_faults(self, manifests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Those of all accounts to which these manifests grant anything, by the account's name; without those that have
        none."""
        every = list(manifests)
        found = {account.name: self.faults(account, granted(every, account)) for account in accounts(every)}
        return {name: faults for name, faults in found.items() if faults}

    def faults(self, account: Account, grants: Iterable[Right]) -> dict[str, Any]:
        """What is wrong with the grants of an account that has lived; empty if nothing is."""
        grants, used = set(grants), self.used(account.user)
        found = {
            "was refused": sorted(self.forbidden(account.user)),
            "nobody ever used": unused(grants, used),
            "granted in all namespaces, used in one": too_wide(grants, used),
        }
        return {what: which for what, which in found.items() if which}

    def _asked(self, user: str) -> set[tuple[Right, bool]]:
        found = set()
        for line in audit_log.lines(self._log)[self._from :]:
            event = json.loads(line)
            about = event.get("objectRef", {})
            if event["user"]["username"] != user or "resource" not in about:
                continue
            decision = event.get("annotations", {}).get("authorization.k8s.io/decision")
            code = event.get("responseStatus", {}).get("code")
            # A dry run is told by the answer, and a no is what a check of the guard is for.
            tried = "dryRun=All" in event["requestURI"]
            allowed = decision == "allow" and (tried or code != HTTPStatus.FORBIDDEN)
            right = _right(about, event["verb"])
            found.add((right, allowed))
            if event["verb"] == "patch" and (code == HTTPStatus.CREATED or (tried and code == HTTPStatus.FORBIDDEN)):
                # Server-side apply of what was not there: that takes the right to create it, under its name, as well.
                # Of a dry run that was refused the log does not say whether it was there.
                found.add((right._replace(verb="create"), allowed))
        return found


def _right(about: Mapping[str, str], verb: str) -> Right:
    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
    # A Namespace is told as if it were in itself.
    namespace = "" if about["resource"] == "namespaces" else about.get("namespace", "")
    return Right(about.get("apiGroup", ""), resource, verb, namespace, about.get("name", ""))
