"""The MTU of pods: of those that come, and what is said of those that run with another."""

from collections.abc import Callable, Iterable

from netloom.api.words import some
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.wiring import DEFAULT_MTU
from netloom_reconcilers.features.node import MeshFacts
from netloom_reconcilers.node.addresses.service import NoAddress


class PodMtu:
    """Of a node. mesh: what the mesh tells, if this agent makes it."""

    def __init__(self, node: str, mesh: Callable[[], MeshFacts | None]) -> None:
        self._node = node
        self._mesh = mesh

    def now(self) -> int:
        """Of pods that come, in bytes; 0: not known. Those that run keep theirs: to change the end in the pod takes the
        right to enter its namespace, and a pair with two MTUs drops packets without a word. The kernel tells pods what
        fits."""
        mesh = self._mesh()
        return mesh.pod_mtu if mesh is not None else 0

    def known(self) -> int:
        """The same. Raises NoAddress where it is not known."""
        if why := self.unknown():
            raise NoAddress("MtuUnknown", why)
        return self.now()

    def unknown(self) -> str:
        """Why it is not known how large packets of pods may be; "" where it is, or there is nobody to ask."""
        if self._mesh() is None or self.now():
            return ""
        return (
            f"Node {self._node}: the MTU of pods is not known. It is that of the device by which other "
            "nodes reach this one, and none is found; or set spec.mtu of the NetloomNetwork."
        )

    def warning(self, endpoints: Iterable[Endpoint]) -> str:
        """That pods run with a larger one than fits by now: what they send in full is answered with the size that does,
        or, without an answer, lost. "" where none does. (A smaller one than others have does no harm.)"""
        now = self.now()
        sizes = {each: each.mtu or DEFAULT_MTU for each in endpoints}
        larger = sorted(
            (each.pod or f"container {each.container}", size) for each, size in sizes.items() if now and size > now
        )
        if not larger:
            return ""
        named = some([f"{who} {size}" for who, size in larger])
        return (
            f"Node {self._node}: pods that come get an MTU of {now}, and {named} have a larger one for life. "
            "What they send in full is answered with the size that fits. Delete them to have others made with that one."
        )
