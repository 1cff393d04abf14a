"""This node's agent lives: it renews a Lease, as a kubelet does. See `netloom_reconcilers.signs_of_life`.

- Each renewal is one compare-and-swap, and most agents never read the Lease again. So one that was written meanwhile is
  noticed: by `acquireTime`, which every process sets for itself. One in a row is a predecessor's last, two are another
  agent that believes to be this node's.
- A process that does no work gives no sign (`idle` says why), nor does one whose event loop hangs.
- The Lease belongs to the NetloomNode and goes with it. Without one there is none: nobody asks for that node, and
  nothing would take the Lease away.
- One that cannot be written harms nothing but this: it is said, and tried again ever more seldom.
"""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from netloom.api.cluster_facts import AGENT_LABEL, agent_lease
from netloom.api.coordination import LEASES, Lease, LeaseSpec
from netloom.api.meta import ObjectMeta, OwnerReference
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.clock import boottime
from netloom.runtime.errors import ApiError, Conflict, Forbidden, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.signs_of_life import GRACE_SECONDS, RENEWALS, grace

log = structlog.get_logger(__name__)

JITTER = 0.1
"""Part of the interval by which a renewal may be early or late, so that thousands do not fall into step."""
TWIN_AFTER = 2
"""Renewals that another process forestalled, with no `GONE_AFTER` in a row between them that none did."""
GONE_AFTER = RENEWALS
"""Renewals in a row by which the other process has ended: it was silent for as long as any agent may be. Fewer would
take one that is held up for a moment for gone, and the two would contradict each other meanwhile."""


@dataclass(eq=False)
class SignOfLife:
    """`run` is the component. `least`: seconds of silence that are allowed in a small cluster. `idle`: why this process
    does no work, "" while it does. `on_change` is called when `fault`, `twin` or `given` may be different."""

    api: Api
    node_name: str
    nodes: Store[NetloomNode]
    namespace: str
    least: float = GRACE_SECONDS
    idle: Callable[[], str] = lambda: ""
    on_change: Callable[[], None] = lambda: None
    clock: Callable[[], float] = boottime

    def __post_init__(self) -> None:
        self.fault = ""
        """Why the Lease is not renewed, as a sentence; "" if it is, or if none is wanted yet."""
        self._name = agent_lease(self.node_name)
        self._lease: Lease | None = None
        self._acquired = ""
        self._given_until = -math.inf
        self._spells = 0
        self._forestalled = 0
        self._clean = 0
        self._backoff = Backoff(1.0, self.least / RENEWALS)

    @property
    def given(self) -> bool:
        """Whether the cluster can know that this agent lives."""
        return self.clock() < self._given_until

    @property
    def spell(self) -> int:
        """Number of the unbroken row of signs that it gives now; 0 while it gives none."""
        return self._spells if self.given else 0

    @property
    def silence(self) -> str:
        """Why it cannot, as a sentence; "" while it can, were the last renewal a failure."""
        return "" if self.given else self.fault

    @property
    def twin(self) -> str:
        """That another agent renews the same Lease, as a sentence that both of them say; "" if none does."""
        if self._forestalled < TWIN_AFTER:
            return ""
        return (
            f"Two agents run as node {self.node_name}: both renew Lease {self.namespace}/{self._name}. "
            "End one of them, or give each machine a --node-name (or host name) of its own."
        )

    async def run(self) -> None:
        """Renews for ever; cancellation is the way to stop it, and leaves the Lease to run out."""
        await self.nodes.wait_synced()
        wait = random.uniform(0, self._grace / RENEWALS * JITTER)
        while True:
            await asyncio.sleep(wait)
            wait = await self._turn()

    async def _turn(self) -> float:
        """One renewal, if one is due; the seconds until the next."""
        interval = self._grace / RENEWALS
        before = (self.given, self.twin, self.fault)
        wait = interval * random.uniform(1 - JITTER, 1 + JITTER)
        owner = self.nodes.get(self.node_name)
        idle = self.idle()
        fault = f"no sign of life is given, as this agent does no work: {idle}" if idle else ""
        if not fault and owner is not None:
            try:
                await self._renew(owner)
                self._backoff.reset()
            except ApiError as error:
                fault = self._sentence(error)
                self._backoff.cap = interval
                wait = max(self._backoff.next(), error.retry_after or 0.0)
        if fault != self.fault:
            self.fault = fault
            say, event = (log.warning, "no sign of life is given") if fault else (log.info, "signs of life are given")
            say(event, lease=f"{self.namespace}/{self._name}", why=fault)
        if (self.given, self.twin, self.fault) != before:
            if self.twin and not before[1]:
                log.error("another agent gives the signs of life of this node", why=self.twin)
            self.on_change()
        return wait

    @property
    def _grace(self) -> float:
        return grace(len(self.nodes), self.least)

    async def _renew(self, owner: NetloomNode) -> None:
        """Raises ApiError."""
        sent, seconds = self.clock(), self._grace
        lease, self._lease = self._lease, None  # after a write that was not answered, it has to be looked at
        try:
            self._lease = await self._write(lease or await self._look(), owner, seconds)
        except (Conflict, NotFound):
            if lease is None:
                raise  # it was looked at just now
            self._lease = await self._write(await self._look(), owner, seconds)
        else:
            if lease is not None:
                self._clean += 1
                if self._clean >= GONE_AFTER:
                    self._forestalled = 0
        self._spells += not self.given
        self._given_until = sent + seconds

    async def _look(self) -> Lease | None:
        """The Lease as it is; None where there is none. Notes whether another process has it."""
        try:
            found = await self.api.get(LEASES, self._name, self.namespace)
        except NotFound:
            return None
        if self._acquired and found.spec.acquire_time != self._acquired:
            self._forestalled += 1
            self._clean = 0
        return found

    async def _write(self, over: Lease | None, owner: NetloomNode, seconds: float) -> Lease:
        now = self.api.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        held = over.spec if over else LeaseSpec()
        self._acquired = self._acquired or now
        spec = msgspec.structs.replace(
            held,
            holder_identity=self.node_name,
            lease_duration_seconds=math.ceil(seconds),
            acquire_time=self._acquired,
            renew_time=now,
            lease_transitions=held.lease_transitions + (over is not None and held.acquire_time != self._acquired),
        )
        meta = ObjectMeta(
            name=self._name,
            namespace=self.namespace,
            resource_version=over.metadata.resource_version if over else "",
            labels={AGENT_LABEL: "true"},
            owner_references=(_owner(owner),),
        )
        lease = Lease(metadata=meta, spec=spec)
        return await (self.api.replace(LEASES, lease) if over else self.api.create(LEASES, lease))

    def _sentence(self, error: ApiError) -> str:
        lease = f"Lease {self.namespace}/{self._name}"
        if isinstance(error, Forbidden):
            way_out = (
                "If this agent may not write it, grant that (docs/examples/rbac.yaml), or name another namespace by "
                "--lease-namespace, here and at the operator."
            )
        elif isinstance(error, NotFound) and error.details.get("kind") == "namespaces":
            way_out = f"Create the namespace {self.namespace}, or name another by --lease-namespace."
        else:
            way_out = "It is tried again."
        return f"{lease}: cannot be renewed: {error}. {way_out}"


def _owner(node: NetloomNode) -> OwnerReference:
    meta = node.metadata
    return OwnerReference(api_version=NETLOOM_NODES.api_version, kind=NETLOOM_NODES.kind, name=meta.name, uid=meta.uid)
