"""The state machine and the stories of `reconcilers/tests/allocation`, with a real API server as the judge.

The operators are the same objects as there, and so are the faults; compare-and-swap, uniqueness of names,
preconditions, finalizers, the status subresource and the CRDs' rules are the API server's own. It takes milliseconds
where the model takes microseconds, so the long searches are the model's; here is shown that the model tells the truth.
"""

from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS
from netloom_e2e.arbiter import Arbiter
from netloom_e2e.cluster import ControlPlane
from tests.allocation.machine import AllocationMachine
from tests.allocation.test_rules import TOLD, Break, one_block
from tests.allocation.world import World

EXAMPLES = 40
KINDS = ("nodes", NETLOOM_NODES, LEDGERS, NETWORKS, POOLS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


@pytest.fixture
def machine(crds_installed: ControlPlane) -> Iterator[type[AllocationMachine]]:
    """The machine on an API server without Nodes; each that is made sweeps the table for the next."""

    class RealMachine(AllocationMachine):
        def __init__(self) -> None:
            self.server = lambda: Arbiter.of(crds_installed)
            super().__init__()

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                crds_installed.delete_all(*KINDS)

    yield RealMachine
    crds_installed.delete_all(*KINDS)


@pytest.fixture
def world(machine: type[AllocationMachine]) -> Iterator[World]:
    yield from one_block(machine())


def test_no_interleaving_gives_a_block_to_two_nodes(machine: type[AllocationMachine]) -> None:
    """Derandomised: it shall fail for a fault, not for bad luck in somebody else's change. A failure is not shrunk
    here, which would take minutes, but by the model: what fails here should fail there."""
    search = settings(
        max_examples=EXAMPLES,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=search)


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
    with pytest.raises(AssertionError, match=ends_in):
        story(world)
