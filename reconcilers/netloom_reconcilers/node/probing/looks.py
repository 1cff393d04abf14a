"""What else there is to look at when a peer does not answer: whether its agent lives, and this node's switches."""

import contextlib
import datetime as dt
import time
from typing import Literal

from netloom.api.cluster_facts import agent_lease
from netloom.api.coordination import LEASES, LeaseSpec
from netloom.kernel import sysctl
from netloom.kernel.probe.part import DEVICE
from netloom.runtime.clock import TOLERANCE
from netloom.runtime.errors import ApiError, NotFound
from netloom_reconcilers.features.node import NodeContext

KEPT_SECONDS = 5.0
LOOKS_PER_SECOND = 50.0
"""Nodes of a large cluster that look at the Lease of the same number of peers."""

Life = Literal["alive", "not yet", "silent", "unknown"]
"""not yet: its Lease still holds, and was renewed before the question, so it may be gone since."""


class Leases:
    """Whether the agents of peers renew their Leases, which are kept for some seconds: of more nodes, for longer."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._kept: dict[str, tuple[float, LeaseSpec]] = {}

    async def life(self, node: str, since: float, nodes: int) -> Life:
        """Of the agent of a node. since: when (monotonic) it did not answer. nodes: of the cluster."""
        api, now = self._context.api, time.monotonic()
        if api is None:
            return "unknown"
        oldest = now - max(KEPT_SECONDS, nodes / LOOKS_PER_SECOND)
        self._kept = {name: kept for name, kept in self._kept.items() if kept[0] > oldest}
        asked = api.clock.now() - dt.timedelta(seconds=now - since)
        if node in self._kept and (life := _life(self._kept[node][1], asked, api.clock.now())) != "silent":
            return life
        try:
            lease = await api.get(LEASES, agent_lease(node), self._context.lease_namespace)
        except NotFound:
            return "silent"
        except ApiError:
            return "unknown"
        self._kept[node] = now, lease.spec
        return _life(lease.spec, asked, api.clock.now())


def _life(lease: LeaseSpec, asked: dt.datetime, now: dt.datetime) -> Life:
    try:
        renewed = dt.datetime.fromisoformat(lease.renew_time or "")
    except ValueError:
        return "silent"
    if now > renewed + dt.timedelta(seconds=lease.lease_duration_seconds):
        return "silent"
    return "alive" if renewed > asked + TOLERANCE else "not yet"


def switch_off(family: int) -> str:
    """The switch that keeps this node from forwarding, as `sysctl` names it; "" if none does. The device's is as that
    of devices which are made now."""
    names = ["net/ipv4/ip_forward", f"net/ipv4/conf/{DEVICE}/forwarding"]
    for name in names if family == 4 else ["net/ipv6/conf/all/forwarding"]:
        with contextlib.suppress(OSError):
            if sysctl.read(name) == "0":
                shown = "net/ipv4/conf/default/forwarding" if DEVICE in name else name
                return shown.replace("/", ".")
    return ""
