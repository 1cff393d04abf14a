"""What tests would pay for and none needs, each measured in cores' seconds of all unit tests.

- Clients of an API server that speaks plain HTTP load the system's list of authorities, 0.04 s a time: 14 s. No test
  trusts one of those.
- structlog, as long as nobody configures it, paints with rich what pytest keeps for the case that the test fails: 8 s.
- Hypothesis tries 100 examples of everything: 22 s. `make check` tries 20, by the profile `check`; `make test` and
  pytest alone try all. The same is true of histories made by a test's own dice, one a seed, and of long tables of what
  somebody does to the kernel.
"""

import os
from collections.abc import Iterable

import pytest
import structlog
from hypothesis import HealthCheck, settings


def plain_log() -> None:
    """What a failed test shows of the log, at a hundredth of the cost."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ]
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """To be imported by a conftest of the tests' roots. Before Hypothesis' own, which looks for the profile."""
    os.environ["SSL_CERT_FILE"] = os.devnull
    plain_log()
    # What a busy machine takes longer for is as right.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("check", settings.get_profile("patient"), max_examples=20)
    if config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("patient")


def examples(count: int) -> int:
    """What to give to `@settings(max_examples=...)`: the profile scales it, too."""
    return max(1, count * settings().max_examples // 100)


def seeds(count: int) -> list[pytest.ParameterSet]:
    """For `parametrize`, where each seed is one more example of the same: after a fifth of them, they are slow."""
    return first(-(-count // 5), range(count))


def first(count: int, values: Iterable[object]) -> list[pytest.ParameterSet]:
    """For `parametrize`, where values are one more example of the same, as errors are: the others are slow."""
    return [_example(value, slow=number >= count) for number, value in enumerate(values)]


def spread(values: Iterable[object]) -> list[pytest.ParameterSet]:
    """The same of a table, whose kinds come one after the other: each fifth value from the first on is not slow."""
    return [_example(value, slow=number % 5 > 0) for number, value in enumerate(values)]


def _example(value: object, *, slow: bool) -> pytest.ParameterSet:
    """value: a tuple where a test has several parameters."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow if slow else ())
