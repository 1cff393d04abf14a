"""A second part beside the mesh: host routes to pods, with the mesh's protocol number and a class of their own.

It asks and tells the kernel by `ip`, so it shows the contract of a part and nothing of netlink.
"""

import subprocess
import time
from collections.abc import Iterable

from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.report import KeeperReport
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.keeper.table import Table
from netloom.kernel.netlink.wire import RTM_DELROUTE, RTM_NEWROUTE
from netloom.kernel.ownership import ROUTE_PROTOCOL, Ownership
from tests.kernel.netns import Namespace

METRIC = 1 << 16

Pods = dict[str, str]
"""Device by the pod's address: the desired state."""


class PodRoutes(Part[Pods]):
    """fail: what reading ends in. refusals: writes that are refused yet. stirs: how often it is due again after it has
    been updated. at: when it wants to be asked again."""

    owns = Ownership(links=("netloom_p*",), routes=range(METRIC, 2 * METRIC))
    state = ("dump", "routes to pods")
    groups = ("ipv4-route",)
    kinds = frozenset((RTM_NEWROUTE, RTM_DELROUTE))
    due = True

    def __init__(self, node: Namespace, state: Item = state) -> None:
        self.state = state
        self.refusals = self.stirs = 0
        self.at = float("inf")
        self.routes: Table[str, str] = Table()
        self.fail: Exception | None = None
        self.reads = 0
        self.commands: list[str] = []
        self._node = node
        self._applied = False
        self._changed = False
        self._found: list[Item] = []

    def want(self, desired: Pods, retries: Retries) -> None:
        for gone in self.routes.desired.keys() - desired:
            self.routes.unwant(gone)
        self.routes.want_all(desired)
        self._applied = True

    def pending(self) -> Iterable[Item]:
        return [("pod", key) for key in self.routes.pending]

    def doubt(self) -> None:
        self.due = True

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        self.due = True

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        found, self._found = self._found, []
        return [(item, True) for item in found]

    async def read(self, worker: Worker) -> bool:
        self.reads += 1
        if self.fail is not None:
            raise self.fail
        if not self.due:
            return False
        self.due, known = False, set(self.routes.pending)
        self.routes.load(await worker.call(lambda _commands: self._read()))
        if self._applied:
            self._found = [("pod", key) for key in self.routes.pending - known]
        return True

    def _read(self) -> dict[str, str]:
        return {
            route["dst"]: route["dev"]
            for route in self._node.ip_json("route show table main")
            if self.owns.route(int(route["protocol"]) if route["protocol"].isdigit() else 0, route.get("metric", 0))
        }

    def later(self) -> float:
        return self.at

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        outcome = Outcome()
        if self.stirs:
            self.stirs -= 1
            self.due = True
        if self.at <= time.monotonic():
            self.at = float("inf")
        for key, name, before in self.routes.updates():
            self._write(outcome, f"route {'replace' if before else 'add'} {key} dev {name}", key, attempt)
        return outcome

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        outcome = Outcome()
        for key, _, _ in self.routes.deletions():
            self._write(outcome, f"route delete {key}", key, attempt)
        return outcome

    def _write(self, outcome: Outcome, command: str, key: str, attempt: Attempt) -> None:
        item = ("pod", key)
        if item in attempt.delayed:
            return
        if self.refusals:
            self.refusals -= 1
            outcome.refused.append(RefusedEntry(item, "injected"))
            return
        self.commands.append(command)
        whole = f"ip -n {self._node.name} {command} proto {ROUTE_PROTOCOL} metric {METRIC}"
        done = subprocess.run(whole.split(), check=False, capture_output=True, text=True)
        if done.returncode:
            outcome.refused.append(RefusedEntry(item, done.stderr.strip()))
            return
        if "delete" in command:
            self.routes.gone(key)
        else:
            self.routes.saw(key, self.routes.desired[key])
        outcome.written.append(("pod", [key]))


class PodKeeper(Keeper[Pods, KeeperReport]):
    """A keeper of pods' routes, and of parts that stand on them."""

    def __init__(self, *parts: Part[Pods], resync_seconds: float | None = None) -> None:
        super().__init__(parts, resync_seconds=resync_seconds)

    @property
    def report(self) -> KeeperReport:
        return KeeperReport(**self._basics())
