"""The Nodes that are left out of Netloom: which they are, and what keeps one from being let go.

A Node may be left out while pods live on it: by a label on the wrong machine, by a selector with a typo that chooses
none. So nothing is taken away for that alone. A NetloomNode stays, and its CIDRs with it, as long as a pod of that
Node has an address of them, and the network says so; when the last is gone (a drained node), the NetloomNode goes, and
its blocks come back. A virtual kubelet's pods have other addresses, so it is let go at once.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from netloom.api.core import NODES, PODS, Node, Pod
from netloom.api.meta import LabelSelector
from netloom.api.participation import takes_part, why_not
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NETWORKS, NetloomNetwork
from netloom.api.words import some
from netloom.cidr import Cidr, single
from netloom.runtime.errors import Forbidden, NotFound
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Incarnation, Member, NodesAffected

ASKED_AT_A_TIME = 4
"""Nodes whose pods are listed. A list of one node's pods is about 1 MB."""
RECHECK_SECONDS = 30.0
"""When to look again whether pods live on one Node; half a second more for each other one that is looked at."""
_SHOWN = 3


class LeftOut(Member):
    """Follows labels and selector. `names`: the Nodes that are left out."""

    def __init__(self, incarnation: Incarnation) -> None:
        super().__init__(incarnation)
        self.names: set[str] = set()
        self.staying: dict[str, str] = {}
        """Those that keep their CIDRs, and why, as the end of a sentence."""
        self._selector = LabelSelector()
        self._asking = asyncio.Semaphore(ASKED_AT_A_TIME)

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [self._networks.subscribe(self._network_changed), self._nodes.subscribe(self._node_changed)]

    def without_object(self) -> int:
        """How many have no NetloomNode."""
        return sum(1 for name in self.names if name not in self._netloom_nodes)

    async def confirmed(self, name: str) -> Node | None:
        """The Node, if the API server says that it is left out now; the caches, which may lag, are told as well."""
        network: NetloomNetwork | None = None
        with suppress(NotFound):
            network = await self._api.get(NETWORKS, NETWORK_NAME)
            self._networks.put(network)
        try:
            node = await self._api.get(NODES, name)
        except NotFound:
            return None
        self._nodes.put(node)
        return None if takes_part(node, network) else node

    async def held_by_pods(self, node: Node, cidrs: Collection[Cidr]) -> bool:
        """Whether pods of the Node have addresses of these, or may get some; said by the network if so."""
        name = node.metadata.name
        try:
            async with self._asking:
                pods = (await self._api.list(PODS, field_selector=f"spec.nodeName={name}")).objects
            why = _living(pods, cidrs)
        except Forbidden as error:
            why = f"whether its pods have addresses of them cannot be read: {error}"
        if not why:
            self.let_go(name)
            return False
        said = f"{why_not(node)}, and {why}"
        if self.staying.get(name) != said:
            self.staying[name] = said
            self._publish(Changed.LEFT_OUT)
        return True

    def recheck(self) -> float:
        """When to look again at one that stays."""
        return RECHECK_SECONDS + 0.5 * len(self.staying)

    def let_go(self, name: str) -> None:
        """It stays no more: it has nothing, or takes part."""
        if self.staying.pop(name, None) is not None:
            self._publish(Changed.LEFT_OUT)

    def problems(self, about: str) -> list[Problem]:
        """What the network shall say of those that stay, and of a selector that chooses nobody."""
        found = []
        if self.staying:
            names = sorted(self.staying)
            keep = "1 Node is left out of Netloom and keeps its"
            if names[1:]:
                keep = f"{len(names)} Nodes are left out of Netloom and keep their"
            message = f"{keep} pod CIDRs ({some(names, _SHOWN)}). Of {names[0]}: {self.staying[names[0]]}."
            way_out = (
                "Drain such a node, and keep off it the pods that a drain leaves there (DaemonSets'), and its CIDR "
                "comes back; or remove what leaves it out, and it takes part again."
            )
            found.append(Problem(about, "", "", "LeftOutWithPods", message, way_out, "warning"))
        if self.names and len(self.names) == len(self._nodes) and self._selector != LabelSelector():
            message = f"it chooses none of the {len(self.names)} Nodes."
            way_out = "Compare it with the Nodes' labels (kubectl get nodes --show-labels)."
            found.append(Problem(about, "spec.nodeSelector", "", "NoNodeChosen", message, way_out, "warning"))
        return found

    def _network_changed(self, key: str, old: NetloomNetwork | None, new: NetloomNetwork | None) -> None:
        selector = new.spec.node_selector if new is not None else LabelSelector()
        if key != NETWORK_NAME or selector == self._selector:
            return
        self._selector = selector
        self._note(self._nodes.items())

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        if new is None:
            self.let_go(key)
        if key in self.names or (new is not None and not takes_part(new, self._networks.get(NETWORK_NAME))):
            self._note([(key, new)])

    def _note(self, nodes: Collection[tuple[str, Node | None]]) -> None:
        network = self._networks.get(NETWORK_NAME)
        out = {name for name, node in nodes if node is not None and not takes_part(node, network)}
        changed = [name for name, _ in nodes if (name in out) != (name in self.names)]
        if changed:
            self.names ^= set(changed)
            self._publish(NodesAffected(changed))
            self._publish(Changed.LEFT_OUT)


def _living(pods: Collection[Pod], cidrs: Collection[Cidr]) -> str:
    """Which pods have addresses of these CIDRs, or will get some; "" if none does."""
    names = []
    for pod in pods:
        if not pod.is_on_network:
            continue
        addresses = [address for each in pod.status.pod_ips if (address := Cidr.masked(single(each.ip))) is not None]
        if not addresses or any(cidr.contains(address) for address in addresses for cidr in cidrs):
            names.append(pod.name)
    if not names:
        return ""
    count = "a pod lives" if len(names) == 1 else f"{len(names)} pods live"
    return f"{count} in {some(sorted(cidrs), _SHOWN)} ({some(sorted(names), _SHOWN)})"
