"""Each step of making an endpoint refused, or its answer lost: nothing is left of it, and the next attempt succeeds."""

import errno
import threading
from collections.abc import Awaitable, Iterator, Sequence

import pytest

from netloom.kernel.endpoints import wiring
from netloom.kernel.endpoints.endpoint import Endpoints, WiringFailed
from netloom.kernel.endpoints.inside import InsideSocket
from netloom.kernel.netlink.sockets import AnswerLost, CommandSocket, KernelRefusal, RefusedError, Visit, VisitAnswer
from tests.economy import first
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Lab
from tests.kernel.wired_pods import endpoints_of, forwarding_node, pod, shown


class Fault:
    """Strikes at the request of this place (from 0) of those to come, on all sockets together; `what`: an errno that
    the kernel answers, or "lost before" or "lost after" it was done."""

    def __init__(self) -> None:
        self.place, self.what, self.last, self.thread = -1, "", False, ""
        self.count = 0

    def strike_at(self, place: int, what: str, *, last: bool = False, thread: str = "") -> None:
        """last: and at all that come after it. thread: of those of this thread alone; else it is chance which is the
        third, of what two threads do at once."""
        self.place, self.what, self.last, self.thread, self.count = place, what, last, thread, 0

    @property
    def has_struck(self) -> bool:
        return self.count > self.place >= 0

    def strikes(self, requests: int) -> int:
        """The place of the request that is struck among so many; -1: none."""
        if not threading.current_thread().name.startswith(self.thread):
            return -1
        begin, self.count = self.count, self.count + requests
        if self.last and begin > self.place >= 0:
            return 0
        return self.place - begin if begin <= self.place < self.count else -1


FAULT = Fault()


class Faulty(CommandSocket):
    """Asks FAULT before each batch, question and look."""

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        struck = FAULT.strikes(len(messages))
        if struck < 0:
            return super().execute(messages)
        if FAULT.what.startswith("lost"):
            if FAULT.what == "lost after":
                super().execute(messages)
            raise AnswerLost(f"{len(messages)} requests: injected")
        refusals: dict[int, KernelRefusal] = {}
        for i, message in enumerate(messages):
            alone = message[:8] + bytes(4) + message[12:]
            answer = (
                {0: KernelRefusal(getattr(errno, FAULT.what), "injected")} if i == struck else super().execute([alone])
            )
            refusals |= {i: answer[0]} if answer else {}
        return refusals

    def get(self, request: bytes, visit: Visit) -> None:
        if FAULT.strikes(1) == 0:
            if FAULT.what.startswith("lost"):
                raise OSError(errno.EAGAIN, "injected")
            raise RefusedError(KernelRefusal(getattr(errno, FAULT.what), "injected"))
        super().get(request, visit)

    def ask(self, questions: Sequence[bytes], visit: VisitAnswer) -> None:
        if FAULT.strikes(1) == 0:
            raise OSError(errno.EAGAIN, "injected")
        super().ask(questions, visit)


class FaultyInside(Faulty, InsideSocket):
    """The same in the pod."""


@pytest.fixture(autouse=True)
def _faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wiring, "InsideSocket", FaultyInside)
    FAULT.strike_at(-1, "")
    yield
    FAULT.strike_at(-1, "")


async def failure_of(work: Awaitable[object]) -> WiringFailed | None:
    try:
        await work
    except WiringFailed as failed:
        return failed
    return None


@pytest.mark.parametrize(
    "what", first(2, ["EPERM", "lost after", "ENOBUFS", "EEXIST", "EINVAL", "ENODEV", "lost before"])
)
async def test_whatever_step_fails(lab: Lab, what: str) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    before, inside = node.state(), one.place.state()
    async with endpoints_of(node, commands=Faulty) as keeper:
        await keeper.apply(Endpoints())
        await keeper.prune()
        async with running(keeper):
            place, sentences = 0, set()
            while True:
                FAULT.strike_at(place, what)
                failed = await failure_of(one.add(keeper))
                if failed is not None:
                    assert failed.reason in ("not-permitted", "refused", "lost", "address-taken", "interface-taken")
                    assert FAULT.has_struck
                    sentences.add(failed.sentence)
                    await eventually(
                        lambda: keeper.report.in_sync and not keeper.report.leaving, lambda: str(keeper.report)
                    )
                    assert (node.state(), one.place.state()) == (before, inside), f"step {place}"
                else:
                    FAULT.strike_at(-1, "")
                    assert await one.check(keeper) == []
                    if place > 30:
                        break
                    await one.delete(keeper)
                    await eventually(lambda: not keeper.report.leaving)
                    await eventually(lambda: (node.state(), one.place.state()) == (before, inside))
                place += 1
            assert len(sentences) >= (1 if what.startswith("lost") else 10)


@pytest.mark.parametrize("known", first(1, [False, True]), ids=["before all are known", "all are known"])
async def test_where_no_answer_comes_any_more_what_is_left_goes_when_they_come(lab: Lab, known: bool) -> None:
    """Its maker cannot remove it, nor hear of it: it is what this keeper itself did."""
    node, one, left = forwarding_node(lab), pod(lab, 1), 0
    before, inside = node.state(), one.place.state()
    async with endpoints_of(node, commands=Faulty) as keeper:
        await keeper.apply(Endpoints())
        if known:
            await keeper.prune()
        async with running(keeper):
            for place in range(40):
                FAULT.strike_at(place, "lost before", last=True)
                failed = await failure_of(one.add(keeper))
                if failed is None:
                    break
                assert failed.reason == "lost"
                left += node.state() != before
                FAULT.strike_at(-1, "")
                await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
                await eventually(lambda: (node.state(), one.place.state()) == (before, inside), node.state)
            else:
                pytest.fail("so many requests has no ADD")
    assert left, "something was left, sometimes"


@pytest.mark.parametrize("what", ["ENOBUFS", "lost before", "lost after"])
async def test_what_a_removal_left_that_nobody_repeats_goes_before_all_are_known(lab: Lab, what: str) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(node, commands=Faulty) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        FAULT.strike_at(0, what)
        failed = await failure_of(one.delete(keeper))
        assert failed is not None
        assert FAULT.has_struck
        await eventually(lambda: shown(node) == "", lambda: shown(node))


@pytest.mark.parametrize("what", first(1, ["lost after", "EPERM", "ENOBUFS", "lost before"]))
async def test_a_removal_that_fails_is_repeated(lab: Lab, what: str) -> None:
    node, pods = forwarding_node(lab), [pod(lab, number) for number in (1, 2, 3)]
    before = node.state()
    async with endpoints_of(node, commands=Faulty) as keeper:
        await keeper.apply(Endpoints())
        await keeper.prune()
        async with running(keeper):
            for place in range(-1, 6):
                for each in pods:
                    await each.add(keeper)
                if place < 0:  # who deletes devices
                    FAULT.strike_at(0, what, thread="netloom-reaper")
                else:
                    FAULT.strike_at(place, what, thread="netloom-kernel")
                for each in pods:
                    failed = await failure_of(each.delete(keeper))
                    if failed is not None:
                        assert failed.reason in ("lost", "refused")
                        await each.delete(keeper)
                    assert f"dev {each.endpoint.device}" not in node.ip("route") + node.ip("-6 route")
                await eventually(lambda: shown(node) == "", lambda: shown(node))
                await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
                assert node.state() == before
                assert FAULT.has_struck, f"at {place}"
                FAULT.strike_at(-1, "")


@pytest.mark.parametrize("what", first(2, ["EPERM", "lost after", "EEXIST", "EBUSY", "lost before"]))
@pytest.mark.parametrize("damage", ["route delete 10.1.0.2", "link set DEVICE down", "link delete DEVICE"])
async def test_a_repair_that_fails_is_repeated(lab: Lab, damage: str, what: str) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(node, commands=Faulty, resync_seconds=0.2) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        whole = shown(node)

        def repaired() -> bool:
            """Whatever pass is under way: on a busy machine, with such resyncs, one always is."""
            report = keeper.report
            return shown(node) == whole and not report.failures and not report.pending

        async with running(keeper):
            for place in range(3):
                FAULT.strike_at(place, what)
                node.ip(damage.replace("DEVICE", one.endpoint.device))
                await eventually(repaired, lambda: f"{shown(node)}\n{keeper.report}")
                if place == 0 or not damage.startswith("route"):  # that is one request
                    assert FAULT.has_struck, f"at {place}"
        FAULT.strike_at(-1, "")
        assert await one.check(keeper) == []
