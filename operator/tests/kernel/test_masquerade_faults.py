"""Every request refused with every plausible errno, once and for good; answers and dumps that go wrong.

Whatever is refused: it is reported, foreign tables are untouched, and once the fault is gone the kernel holds exactly
what it would hold without it.
"""

import asyncio
import errno
from collections.abc import Callable

import pytest

from netloom.kernel.masquerade.keeper import MasqueradeKeeper
from netloom.kernel.masquerade.sets import Masquerading
from tests.economy import first
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import Namespace
from tests.kernel.nft import FaultyNftables, Masquerades, masquerades, masquerading, nft, ruleset

__all__ = ["masquerades"]

ERRNOS = ["EEXIST", "ENOENT", "EINVAL", "ENOBUFS", "EPERM", "EBUSY"]

FOREIGN = """\
table inet firewalld {
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        oifname "eth9" masquerade
    }
}
"""

EDIT = "add rule inet netloom postrouting accept"

# What is in force, what somebody does to it, what is applied then.
STORIES: dict[str, tuple[Masquerading, str, Callable[[], Masquerading]]] = {
    "newtable": (Masquerading(), "", masquerading),
    "newset": (Masquerading(), "", masquerading),
    "newchain": (Masquerading(), "", masquerading),
    "newrule": (Masquerading(), "", masquerading),
    "newsetelem": (masquerading(), "", lambda: masquerading(peers=(3, 4))),
    "delsetelem": (masquerading(), "", lambda: masquerading(peers=(3, 4))),
    "delrule": (masquerading(), EDIT, lambda: masquerading(peers=(3, 4))),
    "deltable": (masquerading(), "", Masquerading),
}

KIND = {"newsetelem": "element", "delsetelem": "element", "delrule": "rules"}
"""What is named in the report; the table, where not given."""


class Story:
    """From one state to the next, with a fault on the way; the outcome is taken from a run without."""

    def __init__(
        self, node: Namespace, masquerade: MasqueradeKeeper, commands: FaultyNftables, request_type: str
    ) -> None:
        self.node, self.masquerade, self.commands = node, masquerade, commands
        self._before, self._edit, self.after = STORIES[request_type]
        self.wanted = ""

    @classmethod
    async def begin(cls, node: Namespace, masquerades: Masquerades, request_type: str) -> "Story":
        nft(node, FOREIGN)
        commands = FaultyNftables()
        masquerade = await masquerades.open(commands=lambda: commands, resync_seconds=0.1)
        story = cls(node, masquerade, commands, request_type)
        await story.reset()
        await masquerade.apply(story.after())
        async with running(masquerade):
            await eventually(lambda: masquerade.report.in_sync)
        story.wanted = story.state()
        return story

    def state(self) -> str:
        return ruleset(self.node).replace("\t", "    ")

    async def reset(self) -> None:
        self.commands.heal()
        await self.masquerade.apply(self._before)
        if self._edit:
            nft(self.node, self._edit)

    async def ends_well(self) -> None:
        await eventually(lambda: self.masquerade.report.in_sync, lambda: str(self.masquerade.report))
        await becomes(self.state, self.wanted)
        assert FOREIGN in self.state()


@pytest.mark.parametrize("request_type", first(2, reversed(STORIES)))
async def test_refused_once(node: Namespace, masquerades: Masquerades, request_type: str) -> None:
    story = await Story.begin(node, masquerades, request_type)
    for name in ERRNOS:
        await story.reset()
        refused = story.commands.refused
        story.commands.refuse(request_type, getattr(errno, name), times=1)
        async with running(story.masquerade):
            await story.masquerade.apply(story.after())
            await story.ends_well()
        assert story.commands.refused == refused + 1, "the fault was met"


@pytest.mark.parametrize("request_type", first(2, reversed(STORIES)))
async def test_refused_for_good(node: Namespace, masquerades: Masquerades, request_type: str) -> None:
    story = await Story.begin(node, masquerades, request_type)
    for name in ERRNOS:
        await story.reset()
        story.commands.refuse(request_type, getattr(errno, name))
        report = await story.masquerade.apply(story.after())
        assert {failure.kind for failure in report.failures} == {KIND.get(request_type, "table")}, name
        assert {failure.errno for failure in report.failures} == {getattr(errno, name)}
        assert all(f"{name}: injected" in failure.error for failure in report.failures)
        assert not report.in_sync
        assert FOREIGN in story.state()
        story.commands.heal()
        async with running(story.masquerade):
            await story.ends_well()


async def test_one_refused_element_does_not_stop_the_others(node: Namespace, masquerades: Masquerades) -> None:
    """The kernel itself refuses: somebody's element, of which no event has told yet, lies across ours."""
    masquerade = await masquerades.open()
    desired = masquerading()
    await masquerade.apply(desired)
    nft(node, "add element inet netloom known4 { 10.4.0.128-10.4.1.5 }")
    masquerade._listener.receive()  # type: ignore[union-attr]
    for number in (4, 5):
        desired.set_known(f"node-{number}", masquerading(peers=(number,)).known[f"node-{number}"])
    async with running(masquerade):
        await masquerade.apply(desired)
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))
    assert (await (await masquerades.open()).apply(desired)).written == {}


async def test_what_does_not_depend_on_a_refused_element_is_done(node: Namespace, masquerades: Masquerades) -> None:
    story = await Story.begin(node, masquerades, "newsetelem")
    await story.reset()
    story.commands.refuse("newsetelem", errno.EBUSY)
    await story.masquerade.apply(story.after())
    text = story.state()
    assert "10.4.0.0/24" not in text
    assert "10.2.0.0/24" not in text, "its deletion did not wait"
    assert [(f.kind, f.key) for f in story.masquerade.report.failures] == [
        ("element", "known4 10.4.0.0"),
        ("element", "known6 fd00:4::"),
    ]


@pytest.mark.parametrize("request_type", ["newtable", "newsetelem"])
async def test_what_keeps_failing_is_tried_less_and_less_often(
    node: Namespace, masquerades: Masquerades, request_type: str
) -> None:
    story = await Story.begin(node, masquerades, request_type)
    await story.reset()
    refused = story.commands.refused
    story.commands.refuse(request_type, errno.EPERM)
    async with running(story.masquerade):
        await story.masquerade.apply(story.after())
        await eventually(lambda: max((f.attempts for f in story.masquerade.report.failures), default=0) >= 4)
        assert story.commands.refused - refused <= 14


async def test_what_fails_while_nothing_else_is_due_is_tried_again(node: Namespace, masquerades: Masquerades) -> None:
    """Without resyncs: whoever waits for the next event has to hear that something is to be tried again before."""
    commands = FaultyNftables()
    masquerade = await masquerades.open(commands=lambda: commands)
    await masquerade.apply(masquerading())
    async with running(masquerade):
        await asyncio.sleep(0)
        commands.refuse("newsetelem", errno.EBUSY, times=2)
        assert not (await masquerade.apply(masquerading(peers=(3, 4)))).in_sync
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))


@pytest.mark.parametrize("after_doing", [True, False])
@pytest.mark.parametrize("request_type", ["newtable", "newsetelem", "deltable"])
async def test_lost_answers(node: Namespace, masquerades: Masquerades, request_type: str, after_doing: bool) -> None:
    story = await Story.begin(node, masquerades, request_type)
    await story.reset()
    story.commands.lose_answers(2, after_doing=after_doing)
    async with running(story.masquerade):
        report = await story.masquerade.apply(story.after())
        assert [failure.kind for failure in report.failures] == ["dump"]
        await story.ends_well()


@pytest.mark.parametrize("times", [1, 3, 100])
async def test_interrupted_dumps_are_read_again(node: Namespace, masquerades: Masquerades, times: int) -> None:
    story = await Story.begin(node, masquerades, "newsetelem")
    await story.reset()
    nft(node, "flush ruleset\n" + FOREIGN)
    dumps = story.commands.dumps
    story.commands.interrupt_dumps(times)
    async with running(story.masquerade):
        await story.masquerade.apply(story.after())
        await story.ends_well()
    assert story.commands.dumps > dumps


@pytest.mark.parametrize("name", ["EBUSY", "ENOBUFS", "EPERM", "EINVAL"])
async def test_failing_dumps_are_reported_and_nothing_is_written_blindly(
    node: Namespace, masquerades: Masquerades, name: str
) -> None:
    story = await Story.begin(node, masquerades, "delrule")
    await story.reset()
    before = story.state()
    story.commands.fail_dumps(getattr(errno, name))
    report = await story.masquerade.apply(story.after())
    assert [failure.kind for failure in report.failures] == ["dump"]
    assert name in report.failures[0].error
    assert story.state() == before
    story.commands.heal()
    async with running(story.masquerade):
        await story.ends_well()


@pytest.mark.parametrize("script", ["delete table inet netloom", "flush chain inet netloom postrouting"])
@pytest.mark.parametrize("batch", first(1, range(3)))
async def test_the_table_is_changed_between_two_transactions(
    node: Namespace, masquerades: Masquerades, batch: int, script: str
) -> None:
    story = await Story.begin(node, masquerades, "delrule")
    await story.reset()
    countdown = batch

    def interfere() -> None:
        nonlocal countdown
        if countdown == 0:
            nft(node, script)
        countdown -= 1

    story.commands.before_batch = interfere
    async with running(story.masquerade):
        desired = story.after()
        for number in range(5, 9):
            desired.set_known(f"node-{number}", masquerading(peers=(number,)).known[f"node-{number}"])
            await story.masquerade.apply(desired)
        for number in range(5, 9):
            desired.set_known(f"node-{number}", ())
        await story.masquerade.apply(desired)
        await story.ends_well()
    assert countdown < 0
