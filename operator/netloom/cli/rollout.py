"""Pods of Netloom that do not come up, as after an upgrade to an image that nobody can pull.

Their agents were ended in order, so their Leases say nothing wrong for as long as silence is allowed. This is for who
may look at the namespace of the agents; others are told by the Leases, later.
"""

import asyncio

from netloom.api import cilium
from netloom.api.cluster_facts import ObjectProblem
from netloom.api.meta import ObjectMeta, Struct
from netloom.api.pod_state import POD_STATES
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError

AGENTS = "netloom-agent"
"""The DaemonSet of the chart and of docs/examples."""
_PART = "app.kubernetes.io/part-of=netloom"
_COMING = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a container that waits for what mostly comes."""


class Counts(Struct, frozen=True):
    """DaemonSet.status."""

    desired_number_scheduled: int = 0
    updated_number_scheduled: int = 0
    number_ready: int = 0


class CountedDaemonSet(Struct, frozen=True):
    """apps/v1 DaemonSet, as far as its pods are counted."""

    metadata: ObjectMeta = ObjectMeta()
    status: Counts = Counts()


DAEMON_SETS = cilium.DAEMON_SETS.read_as(CountedDaemonSet)


async def problems(api: Api, namespace: str) -> list[ObjectProblem]:
    """What is not as it was asked for; nothing where that cannot be looked at, or nothing is there."""
    async with asyncio.TaskGroup() as group:
        agents = group.create_task(_agents(api, namespace))
        pods = group.create_task(_pods(api, namespace))
    return [*agents.result(), *pods.result()]


async def _agents(api: Api, namespace: str) -> list[ObjectProblem]:
    try:
        counts = (await api.get(DAEMON_SETS, AGENTS, namespace)).status
    except ApiError:
        return []
    wanted, ready, updated = counts.desired_number_scheduled, counts.number_ready, counts.updated_number_scheduled
    if min(ready, updated) >= wanted:
        return []
    name = f"{namespace}/{AGENTS}"
    message = (
        f"DaemonSet {name}: of {wanted} agents {ready} are ready, and {updated} are of the version that was asked for. "
        f"Pods keep their network; new ones wait where no agent runs. kubectl rollout status daemonset/{AGENTS} "
        f"-n {namespace}"
    )
    return [ObjectProblem("DaemonSet", name, "AgentsNotReady", message)]


async def _pods(api: Api, namespace: str) -> list[ObjectProblem]:
    """Of those that do not run at all: in a large cluster these are few."""
    try:
        listing = await api.list(
            POD_STATES, namespace=namespace, label_selector=_PART, field_selector="status.phase=Pending"
        )
    except ApiError:
        return []
    found = []
    for pod in listing.objects:
        name = f"{namespace}/{pod.metadata.name}"
        for waiting in (container.state.waiting for container in pod.status.container_statuses):
            if waiting is not None and waiting.reason not in _COMING:
                message = f"Pod {name} on {pod.spec.node_name}: {waiting.reason}: {waiting.message}"
                found.append(ObjectProblem("Pod", name, waiting.reason, message))
    return found
