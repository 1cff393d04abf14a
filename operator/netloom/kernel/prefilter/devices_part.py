"""The devices that the program is attached to, as a part: each on its own, none stops another."""

import errno
from collections.abc import Iterable, Mapping, Sequence

import structlog
from msgspec.structs import replace

from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal, read_all
from netloom.kernel.ownership import PREFILTER
from netloom.kernel.prefilter.attachments import Step, foreign, obstacle, steps_to
from netloom.kernel.prefilter.drivers import Drivers
from netloom.kernel.prefilter.filter_part import FilterPart
from netloom.kernel.prefilter.links import BONDING, FEATURES, XdpLink, attach, dump_links, read_xdp_link
from netloom.kernel.prefilter.prefiltering import DeviceReport, DeviceWish, Mode, Prefiltering

log = structlog.get_logger(__name__)

_OVERTAKEN = (errno.EEXIST, errno.EBUSY)
"""Somebody was faster: what is there now is to be read."""
_NOT_THE_DRIVERS = (*_OVERTAKEN, errno.EPERM, errno.ENODEV, errno.ENOMEM)
"""Refusals of native mode that have nothing to do with the driver."""


class DevicesPart(Part[Prefiltering]):
    """See the module."""

    owns = PREFILTER
    state = ("dump", "devices and their XDP programs")
    groups = ("link",)
    due = False
    kinds = frozenset((wire.RTM_NEWLINK, wire.RTM_DELLINK))

    def __init__(self) -> None:
        self.filter: FilterPart
        self._wishes: dict[str, DeviceWish] = {}
        self._links: dict[int, XdpLink] = {}
        self._names: dict[int, str] = {}
        """Of somebody else's programs, by id."""
        self._drivers = Drivers()
        self._stale = True
        self._new: set[str] = set()
        """Devices that came after what was said of others of that name, or whose MTU is another since: a driver may
        refuse native mode for the size of frames alone."""
        self._refused: dict[str, str] = {}
        self._done: dict[int, tuple[tuple[str, int], ...]] = {}
        """What was seen to be as it should be, by ifindex."""
        self._drifted: list[str] = []

    def running(self) -> Mapping[str, int] | None:
        """By device, the id of our program that runs there; None before any have been read."""
        if self._stale and not self._links:
            return None
        ours = self.filter.ours
        links = self._links.values()
        return {link.name: identity for link in links for _mode, identity in link.programs if identity in ours}

    def want(self, desired: Prefiltering, retries: Retries) -> None:
        """Take over the devices."""
        wishes = {wish.name: wish for wish in desired.devices}
        retries.forget([_item(name) for name, wish in wishes.items() if self._wishes.get(name) != wish])
        if wishes.keys() - self._wishes.keys() and not self._links:
            self._stale = True
        for each in self._links.values():
            before, wish = self._wishes.get(each.name), wishes.get(each.name)
            if before is not None and wish is not None and before.mode != wish.mode:
                self._drivers.wished(each.ifindex)
        self._wishes = wishes
        self.due = True

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """A device that came, went, was renamed, or got or lost a program."""
        if not self._wishes and self.filter.kernel is None:
            self._links.clear()
            return
        link = read_xdp_link(buffer, start, end)
        if link is None:
            return
        before = self._links.get(link.ifindex)
        self._compare(before, link)
        if kind == wire.RTM_DELLINK:
            self._links.pop(link.ifindex, None)
            self._done.pop(link.ifindex, None)
            self._drivers.forget(link.ifindex)
        else:
            self._links[link.ifindex] = link = replace(link, event=0)
            done = self._done.get(link.ifindex)
            if done is not None and done != link.programs:
                del self._done[link.ifindex]
                self._drifted.append(link.name)
        self.due = self.due or before != self._links.get(link.ifindex)

    def _compare(self, before: XdpLink | None, link: XdpLink) -> None:
        """Whether a driver that refused may be of another mind."""
        if before is None or before.mtu != link.mtu or link.event in (FEATURES, BONDING):
            self._new.add(link.name)
            if before is not None and link.name in self._wishes:
                self._drivers.changed(link)
                self.due = True

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Devices whose program somebody took away or replaced."""
        drifted, self._drifted = self._drifted, []
        return [(_item(name), True) for name in drifted if name in self._wishes]

    def doubt(self) -> None:
        """All devices are to be looked at again."""
        self._stale = self.due = True

    async def read(self, worker: Worker) -> bool:
        """What runs where."""
        if not self._stale:
            return False
        self._stale = False
        if not self.filter.is_there:
            self._links.clear()
            return False
        links = await worker.call(lambda commands: read_all(commands, dump_links(), read_xdp_link))
        for each in links:
            if each.ifindex in self._links:
                self._compare(self._links[each.ifindex], each)
        self._links = {link.ifindex: link for link in links}
        for ifindex, done in list(self._done.items()):
            link = self._links.get(ifindex)
            if link is None or link.programs != done:
                del self._done[ifindex]
                self._drifted += [link.name] if link is not None else []
        return True

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Attach the program where it is missing, and have it take the place of one of another version."""
        self.due = False
        outcome = Outcome()
        delayed = {name for name in self._refused if _item(name) in attempt.delayed} - self._new
        self._new.clear()
        self._refused = {name: why for name, why in self._refused.items() if name in delayed}
        for ifindex in list(self._links):
            link = self._links.get(ifindex)  # one that was looked at before may have changed it
            wish = self._wishes.get(link.name) if link is not None else None
            if link is not None and wish is not None and link.name not in delayed:
                await self._update(worker, link, wish, outcome)
        self._forget_names()
        return outcome

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Detach it, in whichever mode, from devices that are not wanted."""
        outcome = Outcome()
        ours = self.filter.ours
        for ifindex in list(self._links if ours else ()):
            link = self._links.get(ifindex)
            if link is not None and link.name not in self._wishes and _item(link.name) not in attempt.delayed:
                for step in steps_to(link, None, ours, 0):
                    refusal = await self._done_by(worker, step)
                    self._note(link, step, refusal, outcome)
        return outcome

    def pending(self) -> Iterable[Item]:
        """Devices that are not as they could be."""
        ours = self.filter.ours
        for link in self._links.values():
            wish = self._wishes.get(link.name)
            program = self._program(link.name)
            if link.name in self._refused or steps_to(link, wish, ours, program) or (wish and not program):
                yield _item(link.name)

    def reports(self) -> tuple[DeviceReport, ...]:
        """Of all that are wanted."""
        by_name = {link.name: link for link in self._links.values()}
        return tuple(self._report(wish, by_name.get(wish.name)) for wish in self._wishes.values())

    def planned(self, links: Iterable[XdpLink], desired: Prefiltering, ours: set[int]) -> list[Step]:
        """What would be attached and detached."""
        wishes = {wish.name: wish for wish in desired.devices}
        steps = [
            step
            for link in links
            for step in steps_to(link, wishes.get(link.name), ours, self._program(link.name) or -1)
        ]
        return sorted(steps, key=lambda step: step.detach)

    # ---------------------------------------------------------------------------------------------- one device

    def _program(self, name: str) -> int:
        """That is to run on a device; 0: none."""
        wish = self._wishes.get(name)
        return self.filter.program_for(wish) if wish is not None else 0

    async def _update(self, worker: Worker, link: XdpLink, wish: DeviceWish, outcome: Outcome) -> None:
        ours, program = self.filter.ours, self.filter.program_for(wish)
        other = foreign(link, ours)
        if other is not None and other[1] not in self._names:
            self._names[other[1]] = await worker.call(lambda _: self.filter.name_of(other[1]))
        steps = steps_to(link, wish, ours, program, better=self._drivers.may_take(link.ifindex))
        if steps and (not await self._take(worker, link, wish, steps, outcome) or steps[0].detach):
            return  # of two steps events tell one by one: only then it is seen whether it is done
        now = self._links.get(link.ifindex)
        if now is not None and program and not steps_to(now, wish, ours, program) and other is None:
            self._done[link.ifindex] = now.programs
            outcome.written.append(("xdp", [link.name]))

    async def _take(
        self, worker: Worker, link: XdpLink, wish: DeviceWish, steps: Sequence[Step], outcome: Outcome
    ) -> bool:
        """Whether the device is as it should be now. What ran in another mode runs on where the driver refuses."""
        attached, known = steps[-1], self._drivers.why(link.ifindex)
        stays = known is not None and steps[0].detach and not self._drivers.may_take(link.ifindex)
        if stays and attached.mode == Mode.NATIVE:
            return self._note(link, attached, known, outcome)
        if steps[0].detach:
            self._done.pop(link.ifindex, None)
        refusal = await self._done_by(worker, *steps)
        if refusal is not None and _is_the_drivers(attached, refusal):
            self._drivers.refused(link.ifindex, refusal)
            if wish.mode == Mode.BEST_EFFORT:
                if steps[0].detach:
                    return True
                attached = Step(link, Mode.GENERIC)
                refusal = await self._done_by(worker, attached)
        elif refusal is None:
            if attached.mode == Mode.NATIVE:
                self._drivers.forget(link.ifindex)
            for each in steps[:-1]:
                self._took(link.ifindex, each)
        return self._note(link, attached, refusal, outcome)

    async def _done_by(self, worker: Worker, *steps: Step) -> KernelRefusal | None:
        """The kernel changes nothing about a device while one that stands on it has a program: ours is taken from there
        first, and comes back in the next pass. Frames pass the lower device before, where they are filtered."""
        refusal = await worker.call(lambda commands: self._do(commands, *steps))
        above = self._above(steps[-1].link) if refusal is not None and refusal.errno == errno.EEXIST else []
        for upper in above:
            if await worker.call(lambda commands, upper=upper: self._do(commands, upper)) is None:  # type: ignore[misc]
                self._took(upper.link.ifindex, upper)
                self._done.pop(upper.link.ifindex, None)
        if not above:
            return refusal
        self.due = True
        return await worker.call(lambda commands: self._do(commands, *steps))

    def _above(self, link: XdpLink) -> list[Step]:
        """What takes our programs from the devices that stand on this one."""
        ours = self.filter.ours
        uppers = [each for each in self._links.values() if each.below == link.ifindex or each.ifindex == link.master]
        return [step for each in uppers for step in steps_to(each, None, ours, 0)]

    def _do(self, commands: CommandSocket, *steps: Step) -> KernelRefusal | None:
        """In the thread. All of them in one request, as a device is without a filter between two: what was detached is
        put back where the kernel refuses what was to take its place."""
        before = steps[:-1]
        refusals = commands.execute(wire.numbered([self._message(each) for each in steps]))
        refusal = refusals.get(len(before))
        if refusal is not None and before and not refusals.keys() & set(range(len(before))):
            back = commands.execute(wire.numbered([self._message(Step(each.link, each.mode)) for each in before]))
            self._stale = self._stale or bool(back)
            self.due = self.due or bool(back)
        return refusal

    def _message(self, step: Step) -> bytes:
        expected = self.filter.descriptor(step.expected) if step.expected else -1
        program = -1 if step.detach else self.filter.descriptor(self._program(step.link.name))
        assert program is not None, "one that is wanted is open"
        return attach(step.link.ifindex, step.mode, program, expected)

    def _note(self, link: XdpLink, step: Step, refusal: KernelRefusal | None, outcome: Outcome) -> bool:
        """What came of a step; whether it was done."""
        if refusal is None:
            log.info("device changed", change=f"ip {step}")
            self._took(link.ifindex, step)
            return True
        if refusal.errno == errno.ENODEV:  # it is gone, or in another network namespace; an event tells
            self._links.pop(link.ifindex, None)
            return False
        if refusal.errno in _OVERTAKEN:
            self._stale = self.due = True
        sentence = _sentence(step, refusal)
        self._refused[link.name] = sentence
        outcome.refused.append(RefusedEntry(_item(link.name), sentence, refusal.errno))
        return False

    def _took(self, ifindex: int, step: Step) -> None:
        link = self._links.get(ifindex)
        if link is None:
            return
        others = tuple(each for each in link.programs if each[0] != step.mode)
        mine = () if step.detach else ((str(step.mode), self._program(step.link.name)),)
        self._links[ifindex] = replace(link, programs=(*others, *mine))

    def _report(self, wish: DeviceWish, link: XdpLink | None) -> DeviceReport:
        if link is None:
            return DeviceReport(wish.name, error=f"there is no device {wish.name}; it is filtered once it comes")
        ours = self.filter.ours
        running = next(((mode, identity) for mode, identity in link.programs if identity in ours), ("", 0))
        error = self._refused.get(link.name, "") or obstacle(link, ours, self._names)
        other = foreign(link, ours)
        if not error and not running[0]:
            error = self.filter.error or "it is about to be attached"
        if running[0] or other is None:
            mode, program = running
        else:
            mode, program = "", other[1]
        known = self._drivers.why(link.ifindex) if mode == Mode.GENERIC else None
        note = str(known) if known is not None else ""
        if mode == Mode.GENERIC and wish.mode == Mode.BEST_EFFORT and not note:
            note = "it was attached so before"
        return DeviceReport(wish.name, link.ifindex, mode, program, error, note)

    def _forget_names(self) -> None:
        seen = {identity for link in self._links.values() for _mode, identity in link.programs}
        self._names = {identity: name for identity, name in self._names.items() if identity in seen}


def _item(name: str) -> Item:
    return "xdp", name


def _is_the_drivers(step: Step, refusal: KernelRefusal) -> bool:
    native = step.mode == Mode.NATIVE and not step.detach and not step.expected
    return native and refusal.errno not in _NOT_THE_DRIVERS


def _sentence(step: Step, refusal: KernelRefusal) -> str:
    if step.detach:
        return f"the prefilter cannot be detached from {step.link.name}: {refusal}"
    if step.mode == Mode.NATIVE and refusal.errno not in _NOT_THE_DRIVERS:
        return (
            f"the driver of {step.link.name} does not take the prefilter in native mode ({refusal}): "
            "choose mode best-effort or generic"
        )
    return f"the prefilter cannot be attached to {step.link.name} in {step.mode} mode: {refusal}"
