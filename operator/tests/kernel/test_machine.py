"""The state machine of `machine`, for a moment; e2e/tests/test_kernel_machine.py lets it run for longer."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.kernel.machine import KernelMachine, World
from tests.kernel.netns import Lab

# Without shrinking: each try of a failure waits for a state that never comes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
SETTINGS = settings(
    max_examples=6, stateful_step_count=15, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_whatever_happened_a_node_ends_as_if_it_had_just_been_started(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path)
    run_state_machine_as_test(lambda: KernelMachine(world), settings=SETTINGS)  # type: ignore[arg-type]
