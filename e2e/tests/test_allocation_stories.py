"""The stories of `reconcilers/tests/allocation`, with a real API server as the judge.

The operators are the same objects as there, and so are the faults: interleavings that the state machine found on the
model, told step by step. Compare-and-swap, uniqueness of names, preconditions, finalizers, the status subresource and
the CRDs' rules are the API server's own. The search itself is the model's, which takes microseconds where an API server
takes milliseconds; here is shown that the model tells the truth.
"""

from collections.abc import Callable, Iterator

import pytest
import structlog

from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS
from netloom_e2e.arbiter import Arbiter
from netloom_e2e.cluster import ControlPlane
from tests.allocation.machine import AllocationMachine
from tests.allocation.test_rules import TOLD, Break, one_block
from tests.allocation.world import World

KINDS = ("nodes", NETLOOM_NODES, LEDGERS, NETWORKS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


@pytest.fixture
def machine(crds_installed: ControlPlane) -> Iterator[AllocationMachine]:
    """On an API server without Nodes."""

    class RealMachine(AllocationMachine):
        def __init__(self) -> None:
            self.server = lambda: Arbiter.of(crds_installed)
            super().__init__()

    yield RealMachine()
    crds_installed.delete_all(*KINDS)


@pytest.fixture
def world(machine: AllocationMachine) -> Iterator[World]:
    yield from one_block(machine)


def _name(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize("story", dict.fromkeys(story for story, _, _ in TOLD), ids=_name)
def test_the_rules_hold(world: World, story: Callable[[World], None]) -> None:
    story(world)


@pytest.mark.parametrize(("story", "broken", "ends_in"), TOLD, ids=_name)
def test_without_its_rule_the_story_goes_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, story: Callable[[World], None], broken: Break, ends_in: str
) -> None:
    broken(monkeypatch)
    uids = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # the model's begin with the word
    with pytest.raises((AssertionError, KeyError), match=uids if ends_in == "uid" else ends_in):
        story(world)
