"""`netloom guard check`: asks the API server for writes that the guard has to refuse, and stores none of them.

A guard that is installed and does nothing looks like one that nobody needed yet. So what counts is a refusal, in the
guard's name, of the write itself: by a policy, and by a webhook, for which a guard has to run and to be reached.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from netloom.api.cilium import CONFIG_NAME
from netloom.api.core import CONFIG_MAPS
from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.runtime.client import PATCH_TYPES, Api
from netloom.runtime.errors import ApiError
from netloom.webhook.names import LABEL, NAME, Scope

LOOK_SECONDS = 2.0
NOBODY = "netloom-guard-check"
"""Name of what is written; no node is called so."""

_CREATE = "application/json"
_POLICY = "ValidatingAdmissionPolicy 'netloom-"
_WEBHOOK = '.guard.netloom.dev" denied the request'
_MISSING = (
    "the API server would have stored it. What has to be there: kubectl get "
    f"validatingwebhookconfigurations,validatingadmissionpolicybindings --selector={LABEL}"
)


@dataclass(frozen=True, slots=True)
class GuardAttempt:
    """A write that has to be refused. by: words of a refusal that is the guard's, one of which is in it."""

    what: str
    path: str
    body: dict[str, Any]
    content_type: str
    by: tuple[str, ...]

    @property
    def method(self) -> str:
        return "POST" if self.content_type == _CREATE else "PATCH"


@dataclass(frozen=True, slots=True)
class GuardOutcome:
    """said: the refusal, or what came instead of it."""

    attempt: GuardAttempt
    refused: bool
    said: str

    def __str__(self) -> str:
        how = "refused, as it has to be" if self.refused else "NOT REFUSED BY THE GUARD"
        return f"{self.attempt.what}: {how}: {self.said}"


def attempts(scope: Scope) -> Iterator[GuardAttempt]:
    """One by each of those who refuse."""
    record = {"data": {NOBODY: "by somebody who is no guard"}}
    path = CONFIG_MAPS.path(NAME, namespace=scope.namespace)
    yield GuardAttempt("the guard's record, written by another", path, record, PATCH_TYPES["merge"], (_POLICY,))
    if scope.netloom:
        spec = {"ipam": {"mode": "kubernetes", "podCIDRs": ["203.0.113.0/28"]}}
        node = {
            "apiVersion": NETLOOM_NODES.api_version,
            "kind": NETLOOM_NODES.kind,
            "metadata": {"name": NOBODY},
            "spec": spec,
        }
        yield GuardAttempt(
            "addresses for a node, by who is no operator", NETLOOM_NODES.path(), node, _CREATE, (_WEBHOOK,)
        )
    if scope.cilium:
        path = CONFIG_MAPS.path(CONFIG_NAME, namespace=scope.cilium_namespace)
        both = {"ipam": "kubernetes", "IPAM": "cluster-pool"}
        twice = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_NAME}, "data": both}
        yield GuardAttempt("two IPAM modes in cilium-config", path, twice, PATCH_TYPES["apply"], (_WEBHOOK, _POLICY))


async def check(scope: Scope, kubeconfig: str | None, context: str | None, wait: float) -> list[GuardOutcome]:
    """What came of each attempt, at the latest after `wait` seconds. Raises UserError where nothing can be asked."""
    async with await Api.connect(kubeconfig, context, user_agent=NOBODY) as api:
        await api.check()
        deadline = time.monotonic() + wait
        while True:
            found = [await _try(api, each) for each in attempts(scope)]
            if all(each.refused for each in found) or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(LOOK_SECONDS)


async def _try(api: Api, attempt: GuardAttempt) -> GuardOutcome:
    query = {"dryRun": "All", "fieldManager": NOBODY}
    if attempt.content_type == PATCH_TYPES["apply"]:
        query["force"] = "true"
    body = msgspec.json.encode(attempt.body)
    try:
        await api.request(attempt.method, attempt.path, query=query, body=body, content_type=attempt.content_type)
    except ApiError as error:
        return GuardOutcome(attempt, refused=any(each in error.message for each in attempt.by), said=error.message)
    return GuardOutcome(attempt, refused=False, said=_MISSING)
