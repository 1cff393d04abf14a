"""The mode lock: which IPAM mode is in force, and which ledgers may hold blocks.

`status.ipam` of the NetloomNetwork is the root of all allocation. It is written *before* a ledger is opened and
cleared *after* the last ledger was closed, always by compare-and-swap, so the API server orders it against a user's
change of `spec.ipam.mode`. `status.ipam.epoch` grows with every opening and clearing: each is a write that really
changes the object, and whoever works by an older version of it fails. An object that was deleted and made again has
lost the lock; it is rebuilt from what the ledgers and NetloomNodes say before anything is given.

In a mode that knows no ledgers (`Mode.from_outside`) it is agents that begin to give addresses: each says so at its
NetloomNode, and then reads the network, before it does. So the lock is cleared in three steps: `clearing` is written,
all NetloomNodes are read, and only if none is in use the lock goes, at the version of the first step.
docs/allocation.md has the proof.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from netloom.api.holdings import is_in_use
from netloom.api.ipam_modes import mode_named
from netloom.api.v1alpha1 import (
    IN_USE_FINALIZER,
    LEDGERS,
    NETLOOM_NODES,
    NETWORK_NAME,
    NETWORKS,
    ClusterPool,
    NetloomNetwork,
)
from netloom.cidr import Cidr, CidrError
from netloom.ipam.ledger import LedgerError, decode
from netloom.ipam.ledger_range import cover, ledger_range_from_name
from netloom.runtime.errors import Conflict, NotFound
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Incarnation, Member
from netloom_reconcilers.cluster.allocation.metrics import WRITES

log = structlog.get_logger(__name__)

ATTEMPTS = 5
RANGES = 16
"""CIDRs per family in `status.ipam.ledgerRanges`. There is no such bound on ledgers, but one that the API server wants
before it compares each cluster CIDR with each of them."""


class LockError(Exception):
    """Nothing can be given at the moment. `reason` is CamelCase for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModeLock(Member):
    """Writes `status.ipam` and the finalizer of the one NetloomNetwork."""

    def __init__(self, incarnation: Incarnation) -> None:
        super().__init__(incarnation)
        self.ambiguous: LockError | None = None
        """Why it cannot be rebuilt, where addresses of several modes are in use and none is in force."""
        self._writing = asyncio.Lock()

    @property
    def network(self) -> NetloomNetwork | None:
        """The newest version that is known."""
        return self._networks.get(NETWORK_NAME)

    async def open(self, mode: str, names: Collection[str], pool: ClusterPool | None = None) -> int:
        """Announces that ledgers are about to be opened for `mode`; returns the epoch. Raises LockError.

        `pool`: where the blocks were chosen from. If it is another by now, some of them may be of a CIDR that was
        removed, which the API server allows as long as nothing of it is announced.

        Every call is a new write, even if all names are listed already: a ledger that was closed meanwhile was closed
        by somebody who may be about to clear the lock, and this write makes that fail. Without names, of a mode that
        knows no ledgers, nothing is written if it is open already: agents see for themselves that it is.
        """
        async with self._writing:
            for _ in range(ATTEMPTS):
                network = self._usable()
                status = network.status.ipam
                epoch = status.epoch
                if status.mode == mode and not names and not status.clearing:
                    return epoch
                if status.mode not in ("", mode):
                    raise LockError("ModeLocked", f"the mode in force is {status.mode}, not {mode}")
                if pool is not None and network.spec.ipam.cluster_pool != pool:
                    raise LockError("NetworkChanged", "the cluster's CIDRs changed while blocks were chosen")
                if not status.mode:
                    recorded, known, listed = await self._evidence()
                    if (recorded or network.spec.ipam.mode) != mode:
                        message = f"nodes wait for mode {mode}, which is not the network's any more"
                        raise LockError("ModeChanged", message)
                    epoch = max(epoch, known)
                    names = {*names, *listed}
                if await self._write(network, mode, {*status.ledgers, *names}, epoch + 1):
                    return epoch + 1
            raise LockError("NetworkBusy", "the NetloomNetwork is being changed by others without a pause")

    async def rebuild(self) -> None:
        """Where the lock is clear although addresses are in use, sets it to the mode they were given in."""
        async with self._writing:
            for _ in range(ATTEMPTS):
                network = self._usable()
                status = network.status.ipam
                if status.mode:
                    return
                mode, epoch, listed = await self._evidence()
                if not mode:
                    return
                log.warning("mode lock lost, rebuilt from ledgers and nodes", mode=mode, ledgers=len(listed))
                if await self._write(network, mode, {*status.ledgers, *listed}, max(status.epoch, epoch) + 1):
                    return

    async def clear(self, close: Callable[[Cidr, int], Awaitable[bool]]) -> bool:
        """Clears the lock, if every ledger can be closed: `close(range, epoch)` says whether one was."""
        async with self._writing:
            network = await self._api.get(NETWORKS, NETWORK_NAME)
            self._networks.put(network)
            status = network.status.ipam
            if not status.mode:
                return True
            for ledger_range in _ranges(status.ledgers).values():
                if not await close(ledger_range, status.epoch):
                    return False
            if mode_named(status.mode).from_outside:
                cleared = await self._none_begins(network)
                if cleared is None:
                    return False
                network, status = cleared, cleared.status.ipam
            if not await self._write(network, "", set(), status.epoch + 1):
                return False
            log.info("no address is in use, mode lock cleared", mode=status.mode)
            cleared = self.network
            if cleared is not None and not cleared.status.ipam.mode:
                await self._set_finalizer(cleared, present=False)
        return True

    async def _none_begins(self, network: NetloomNetwork) -> NetloomNetwork | None:
        """Keeps agents from beginning to give addresses; the network as it is then. None: somebody may have begun, and
        all go on."""
        status = network.status.ipam
        clearing = await self._write(network, status.mode, status.ledgers, status.epoch + 1, clearing=True)
        if clearing is None:
            return None
        nodes = (await self._api.list(NETLOOM_NODES)).objects  # live: one that began did so before it read the network
        for node in nodes:
            self._netloom_nodes.put(node)
        if any(map(is_in_use, nodes)):
            await self._write(clearing, status.mode, status.ledgers, status.epoch + 2)
            return None
        return clearing

    async def tell(self, in_use: str, left_out: int, services: tuple[str, ...] | None) -> bool:
        """Writes who holds addresses, where the lock is not clear, how many Nodes are meant to hold none, and which of
        the addresses are Services' (None: not known); False where somebody else wrote first."""
        async with self._writing:
            network = self.network
            if network is None:
                return True
            status = network.status.ipam
            told: dict[str, object] = {}
            if in_use != status.in_use and (status.mode or not in_use):
                told["inUse"] = in_use or None
            if left_out != status.nodes_left_out:
                told["nodesLeftOut"] = left_out or None
            if services != status.service_cidrs:
                told["serviceCIDRs"] = services
            return not told or await self._write_status(network, told) is not None

    def _usable(self) -> NetloomNetwork:
        network = self.network
        if network is None:
            raise LockError("NoNetwork", "there is no NetloomNetwork named default")
        if network.metadata.deletion_timestamp and not network.status.ipam.mode:
            raise LockError("NetworkDeleted", "the NetloomNetwork is being deleted")
        return network

    async def _evidence(self) -> tuple[str, int, set[str]]:
        """The mode of what is in use or "", the highest epoch, and the open ledgers, read live. Raises LockError."""
        modes: dict[str, str] = {}
        epoch = 0
        listed: set[str] = set()
        for each in (await self._api.list(LEDGERS)).objects:
            try:
                content = decode(each)
            except LedgerError as error:
                raise LockError("LedgerUnreadable", f"{error}. See docs/allocation.md on how to recover it.") from error
            epoch = max(epoch, content.epoch)
            if content.mode:
                listed.add(content.name)
                modes.setdefault(content.mode, f"NetloomLedger {content.name}")
        for node in self._netloom_nodes.values():
            mode = node.spec.ipam.mode or node.status.ipam.mode
            if mode and is_in_use(node):
                modes.setdefault(mode, f"NetloomNode {node.metadata.name}")
        if len(modes) > 1:
            found = ", ".join(f"{mode} ({where})" for mode, where in sorted(modes.items()))
            message = f"addresses of several IPAM modes are in use: {found}. Remove all but one."
            self._tell_ambiguous(LockError("ModeAmbiguous", message))
            raise LockError("ModeAmbiguous", message)
        self._tell_ambiguous(None)
        return next(iter(modes), ""), epoch, listed

    def _tell_ambiguous(self, why: LockError | None) -> None:
        if str(why) != str(self.ambiguous):
            self.ambiguous = why
            self._publish(Changed.WAITING)

    async def _write(
        self, network: NetloomNetwork, mode: str, ledgers: Collection[str], epoch: int, *, clearing: bool = False
    ) -> NetloomNetwork | None:
        """As written; None where somebody else wrote first: the next try sees the newer version."""
        ranges = _ranges(ledgers)
        covering = [str(cidr) for cidr in cover(ranges.values(), RANGES)]
        ipam: dict[str, object] = {"mode": mode, "ledgers": sorted(ranges), "ledgerRanges": covering or None}
        ipam |= {"epoch": epoch, "clearing": clearing or None}
        if mode:
            return await self._write_status(network, ipam, finalizer=True)
        return await self._write_status(network, {**ipam, "inUse": None})

    async def _write_status(
        self, network: NetloomNetwork, ipam: dict[str, object], *, finalizer: bool = False
    ) -> NetloomNetwork | None:
        """Merges into status.ipam, after the finalizer was set; None where somebody else wrote first."""
        try:
            if finalizer:
                network = await self._set_finalizer(network, present=True)
            return await self._patch(network, {"status": {"ipam": ipam}}, "status")
        except (Conflict, NotFound):
            await self._refresh()
            return None

    async def _set_finalizer(self, network: NetloomNetwork, present: bool) -> NetloomNetwork:
        if (IN_USE_FINALIZER in network.metadata.finalizers) == present:
            return network
        others = [each for each in network.metadata.finalizers if each != IN_USE_FINALIZER]
        wanted = [*others, IN_USE_FINALIZER] if present else others
        return await self._patch(network, {"metadata": {"finalizers": wanted}})

    async def _patch(
        self, network: NetloomNetwork, change: dict[str, dict[str, object]], subresource: str = ""
    ) -> NetloomNetwork:
        """Merges into this very version; Conflict where it is not the newest any more."""
        meta = network.metadata
        fence = {"resourceVersion": meta.resource_version, "uid": meta.uid}
        WRITES.labels("NetloomNetwork", "patch").inc()
        patch = {**change, "metadata": {**change.get("metadata", {}), **fence}}
        network = await self._api.patch(NETWORKS, NETWORK_NAME, patch, subresource=subresource)
        self._networks.put(network)
        return network

    async def _refresh(self) -> None:
        try:
            self._networks.put(await self._api.get(NETWORKS, NETWORK_NAME))
        except NotFound:
            self._networks.remove(NETWORK_NAME)


def _ranges(ledgers: Collection[str]) -> dict[str, Cidr]:
    """By the names of these ledgers. A name that means no range is no ledger's, whoever wrote it there: nothing can be
    entered in it, so it keeps neither the lock nor a cluster CIDR, and is not written again."""
    found = {}
    for name in ledgers:
        try:
            found[name] = ledger_range_from_name(name)
        except CidrError as error:
            log.warning("the NetloomNetwork lists a ledger that cannot exist, passed over", error=str(error))
    return found
