"""Whether this machine is the node whose name it has.

A machine that was set up anew with an old name holds, by that name, what the old one gives to its pods if it lives. The
kubelet says in its Node of which boot it speaks (`status.nodeInfo.bootID`); the kernel says in which this one is. Where
these differ, it is another machine's kubelet that speaks, or that of this one has not done so since its start, which it
does within seconds.
"""

from pathlib import Path

import msgspec

from netloom.api.core import NODES
from netloom.api.meta import ObjectMeta, Struct
from netloom.runtime.client import Api
from netloom.runtime.errors import Forbidden, NotFound

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NodeInfo(Struct, frozen=True):
    """Node.status.nodeInfo: of the boot of the kubelet's machine."""

    boot_id: str = msgspec.field(name="bootID", default="")


class BootedStatus(Struct, frozen=True):
    """Node.status, as far as its machine goes."""

    node_info: NodeInfo = NodeInfo()


class BootedNode(Struct, frozen=True):
    """core/v1 Node, the same."""

    metadata: ObjectMeta = ObjectMeta()
    status: BootedStatus = BootedStatus()


BOOTED = NODES.read_as(BootedNode)


def boot() -> str:
    """Of this machine, as the kernel has it. Raises OSError."""
    return BOOT_ID.read_text().strip()


async def why_not(api: Api, node: str) -> str:
    """Why this machine may not be that node, as a sentence; "" where nothing speaks against it: there is no Node, it
    says nothing, or it may not be read. Raises ApiError, OSError."""
    try:
        said = (await api.get(BOOTED, node)).status.node_info.boot_id
    except (NotFound, Forbidden):
        return ""
    mine = boot()
    if said in ("", mine):
        return ""
    return (
        f"Node {node} is another machine by what its kubelet says (its boot is {said}, and this machine's {mine}). "
        "Where the kubelet here has just begun, it says so in a moment; else give this machine a name of its own, or "
        "end the other."
    )
