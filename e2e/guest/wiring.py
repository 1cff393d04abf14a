"""Pods of a node as container runtimes get them: the real plugin, and behind its socket the agent's features for pods.

They run in a process of their own, in the node's network namespace, as an agent does. It is forked: to start a Python
anew, and to load all of this, takes half a minute here.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from netloom.api.meta import ObjectMeta, Resource
from netloom.api.v1alpha1 import Address, NetloomNetwork, NetloomNode, NetloomNodeSpec, NodeIPAM
from netloom.runtime.store import Store
from netloom_e2e import cni_plugin
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.lab import wait_for
from netloom_e2e.machines import Machine
from netloom_e2e.sandboxes import CniFailure, Runtime
from netloom_e2e.virtual_machine import CNI_PLUGIN, IS_GUEST
from netloom_reconcilers.features.node import NodeContext, NodeFeature
from netloom_reconcilers.node.addresses.feature import AddressesFeature
from netloom_reconcilers.node.endpoints.feature import EndpointsFeature
from netloom_reconcilers.node.endpoints.options import CniOptions

_READY_SECONDS = 120.0


class _Mesh:
    """What pods need to know of it. Their own agent makes it, beside this."""

    applied = True

    def __init__(self, pod_mtu: int) -> None:
        self.pod_mtu = pod_mtu

    def lifeline_at(self, address: bytes) -> str:
        """Nothing of these nodes is within their pods' CIDRs."""
        return ""


class _Caches:
    """Stores that nobody fills but the test."""

    def store(self, resource: Resource[Any], *_arguments: object, **_options: object) -> Store[Any]:
        return Store(resource)

    def fault(self, resource: Resource[Any]) -> str:
        return ""


@contextlib.contextmanager
def wired(machine: Machine, cidrs: Sequence[str], mtu: int, folder: Path) -> Iterator[Runtime]:
    """The runtime of a node with these pod CIDRs; returns when pods can be added. mtu: of pods, in bytes."""
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(machine, cidrs, mtu, folder), daemon=True
    )
    process.start()
    program = CNI_PLUGIN if IS_GUEST in os.environ else cni_plugin.built()
    runtime = Runtime(machine, Plugin(program, folder / "cni.sock", folder / "deletions"))

    def serves() -> bool:
        assert process.is_alive(), f"what wires pods of {machine.node} has ended"
        with contextlib.suppress(CniFailure):
            runtime.status()
            return True
        return False

    try:
        wait_for(f"{machine.node} to add pods", serves, deadline=_READY_SECONDS)
        yield runtime
    finally:
        process.kill()
        process.join()


def _serve(machine: Machine, cidrs: Sequence[str], mtu: int, folder: Path) -> None:
    machine.move_thread()
    asyncio.run(_wire(machine, cidrs, mtu, folder))


async def _wire(machine: Machine, cidrs: Sequence[str], mtu: int, folder: Path) -> None:
    """As `netloom.roles.agent` puts features together."""
    features: list[NodeFeature] = []

    def changed() -> None:
        for each in features:
            each.changed()

    options = CniOptions(folder / "cni.sock", folder / "deletions")
    context = NodeContext(machine.node, folder, _Caches(), changed=changed, cni=options)
    context.mesh = _Mesh(mtu)
    features += [AddressesFeature(context), EndpointsFeature(context)]
    addresses = (Address(type="InternalIP", ip=machine.address),)
    spec = NetloomNodeSpec(addresses=addresses, ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=tuple(cidrs)))
    node = NetloomNode(metadata=ObjectMeta(name=machine.node, uid=machine.node, resource_version="1"), spec=spec)
    context.networks.replace({"default": NetloomNetwork()})
    context.nodes.replace({machine.node: node})
    for each in features:
        if each.keeper is not None:
            await each.keeper.open()
    async with asyncio.TaskGroup() as group:
        for each in features:
            for run in each.components().values():
                group.create_task(run())
