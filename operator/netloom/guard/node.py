"""What is refused of writes to NetloomNodes: the addresses of a node are the operator's and its own agent's."""

from collections.abc import Iterable, Iterator

from netloom.api.holdings import block_texts
from netloom.api.pool_choice import family_of
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNode, NodeIPAM
from netloom.api.words import some
from netloom.cidr import Cidr, Version
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decode import Change
from netloom.guard.holdings import cidrs_of
from netloom.guard.verdict import Ruling, told

GARBAGE_COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
"""Deletes a NetloomNode after its Node, which owns it."""

NODE_NAME = "authentication.kubernetes.io/node-name"
"""Key of userInfo.extra: the node of the pod that a service account's token is bound to."""


def decide_node(change: Change[NetloomNode], live: ClusterState) -> Ruling:
    """The verdict on one write of a NetloomNode."""
    if change.user in live.users.operators:
        return Ruling()
    if change.new is None:
        return _deleted(change, live)
    before = change.old.spec.ipam if change.old else NodeIPAM()
    if change.new.spec.ipam == before:
        return Ruling()
    if _own_agent(change, live):
        return _by_its_agent(change, before, live)
    who = change.user or "somebody without a name"
    if change.old:
        holds = f", which holds {_summary(before)}" if _summary(before) else ""
        message = (
            f"only the operator and this node's own agent keep the account of its addresses, and {who} is neither: "
            f"another entry takes addresses from pods of the node{holds}, or gives the same to two nodes."
        )
        way_out = "Leave spec.ipam as it is; to give a node other addresses, remove the Node and let it join again."
    else:
        message = (
            f"only the operator gives a node its addresses, and {who} is not it: they may be in use on another node."
        )
        way_out = "Create it without spec.ipam, or leave it to the operator, which makes one for every Node."
    way_out += " A controller that gives addresses itself has to be named to the guard with --operator-user."
    value = _summary(change.new.spec.ipam)
    return Ruling(refusals=(Problem(change.name, "spec.ipam", value, "NotTheOwner", message, way_out),))


def _by_its_agent(change: Change[NetloomNode], before: NodeIPAM, live: ClusterState) -> Ruling:
    """It says what of pools its node needs, takes out what that does not need any more, and enters again what pods use
    and the object lost, as after a restore."""
    assert change.new is not None
    ipam = change.new.spec.ipam
    fields: dict[str, tuple[object, object]] = {
        "mode": (ipam.mode, before.mode),
        "podCIDRs": (ipam.pod_cidrs, before.pod_cidrs),
        "pool": (ipam.pool, before.pool),
    }
    changed = [name for name, (new, old) in fields.items() if new != old]
    if change.old is None:
        return Ruling()
    if changed:
        message = "a node's agent may change spec.ipam.pools of it, and nothing else that it holds."
        way_out = "Leave it to the operator."
        return Ruling(refusals=(Problem(change.name, f"spec.ipam.{changed[0]}", "", "NotTheOwner", message, way_out),))
    entered = tuple(_entered(ipam, before))
    refusals = told(_not_its_own(change, entered, live))
    # Who holds what has to be known to say yes; a no stands on what is known.
    unseen = () if refusals or not entered else live.missing("NetloomNode", "NetloomIPPool")
    return Ruling(refusals=refusals, unseen=unseen)


def _entered(ipam: NodeIPAM, before: NodeIPAM) -> Iterator[tuple[str, Cidr]]:
    """The blocks, with the pools they are said to be of, that an object holds and did not hold before."""
    had = {(each.pool, text) for each in before.pools.allocated for text in each.cidrs}
    for each in ipam.pools.allocated:
        for text in each.cidrs:
            if (each.pool, text) not in had and (cidr := Cidr.masked(text)):
                yield each.pool, cidr


def _not_its_own(
    change: Change[NetloomNode], entered: Iterable[tuple[str, Cidr]], live: ClusterState
) -> Iterator[Problem]:
    """Why a node's agent cannot enter blocks again."""
    blocks: dict[tuple[str, Version], _Blocks] = {}
    for pool, cidr in entered:
        of = pool, cidr.version
        if of not in blocks:
            blocks[of] = _Blocks(live.pools.get(pool), cidr.version)
        holders = live.held.overlapping(cidr, but=change.key)
        if holders.count:
            why = f"{holders.blocks()}, and a node's agent may only enter again what no other node holds"
        elif cidr not in blocks[of]:
            why = f"NetloomIPPool {pool} has no such block, and a node's agent may only enter again what the pool cuts"
        else:
            continue
        message = f"{why}: packets to pods there would go to the wrong node, or to none."
        way_out = (
            f"Drain Node {change.key} if pods of it have addresses there, and they come back with others; what else a "
            "node needs, its agent asks for in spec.ipam.pools.requested, and the operator gives."
        )
        yield Problem(change.name, "spec.ipam.pools.allocated", str(cidr), "NotTheOwner", message, way_out)


class _Blocks:
    """What lies in a pool's CIDRs of one family, and is no more than one of its blocks."""

    def __init__(self, pool: NetloomIPPool | None, version: Version) -> None:
        family = family_of(pool, version) if pool else None
        self._size = family.mask_size if family else 0
        self._cidrs = FrozenIntervalSet(cidrs_of(family.cidrs, version) if family else ())

    def __contains__(self, cidr: Cidr) -> bool:
        return cidr.length >= self._size and self._cidrs.covers(cidr)


def _deleted(change: Change[NetloomNode], live: ClusterState) -> Ruling:
    if change.user == GARBAGE_COLLECTOR:
        return Ruling()
    name = change.key
    if name in live.nodes:
        ipam = change.old.spec.ipam if change.old else NodeIPAM()
        holds = f" and it holds {_summary(ipam)}" if _summary(ipam) else ""
        message = (
            f"the Node of this name lives{holds}: without this object the other nodes lose their way to its pods, and "
            "its addresses may be given to another node."
        )
        way_out = f"Remove the Node (kubectl delete node {name}); this object goes with it."
        return Ruling(refusals=(Problem(change.name, "metadata.name", name, "NodeLives", message, way_out),))
    return Ruling(unseen=live.missing("Node"))


def _own_agent(change: Change[NetloomNode], live: ClusterState) -> bool:
    """Whether the agent of this very node asks. One whose token is bound to no node cannot be told from another's."""
    bound = change.request.user_info.extra.get(NODE_NAME, ())
    return change.user in live.users.agents and change.key in bound


def _summary(ipam: NodeIPAM) -> str:
    cidrs = block_texts(ipam)
    if cidrs:
        return some(cidrs, 2)
    return f"{len(ipam.pool)} address{'' if len(ipam.pool) == 1 else 'es'}" if ipam.pool else ""
