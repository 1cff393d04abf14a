"""Ends the agents, and has each machine cleaned as soon as its own has ended."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from netloom.api.core import NOT_READY_TAINT, PODS, Pod
from netloom.api.errors import UserError
from netloom.api.pod_state import POD_STATES
from netloom.runtime.client import PATCH_TYPES, Api
from netloom.runtime.errors import ApiError, Conflict, NotFound
from netloom.uninstall import cleaner as cleaners
from netloom.uninstall.cleaner import PARKED, SELECTORS, Cleaner, by_hand
from netloom.uninstall.deleting import delete, until
from netloom.uninstall.installation import AGENT, NETWORK_KINDS, Thing, agents
from netloom.uninstall.machines import MACHINES, MachineNode, Progress, look, wanted

PAUSE_SECONDS = 0.5
_MERGE = PATCH_TYPES["merge"]


async def find_agents(api: Api, namespace: str) -> Mapping[str, Any] | None:
    """The DaemonSet; None where there is none any more."""
    try:
        found: dict[str, Any] = msgspec.json.decode(await api.request("GET", agents(namespace).path))
    except NotFound:
        return None
    return found


async def park(api: Api, namespace: str) -> None:
    """Ends the agents. Their DaemonSet stays until the machines are clean: it tells how they were, should this process
    be killed and begin anew."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": {PARKED: ""}}}}}

    async def done() -> str:
        try:
            body = msgspec.json.encode(patch)
            await api.request("PATCH", agents(namespace).path, body=body, content_type=_MERGE)
        except NotFound:
            return ""
        return ""

    await until("the agents cannot be ended", done)


async def pods_gone(api: Api, namespace: str, names: Collection[str], seconds: float) -> str:
    """Waits until there are no pods of these names any more, on machines that answer; why there are, if they stay."""
    selector = f"app.kubernetes.io/name in ({','.join(names)})"

    async def done() -> str:
        silent = {each.metadata.name for each in (await api.list(MACHINES)).objects if each.is_silent}
        found = (await api.list(PODS, namespace=namespace, label_selector=selector)).objects
        left = [each for each in found if each.spec.node_name and each.spec.node_name not in silent]
        return ", ".join(f"{each.metadata.name} on {each.spec.node_name}" for each in left)

    try:
        await until("pods that do not end", done, seconds)
    except UserError as error:
        return str(error)
    return ""


class NodesCleaning:
    """namespace: where the agents are. pods_in: where the pods that clean are made. say: tells people."""

    def __init__(self, api: Api, cleaner: Cleaner, namespace: str, pods_in: str, say: Callable[[str], None]) -> None:
        self._api = api
        self._cleaner = cleaner
        self._namespace = namespace
        self._pods_in = pods_in
        self._say = say
        self._refused: dict[str, str] = {}
        """Why a machine got no pod."""

    async def run(self, seconds: float) -> Progress:
        """Returns when all machines are clean that answer. Raises UserError, which names those that are not."""
        await self._remove_pods()  # of an earlier run, which may be long ago
        machines = await self._machines()
        deadline = time.monotonic() + seconds
        progress = Progress()
        while time.monotonic() < deadline:
            try:
                progress = await self._step(machines, progress)
            except ApiError as error:
                self._say(f"the API server is asked again: {error}")
            else:
                if not progress.open:
                    break
            await asyncio.sleep(PAUSE_SECONDS)
        await self._remove_pods()
        if progress.open or (machines and not (progress.clean or progress.silent)):
            raise UserError(self._not_clean(progress, seconds))
        return progress

    async def _machines(self) -> list[MachineNode]:
        """Those to be cleaned. What agents wrote shows where they were, whatever the DaemonSet says now."""
        known = {pod.spec.node_name for pod in await self._pods_of_agents()}
        for kind in NETWORK_KINDS:
            if kind.plural == "netloomnodes":
                try:
                    known |= {each.metadata.name for each in (await self._api.list(kind)).objects}
                except NotFound:
                    continue
        listed = await self._api.list(MACHINES)
        if listed.unreadable:
            raise UserError(f"Nodes that cannot be read, so that machines would stay as they are: {listed.unreadable}")
        return wanted(listed.objects, self._cleaner.chosen, known)

    async def _pods_of_agents(self) -> list[Pod]:
        return (await self._api.list(PODS, namespace=self._namespace, label_selector=SELECTORS[AGENT])).objects

    async def _step(self, machines: list[MachineNode], before: Progress) -> Progress:
        names = {each.metadata.name for each in machines}
        present = [each for each in (await self._api.list(MACHINES)).objects if each.metadata.name in names]
        there = {pod.spec.node_name for pod in await self._pods_of_agents()}
        listed = self._api.list(POD_STATES, namespace=self._pods_in, label_selector=SELECTORS[cleaners.NAME])
        progress, ready = look(present, there, (await listed).objects)
        for name in ready:
            await self._begin(name)
            progress.open[name] = self._refused.get(name, "its cleanup begins")
        for name in sorted(progress.clean.keys() - before.clean.keys()):
            left = progress.clean[name]
            self._say(f"{name}: clean." + (f" {left}" if left else ""))
        return progress

    async def _begin(self, node: str) -> None:
        path = POD_STATES.path(namespace=self._pods_in)
        manifest = cleaners.pod(self._cleaner, node, self._pods_in)
        try:
            await self._api.request("POST", path, body=msgspec.json.encode(manifest))
        except ApiError as error:
            self._refused[node] = f"its cleanup cannot begin: {error}"
        else:
            self._refused.pop(node, None)

    async def _remove_pods(self) -> None:
        """All that clean, and clean no more."""
        listed = self._api.list(POD_STATES, namespace=self._pods_in, label_selector=SELECTORS[cleaners.NAME])
        silent = {each.metadata.name for each in (await self._api.list(MACHINES)).objects if each.is_silent}
        found = [each for each in (await listed).objects if each.spec.node_name not in silent]
        await delete(self._api, [Thing("/api/v1", "pods", each.metadata.name, self._pods_in) for each in found])

    def _not_clean(self, progress: Progress, seconds: float) -> str:
        named = "; ".join(f"{name}: {why}" for name, why in progress.open.items()) or "nothing was heard of any"
        return (
            f"machines that are not clean after {seconds:g} s: {named}. Agents are ended, and Netloom's objects are "
            "still there. Run it again when that is out of the way: what is clean stays so. Or clean them yourself, by "
            f"`{by_hand(self._cleaner)}` there, and leave them out here by --no-nodes (helm uninstall --no-hooks)."
        )


async def untaint(api: Api) -> list[str]:
    """Takes the taint off that agents take off when a node can route: pods would wait for them for ever. Returns the
    names of the nodes."""
    found: list[str] = []

    async def done() -> str:
        for node in (await api.list(MACHINES)).objects:
            left = [each for each in node.spec.taints if each.get("key") != NOT_READY_TAINT]
            if len(left) < len(node.spec.taints):
                meta = {"resourceVersion": node.metadata.resource_version}
                patch = msgspec.json.encode({"metadata": meta, "spec": {"taints": left or None}})
                try:
                    path = MACHINES.path(node.metadata.name)
                    await api.request("PATCH", path, body=patch, content_type=_MERGE)
                except NotFound:
                    continue
                except Conflict:
                    return f"Node {node.metadata.name} is being changed by others without a pause"
                found.append(node.metadata.name)
        return ""

    await until(f"the taint {NOT_READY_TAINT} cannot be taken off", done)
    return found
