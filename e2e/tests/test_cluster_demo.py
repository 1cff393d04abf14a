"""`make demo-cluster` as a user runs it, until the nodes are Ready; stopped then, it leaves nothing behind.

What comes after that (upgrades under traffic, the refusal, the uninstallation) has tests of its own on such clusters.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e import binaries, kubelets, netloom_image
from netloom_e2e.cluster_demo import PREFIX
from netloom_e2e.fixtures import built
from netloom_e2e.lab import NETNS, environment, run, wait_for

COMMAND = [sys.executable, "-m", "netloom_e2e.cluster_demo"]
READY = "from `helm install` to all nodes Ready"


def leftovers() -> list[str]:
    """Namespaces, control groups, mounts and processes of a demo, and its folders."""
    found = [path.name for path in NETNS.glob(f"{PREFIX}-*")] if NETNS.is_dir() else []
    found += [line for line in run("ps", "-eo", "args").splitlines() if PREFIX in line or COMMAND[-1] in line]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if PREFIX in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{PREFIX}-*")]
    return found + [str(path) for path in Path("/tmp").glob("netloom-cluster-demo-*")]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    assert leftovers() == [], "something else is running here"
    yield
    wait_for("nothing to be left", lambda: leftovers() == [], deadline=60)


@pytest.fixture
def prepared() -> None:
    with built():
        kubelets.prepare()
        netloom_image.netloom()
        binaries.helm()


@pytest.mark.usefixtures("prepared")
def test_it_begins_and_cleans_up_when_it_is_stopped() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said = ""
    with subprocess.Popen(COMMAND, text=True, env=environment(), **pipes) as demo:  # type: ignore[call-overload]
        try:
            assert demo.stdout
            for line in demo.stdout:
                said += line
                if READY in line:
                    demo.send_signal(signal.SIGINT)
                    break
            said += demo.stdout.read()
            assert demo.wait(60) == 130, said
        finally:
            demo.kill()
    assert "stopped by SIGINT" in said
    assert "Traceback" not in said
    # A line that is stopped in the middle may be told again.
    rows = set(re.findall(r"^ *\d+\.\d s  (ok  |FAIL) (.*)$", said, re.MULTILINE))
    assert [verdict for verdict, _ in rows] == ["ok  "] * 3, said
    assert "$ helm install netloom chart/netloom --namespace=netloom-system --create-namespace" in said
    assert len(re.findall(r"^ +node/n\d condition met$", said, re.MULTILINE)) == 3, said
