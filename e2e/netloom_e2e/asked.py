"""Which writes a webhook had to be asked about, from what the API server answered to them.

A webhook whose condition is that something guarded changes is not called for a write that changes nothing. Whether one
did, its answer says: an object that stays as it is keeps its resourceVersion. On a busy machine that happens to writes
that would have changed something in time: one that overtakes the one before it finds its work done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netloom_e2e.paced import Answer, Request

_SHOWN = 5


class Account(NamedTuple):
    """changed: writes that made another version of their object. idle: why the others (by number) made none.
    met: writes that were under way together with another of the same object, of which the API server tries one again
    and asks again."""

    changed: int
    idle: dict[int, str]
    met: int

    def explained(self, calls: int) -> list[str]:
        """In sentences, why there were not as many calls as writes. Raises ValueError if a write that changed something
        was not asked about."""
        lines = []
        count = self.changed + len(self.idle)
        if self.idle:
            lines = [f"{len(self.idle)} of {count} writes changed nothing, and are nothing to ask about:"]
            lines += [f"  write {number}: {self.idle[number]}" for number in sorted(self.idle)[:_SHOWN]]
            if len(self.idle) > _SHOWN:
                lines.append(f"  and {len(self.idle) - _SHOWN} more")
        if calls < self.changed:
            missing = f"{self.changed} writes changed a guarded field, and {calls} calls asked about them"
            raise ValueError("\n".join([missing, *lines]))
        if calls > self.changed:
            lines.append(
                f"{calls - self.changed} calls more than writes that changed something: {self.met} writes met another "
                "of the same object, and the API server asks again for one that it has to try again"
            )
        return lines


def account(requests: Sequence[Request], answers: Sequence[Answer], known: Mapping[str, str]) -> Account:
    """Of writes that all were answered with success. known: the resourceVersion of each path before the first."""
    by_path: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        by_path.setdefault(request.path, []).append(number)
    idle: dict[int, str] = {}
    met = 0
    for path, numbers in by_path.items():
        seen = {known[path]}
        for number in sorted(numbers, key=lambda each: answers[each].ended):
            others = [each for each in numbers if each != number and _together(answers[each], answers[number])]
            met += bool(others)
            if answers[number].version in seen:
                idle[number] = _why(path, number, others, answers)
            seen.add(answers[number].version)
    return Account(len(requests) - len(idle), idle, met)


def _together(one: Answer, other: Answer) -> bool:
    return one.sent < other.ended and other.sent < one.ended


def _why(path: str, number: int, others: Sequence[int], answers: Sequence[Answer]) -> str:
    name = path.rpartition("/")[2]
    if not others:
        return f"{name} was as it wanted it before it was sent"
    when = "write {} from {:.2f} to {:.2f} s"
    ours, twin = (when.format(each, answers[each].sent, answers[each].ended) for each in (number, others[0]))
    return f"{name} was as it wanted it, as another of the same object was late: {ours}, {twin}"
