"""What else there is to look at when a peer does not answer: whether its agent lives, and this node's switches."""

import contextlib
import datetime as dt

from netloom.api.coordination import LEASES
from netloom.api.verdict import agent_lease
from netloom.kernel import sysctl
from netloom.kernel.probe.device_part import DEVICE
from netloom.runtime.errors import ApiError, NotFound
from netloom_reconcilers.features.node import NodeContext


async def lives(context: NodeContext, node: str) -> bool | None:
    """Whether the agent of a node renews its Lease; None where that cannot be known."""
    api = context.api
    if api is None:
        return None
    try:
        lease = await api.get(LEASES, agent_lease(node), context.lease_namespace)
    except NotFound:
        return False
    except ApiError:
        return None
    try:
        renewed = dt.datetime.fromisoformat(lease.spec.renew_time or "")
    except ValueError:
        return False
    return api.clock.now() <= renewed + dt.timedelta(seconds=lease.spec.lease_duration_seconds)


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
