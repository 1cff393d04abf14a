"""What every bench has in common: its table, its medians, its last line, and how it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from netloom_e2e.binaries import BinariesError
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlaneError


class Stopped(Exception):
    """SIGTERM."""


class Wrong(Exception):
    """What was measured did not do what it should have done."""


TROUBLES = (Wrong, BinariesError, ControlPlaneError, ApiFailure, OSError, RuntimeError, subprocess.SubprocessError)
"""What ends a bench with a sentence."""


class Cost(NamedTuple):
    """Of one piece of work. CPU time is what its process used, in user and kernel mode."""

    seconds: float
    cpu_seconds: float


def cost_of(argv: Sequence[str]) -> Cost:
    """Run a command to its end. Raises Wrong, with what it said, if it fails."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr
        said = process.stderr.read().decode(errors="replace")
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Wrong(f"`{' '.join(argv)}` failed ({process.returncode}): {said[-500:]}")
    return Cost(seconds, _cpu(used))


def _cpu(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def median_cost(costs: Iterable[Cost]) -> Cost:
    """Of each figure by itself."""
    costs = list(costs)
    return Cost(statistics.median(c.seconds for c in costs), statistics.median(c.cpu_seconds for c in costs))


def percentile(values: Iterable[float], percent: int) -> float:
    """The value that `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def console() -> Console:
    """Where a bench tells what it does."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first column is text, the others are figures."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column != columns[0] else "left")
    for row in rows:
        made.add_row(*row)
    return made


def circumstances() -> str:
    """What else the figures depend on."""
    return f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs, Linux {os.uname().release}"


def result_of(script: Path, *words: str, timeout: float = 240) -> dict[str, Any]:
    """Run a bench as make does; what its last line says. Raises Wrong, with all that it said, if it fails."""
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    *_, last = done.stdout.splitlines() or [""]
    word, _, text = last.partition(" ")
    if done.returncode or word != "RESULT":
        raise Wrong(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return dict(json.loads(text))


def conclude(name: str, run: Callable[[], dict[str, Any]]) -> int:
    """Run a bench to its line `RESULT {json}`; the exit status, which says whether all was right, not whether fast."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        result = run()
    except (KeyboardInterrupt, Stopped):
        print("stopped; cleaned up", file=sys.stderr)
        return 130
    except TROUBLES as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print("RESULT", json.dumps(result))
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
