"""The API server's clock, told by its answers, and carried on by one that nobody can set."""

import datetime as dt
import email.utils

import pytest

from netloom.api.core import NODES
from netloom.runtime.client import Api
from netloom.runtime.clock import ServerClock
from tests.runtime.scripted import ScriptedApi

NOW = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
SECOND, HOUR, DAY = (dt.timedelta(**{unit: 1}) for unit in ("seconds", "hours", "days"))
JUMPS = [-400 * DAY, -2 * HOUR, 2 * HOUR, 400 * DAY]


class Machine:
    """What a process can ask of its machine: one clock that anybody may set, and one that nobody can."""

    def __init__(self) -> None:
        self.wall = NOW
        self.steady = 5000.0
        self.clock = ServerClock(steady=lambda: self.steady, wall=lambda: self.wall)

    def pass_(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds * SECOND


def date(moment: dt.datetime) -> str:
    return email.utils.format_datetime(moment.replace(microsecond=0), usegmt=True)


def test_before_the_first_answer_the_wall_clock_is_believed():
    machine = Machine()
    assert machine.clock.now() == NOW
    machine.clock.heard(None)
    machine.clock.heard("yesterday, about noon")
    assert machine.clock.now() == NOW


@pytest.mark.parametrize("jump", JUMPS)
def test_a_wall_clock_that_is_set_changes_nothing(jump: dt.timedelta):
    machine = Machine()
    machine.clock.heard(date(NOW + 7 * DAY))
    machine.pass_(60)
    machine.wall += jump
    machine.pass_(60)
    assert machine.clock.now() == NOW + 7 * DAY + 120 * SECOND


@pytest.mark.parametrize("jump", JUMPS)
def test_a_server_whose_clock_is_set_is_followed_there_and_back(jump: dt.timedelta):
    machine = Machine()
    machine.clock.heard(date(NOW))
    machine.clock.heard(date(NOW + jump))
    assert machine.clock.now() == NOW + jump
    machine.pass_(10)
    machine.clock.heard(date(NOW + 10 * SECOND))
    assert machine.clock.now() == NOW + 10 * SECOND


def test_it_does_not_go_back_for_the_fractions_that_a_date_lacks():
    machine = Machine()
    machine.clock.heard(date(NOW))
    seen = []
    for number in range(100):
        machine.pass_(0.07 if number % 7 else 5.83)
        seen.append(machine.clock.now())
        machine.clock.heard(date(machine.wall))
        seen.append(machine.clock.now())
        assert machine.wall - SECOND < seen[-1] <= machine.wall
    assert seen == sorted(seen)


async def test_every_answer_tells_it_those_of_refusals_and_watches_as_well(server: ScriptedApi, api: Api):
    async def refused() -> None:
        with pytest.raises(Exception, match="no such path"):
            await api.request("GET", "/nonsense")

    async def watched() -> None:
        async with api.stream(NODES.path(), {"watch": "1", "resourceVersion": "1"}):
            pass

    for ask, ahead in ((lambda: api.list(NODES), 3 * DAY), (refused, -3 * DAY), (watched, 400 * DAY)):
        server.ahead = ahead
        await ask()
        assert abs(api.clock.now() - dt.datetime.now(dt.UTC) - ahead) < 5 * SECOND
