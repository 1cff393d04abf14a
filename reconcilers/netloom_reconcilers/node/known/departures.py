"""Which of the peers whose NetloomNodes vanished have left, and which only lost their objects.

A NetloomNode goes when its Node does; it also goes with its CustomResourceDefinition, by a mistake of somebody, or
with the API server's memory. Only the Node tells the two apart, and 5,000 agents cannot each watch 5,000 Nodes. So they
ask, and only then:

- Nobody is asked while this node's own object, the NetloomNetwork or the watch is missing: all peers stay.
- After a moment, in which those may vanish as well, the API server is asked for up to `NAMES` of the Nodes. A Node that
  is not there, or was left out of Netloom by its label or the network's selector, has left. A peer goes on this proof
  alone, or when the world is whole: if every Node has its NetloomNode (a list of one Node tells how many there are, the
  network how many are meant to have none), whatever else was there has left. That is asked when more vanished than are
  asked for by name, or at least half of all; and then this node's own Node has to be there as well.
- What stays is asked for again ever more seldom. Its object, when it comes back, needs no answer.
- If the server's history went back, to before what was seen of a peer, its Node has a minute to appear again.

The same answers end the wait for what an agent found in its kernel and no object explains (`retained`): only a whole
world tells that nobody needs it any more. With manifests there is no server to ask: that a file is gone counts after
the same moment, or, if this node's own object or the network was missing then, not before a restart.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import structlog

from netloom.api.core import NODES
from netloom.api.events import ObjectReference
from netloom.api.participation import takes_part
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode
from netloom.api.words import some
from netloom.kernel.keeper.keeper import Keeper
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError, NotFound, Unavailable
from netloom.runtime.events import EventRecorder
from netloom.runtime.store import Store, version_of
from netloom.runtime.watch import ListWatch
from netloom_reconcilers.node.known.peers import Peers, is_owned, is_whole

log = structlog.get_logger(__name__)

NAMES = 3
"""Nodes asked for by name at a time. What 5,000 agents ask when a node leaves is one request each."""

_KEY = "departures"


class Delays(msgspec.Struct, frozen=True):
    """Delays in seconds. The defaults are for production; tests shorten them."""

    moment: float = 1.0
    """From a peer's vanishing to the question; in it the own object may vanish, too."""
    spread: float = 0.001
    """For each peer this much more at most, drawn anew each time: 5,000 agents ask within 5 s."""
    again: tuple[float, float] = (2.0, 60.0)
    """Back-off of further questions; the cap grows with the number of peers as well, to 250 s at 5,000."""
    unsure: float = 2.0
    """Until it is looked again whether anything may be asked at all."""
    went_back: float = 60.0
    """How long the Node of a peer that the server's history knows nothing of has to appear again."""
    lasting: float = 10.0
    """How long a peer must be held until the node's condition says so. (5,000 agents that write it are heard by 5,000.)
    Twice as long at most, drawn, and a hundredth for each peer."""


class Question(msgspec.Struct, frozen=True):
    """The Nodes to ask for by name, and whether to ask how many there are."""

    names: tuple[str, ...]
    count: bool


class NodesAnswer(msgspec.Struct, frozen=True):
    """Which of the Nodes live and take part, and how many Nodes there are (None: not asked)."""

    lives: Mapping[str, bool]
    nodes: int | None = None


def question(vanished: Collection[str], peers: int, *, own: str = "", retained: bool = False) -> Question:
    """What to ask about these, of `peers` in all; `own`: the Node of this node, where it must have one."""
    names = tuple(random.sample(sorted(vanished), min(NAMES, len(vanished))))
    many = len(vanished) > NAMES or 2 * len(vanished) >= peers > 0
    count = retained or len(vanished) > NAMES
    return Question((*names, own) if own and (many or retained) else names, count)


def departed(
    vanished: Collection[str], answer: NodesAnswer, complete: int, own: str = "", left_out: int = 0
) -> tuple[set[str], bool]:
    """Which of these left, and whether the world is whole: every Node but `left_out` has its NetloomNode, `complete` of
    which are for Nodes, and have pod CIDRs and an address."""
    if not answer.lives.get(own, True):
        return set(), False
    whole = answer.nodes is not None and answer.nodes - left_out <= complete
    whole = whole and not any(lives for name, lives in answer.lives.items() if name != own)
    if whole:
        return set(vanished), True
    return {name for name in vanished if answer.lives.get(name) is False}, False


class NodeLookup:
    """The questions, to an API server."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def ask(self, asked: Question, network: NetloomNetwork | None) -> NodesAnswer:
        """Raises ApiError: then nothing is known."""
        lives = {name: await self._lives(name, network) for name in asked.names}
        return NodesAnswer(lives, await self._api.count(NODES) if asked.count else None)

    async def _lives(self, name: str, network: NetloomNetwork | None) -> bool:
        try:
            node = await self._api.get(NODES, name)
        except NotFound as error:
            if error.details.get("name") != name or error.details.get("kind") != NODES.plural:
                raise Unavailable(404, "BadAnswer", f"what answers for Node {name} is no API server") from error
            return False
        return takes_part(node, network)


@dataclass(eq=False)
class Departures:
    """See the module. `on_change` is called after every look; `lookup`, `watch`: None with manifests."""

    networks: Store[NetloomNetwork]
    peers: Peers
    keepers: Sequence[Keeper[Any, Any]]
    lookup: NodeLookup | None = None
    watch: ListWatch[NetloomNode] | None = None
    events: EventRecorder | None = None
    delays: Delays = field(default_factory=Delays)
    clock: Callable[[], float] = time.monotonic
    on_change: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.controller = Controller(_KEY, self.reconcile)
        self.why = ""
        """Why vanished peers, or what is retained, stays; "" where nothing does, or that is not decided yet."""
        self._notice = Notice(self.peers.own, self.events, self.delays, self.clock)
        self._backoff = Backoff(*self.delays.again)
        self._since: dict[str, float] = {}
        self._fresh: set[str] = set()
        self._doubted: set[str] = set()
        self._ask_at = 0.0
        self.peers.subscribe(lambda name, old, new: self._changed(name))
        self.networks.subscribe(lambda name, old, new: self.controller.enqueue(_KEY))

    def look(self) -> None:
        """The kernel side may have retained something."""
        if self.retained and not self.why:
            self._soon()

    @property
    def retained(self) -> int:
        """Entries in the kernel that no known peer explains."""
        return max((keeper.retained for keeper in self.keepers), default=0)

    def errors(self, *, lasting: bool = False) -> list[str]:
        """What stays that no object asks for, and why, as sentences. `lasting`: only what has been so for a while, in
        words that do not change with every peer."""
        if lasting and not self._notice.lasts:
            return []
        found: list[str] = []
        if self.why and self.peers.held:
            shown = some(sorted(self.peers.held), NAMES)
            about, why = ("some", "the agent's /status says why.") if lasting else (shown, self.why)
            found.append(
                f"NetloomNodes vanished ({about}); it is not believed that their Nodes left, so they stay peers: {why}"
            )
        if self.why and (retained := self.retained):
            about = "some" if lasting else str(retained)
            found.append(
                f"{about} entries in the kernel are no known peer's; they stay until every Node has its NetloomNode."
            )
        return found

    def _changed(self, name: str) -> None:
        if name in self.peers.held:
            self._since[name] = self.clock()
            self._fresh.add(name)
            if len(self._since) - len(self._fresh) <= NAMES:
                self._soon()
        elif name in self._since:
            del self._since[name]
            self._fresh.discard(name)
            self._doubted.discard(name)
            self.controller.enqueue(_KEY)
        elif name == self.peers.own or name in self.peers.completed or self._notice.since is not None:
            self.controller.enqueue(_KEY)

    def _soon(self) -> None:
        """Ask in a moment; what is to be asked sooner still is not put off."""
        now = self.clock()
        at = now + self._moment()
        self._ask_at = at if self._ask_at <= now else min(self._ask_at, at)
        self.controller.enqueue_after(_KEY, self._ask_at - now)

    async def reconcile(self, key: str = _KEY) -> float | None:
        """Let go what is known to have left. Seconds until the next look; None if nothing waits for one."""
        again = await self._reconcile()
        if not self.peers.held and not self.retained:
            self.why, again = "", None
            self._backoff.reset()
        later = self._notice.note(
            [*self.peers.problems(), *self.errors()],
            len(self.peers),
            silent=self.peers.nodes.get(self.peers.own) is None,
        )
        self.on_change()
        return min(filter(None, (again, later)), default=None)

    async def _reconcile(self) -> float | None:
        now = self.clock()
        if not self.peers.held and not self.retained:
            return None
        if self._is_unsure(now):
            return self.delays.unsure
        if now < self._ask_at:
            return self._ask_at - now
        vanished = [name for name in self.peers.held if name not in self._doubted and not self._too_old(name, now)]
        if not vanished and not self.retained:
            self.why = "they went with this node's own object or the network, or the API server's history went back."
            return self.delays.unsure
        try:
            gone, whole = await self._find_out(vanished)
        except ApiError as error:
            self.why = f"the API server cannot be asked for their Nodes: {error}."
            return self._wait(max(self._next(), error.retry_after or 0.0))
        if self._is_unsure(self.clock()):
            return self.delays.unsure  # it went while we asked
        for name in gone:
            if self._since.get(name, now) <= now:  # else it was back meanwhile
                self.peers.forget(name)
        if whole and self.retained:
            for keeper in self.keepers:
                await keeper.prune()
        if gone:
            log.info("nodes left", nodes=len(gone), such_as=sorted(gone)[:NAMES])
            self._backoff.reset()
            return self._wait(2 * self._moment())
        self._fresh.clear()
        return self._wait(self._next())

    def _moment(self) -> float:
        return self.delays.moment + random.uniform(0, self.delays.spread * len(self.peers))

    def _wait(self, seconds: float) -> float:
        self._ask_at = self.clock() + seconds
        return seconds

    def _next(self) -> float:
        self._backoff.cap = max(self.delays.again[1], len(self.peers) / 20)
        return self._backoff.next()

    def _is_unsure(self, now: float) -> bool:
        """Whether nothing that vanished is believed, whatever the answers; `why` says why."""
        if self.networks.get(NETWORK_NAME) is None:
            self.why = f"NetloomNetwork {NETWORK_NAME} is not there, either."
        elif self.peers.nodes.get(self.peers.own) is None:
            self.why = f"NetloomNode {self.peers.own}, this node's own, is not there, either."
        elif self.watch is not None and not (self.watch.following and self.watch.position):
            self.why = "the NetloomNodes of the API server cannot be followed."
        else:
            return False
        self._ask_at = max(self._ask_at, now + self._moment())
        if self.lookup is None:
            self._doubted.update(self.peers.held)
        return True

    def _too_old(self, name: str, now: float) -> bool:
        """Whether the server does not know of the time in which the object was seen, and may learn of it."""
        if self.watch is None or now >= self._since[name] + self.delays.went_back:
            return False
        seen = version_of(self.peers.held[name].metadata.resource_version)
        return version_of(self.watch.position) < seen

    async def _find_out(self, vanished: Collection[str]) -> tuple[set[str], bool]:
        """Which of these left, and whether what is retained may go. Raises ApiError."""
        if self.lookup is None:
            return set(vanished), True
        mine = self.peers.nodes.get(self.peers.own)
        own = self.peers.own if mine is not None and is_owned(mine) else ""
        fresh = [name for name in vanished if name in self._fresh]
        asked = question(fresh or vanished, len(self.peers), own=own, retained=bool(self.retained))
        network = self.networks.get(NETWORK_NAME)
        left_out = network.status.ipam.nodes_left_out if network is not None else 0
        answer = await self.lookup.ask(asked, network)
        complete = sum(1 for node in self.peers.nodes.values() if is_owned(node) and is_whole(node))
        living = [name for name, lives in answer.lives.items() if lives and name != own]
        if not answer.lives.get(own, True):
            self.why = f"Node {own}, this node's own, is not there, either, or is left out."
        elif living:
            self.why = f"Node {living[0]} lives."
        else:
            without = f", {left_out} of them left out" if left_out else ""
            self.why = f"there are {answer.nodes} Nodes{without}, and {complete} have a NetloomNode that is whole."
        return departed(vanished, answer, complete, own, left_out)


@dataclass(eq=False)
class Notice:
    """Since when something stays, and who was told."""

    own: str
    events: EventRecorder | None
    delays: Delays
    clock: Callable[[], float]
    since: float | None = None
    _lasting: float = 0.0
    _told: bool = False

    @property
    def lasts(self) -> bool:
        """Whether it has been so for a while."""
        return self.since is not None and self.clock() >= self.since + self._lasting

    def note(self, errors: list[str], peers: int, *, silent: bool) -> float | None:
        """Says where it begins or ends; as an Event where it lasts and the node has no object for a condition
        (`silent`). Seconds until it will have lasted for long, if that is to come."""
        if not errors:
            if self.since is not None:
                log.info("all peers are as their objects say again")
                self._event("Normal", "PeersKnown", "all peers are as their objects say again.")
            self.since, self._told = None, False
            return None
        if self.since is None:
            self.since = self.clock()
            self._lasting = self.delays.lasting * random.uniform(1, 2) + 0.01 * peers
            log.warning("peers stay that no object asks for", errors=errors)
        if not self.lasts:
            return self.since + self._lasting - self.clock()
        if silent and not self._told:
            self._told = True
            self._event("Warning", "PeersStay", " ".join(errors))
        return None

    def _event(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        if self.events is not None and self._told:
            node = ObjectReference(api_version="v1", kind="Node", name=self.own, uid=self.own)  # as the kubelet does
            self.events.event(node, type_, reason, message)
