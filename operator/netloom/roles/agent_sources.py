"""What an agent was asked to do, and where its objects come from: a cluster, or a directory of manifests."""

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from netloom.api.meta import ObjectMeta, OwnerReference
from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedEncapsulation, Address, NetloomNode, NodeIPAM
from netloom.ipam.pool_demand import IDLE_SECONDS
from netloom.roles.sources import Sources
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError
from netloom.runtime.watch import EVERY_NODE
from netloom_reconcilers.node.endpoints.options import CniOptions
from netloom_reconcilers.node.known.peers import is_owned
from netloom_reconcilers.signs_of_life import GRACE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What `netloom agent` was asked to do. `manifests` set: no cluster is spoken to. features: as for `chosen`.

    lease_namespace: of the Lease that says that this agent lives. grace_period: seconds of silence that it is allowed;
    more in a large cluster. state_dir, socket, give_back_after, cni: as in NodeContext.
    """

    node_name: str
    run_dir: Path
    kubeconfig: str | None = None
    context: str | None = None
    manifests: Path | None = None
    state_dir: Path | None = None
    socket: Path | None = None
    give_back_after: float = IDLE_SECONDS
    http_address: str = "127.0.0.1:9964"
    features: str = "*"
    lease_namespace: str = "kube-system"
    grace_period: float = GRACE_SECONDS
    cni: CniOptions | None = None


@asynccontextmanager
async def sources(options: AgentOptions, *, patient: bool = False) -> AsyncIterator[tuple[Sources, Api | None]]:
    """The sources, and the connection where there is a cluster. Nothing is asked of it yet. Raises ConfigError.

    patient: as with `Api.connect`.
    """
    if options.manifests is not None:
        if not options.manifests.is_dir():
            raise ConfigError(f"--manifests {options.manifests}: there is no such directory")
        yield Sources(None, options.manifests), None
        return
    connected = Api.connect(options.kubeconfig, options.context, user_agent="netloom-agent", patient=patient)
    async with await connected as api:
        yield cluster_sources(options, api), api


def cluster_sources(options: AgentOptions, api: Api) -> Sources:
    """What an agent reads of a cluster."""
    trims = {NETLOOM_NODES.kind: lambda node: _trimmed(node, options.node_name)}
    return Sources(api, trims=trims, timing=EVERY_NODE)


def _trimmed(node: NetloomNode, own: str) -> NetloomNode:
    """What an agent needs to know of another node. The rest, conditions above all, is more than half of the memory."""
    meta = node.metadata
    if meta.name == own:
        return node
    kept = ObjectMeta(
        name=meta.name,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        labels=_NOTHING,
        annotations=_NOTHING,
        owner_references=_OWNED if is_owned(node) else (),
    )
    spec, ipam = node.spec, node.spec.ipam
    # Nothing is sent to single addresses of others from here: the network knows the way.
    blocks = NodeIPAM(mode=ipam.mode, pod_cidrs=ipam.pod_cidrs, pools=ipam.pools, pool=_NOTHING)
    same = {
        "addresses": tuple(Address(sys.intern(each.type), each.ip) for each in spec.addresses),
        "encapsulations": _same(spec.encapsulations),
    }
    return NetloomNode(metadata=kept, spec=msgspec.structs.replace(spec, ipam=blocks, **same))


@functools.lru_cache(maxsize=64)
def _same(encapsulations: tuple[AcceptedEncapsulation, ...]) -> tuple[AcceptedEncapsulation, ...]:
    """Those of nearly all nodes are equal: held once, they are 1 MiB less of 5,000 nodes."""
    return encapsulations


_NOTHING: Final[dict[Any, Any]] = {}
"""For all whom it suits, as an empty dict of its own costs each of them 64 bytes."""

_OWNED = (OwnerReference(api_version="v1", kind="Node"),)
"""That an object stands for a Node; which one, its name says."""
