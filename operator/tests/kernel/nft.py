"""Masquerading in tests: desired states, `nft` as the reader that knows nothing of the code under test."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from netloom.cidr import Cidr
from netloom.kernel.masquerade.keeper import MasqueradeKeeper
from netloom.kernel.masquerade.sets import MasqueradeRules, Masquerading
from netloom.kernel.netlink.nftables import NAMES
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import KernelRefusal, RefusedError, Visit
from tests.kernel.faults import FOR_EVER
from tests.kernel.netns import Namespace


def prefixes(*cidrs: str) -> tuple[Cidr, ...]:
    return tuple(map(Cidr.parse, cidrs))


def rules(*excluded: str, pods: Sequence[str] = ("10.1.0.0/24", "fd00:1::/64"), **switches: bool) -> MasqueradeRules:
    """Node 1's rules."""
    return MasqueradeRules(pods=prefixes(*pods), excluded=prefixes(*excluded), **switches)


def masquerading(*excluded: str, peers: Sequence[int] = (2, 3), **switches: bool) -> Masquerading:
    """What node 1 masquerades in a cluster with these other nodes."""
    desired = Masquerading(rules(*excluded, **switches))
    for number in peers:
        desired.set_known(f"node-{number}", prefixes(f"10.{number}.0.0/24", f"fd00:{number}::/64"))
    return desired


def nft(node: Namespace, script: str) -> None:
    """`nft -f`, in the node's namespace."""
    node.exec("nft -f -", given=script)


def ruleset(node: Namespace) -> str:
    """All tables."""
    return node.exec("nft list ruleset")


def ours(node: Namespace) -> str:
    """Our table, with spaces for tabs; empty if there is none."""
    return node.exec("nft list table inet netloom", check=False).replace("\t", "    ")


class Masquerades:
    """Opens them, and closes them at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def open(self, **options: object) -> MasqueradeKeeper:
        """Without resyncs: what is repaired is repaired by events."""
        made = MasqueradeKeeper(**{"resync_seconds": None, **options})  # type: ignore[arg-type]
        await made.open()
        self._stack.push_async_callback(made.close)
        return made


@asynccontextmanager
async def opener() -> AsyncIterator[Masquerades]:
    async with AsyncExitStack() as stack:
        yield Masquerades(stack)


@pytest.fixture
async def masquerades() -> AsyncIterator[Masquerades]:
    async with opener() as made:
        yield made


class FaultyNftables(NftablesSocket):
    """Refuses requests of a type, and with them their transaction; interrupts or fails dumps."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0
        self.before_batch: Callable[[], None] = lambda: None
        self._refuse: dict[str, tuple[int, int]] = {}
        self._interrupt = 0
        self._fail_dumps = (0, 0)
        self._lose = 0
        self.dumps = 0

    def refuse(self, kind: str, code: int, times: int = FOR_EVER) -> None:
        """The next transactions with requests of this type are refused for these."""
        self._refuse[kind] = (code, times)

    def interrupt_dumps(self, times: int) -> None:
        """The next dumps say that the state changed meanwhile."""
        self._interrupt = times

    def fail_dumps(self, code: int, times: int = FOR_EVER) -> None:
        """The next dumps end in this errno."""
        self._fail_dumps = (code, times)

    def lose_answers(self, times: int, *, after_doing: bool) -> None:
        """The answers to the next transactions are lost."""
        self._lose, self._lose_after_doing = times, after_doing

    def heal(self) -> None:
        """No more faults."""
        self._refuse.clear()
        self._interrupt = self._lose = 0
        self._fail_dumps = (0, 0)

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        self.before_batch()
        if self._lose:
            self._lose -= 1
            if self._lose_after_doing:
                super().execute(messages)
            raise TimeoutError("injected: the answer is lost")
        refusals = {}
        for i, message in enumerate(messages):
            code, times = self._refuse.get(NAMES[message[4]], (0, 0))
            if times:
                refusals[i] = KernelRefusal(code, "injected")
        if not refusals:
            return super().execute(messages)
        self.refused += 1
        for kind in {NAMES[messages[i][4]] for i in refusals}:
            code, times = self._refuse[kind]
            self._refuse[kind] = (code, times - 1)
        return refusals

    def dump(self, request: bytes, visit: Visit) -> bool:
        self.dumps += 1
        code, times = self._fail_dumps
        if times:
            self._fail_dumps = (code, times - 1)
            raise RefusedError(KernelRefusal(code, "injected"))
        whole = super().dump(request, visit)
        if self._interrupt:
            self._interrupt -= 1
            return False
        return whole
