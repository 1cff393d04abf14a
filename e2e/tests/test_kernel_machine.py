"""The state machine of the kernel side, for long enough to meet what the unit tests' moment does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.kernel.machine import KernelMachine, World
from tests.kernel.netns import Lab

SETTINGS = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    lab = Lab()
    try:
        yield World(lab, tmp_path)
    finally:
        lab.close()


def test_whatever_happened_a_node_ends_as_if_it_had_just_been_started(world: World) -> None:
    run_state_machine_as_test(lambda: KernelMachine(world), settings=SETTINGS)  # type: ignore[arg-type]
