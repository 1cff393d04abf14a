"""A world per test; what the operators of a model log is noise: thousands of interleavings, each with its conflicts."""

from collections.abc import Iterator

import pytest
import structlog

from tests.allocation.virtual import LOOPS
from tests.allocation.world import World, no_overlap
from tests.economy import plain_log


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    plain_log()


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def empty(request: pytest.FixtureRequest) -> Iterator[World]:
    """Overlaps are looked for after every write. On both loops."""
    world = World(no_overlap, loop=request.param)
    yield world
    world.close()


@pytest.fixture
def world(empty: World) -> World:
    """With a network of four blocks."""
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    return empty
