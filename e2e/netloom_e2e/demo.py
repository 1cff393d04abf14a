"""`make demo`: from `kubectl apply` to a mesh that pings, step by step, on a real control plane and a real kernel.

Nodes are network namespaces of this machine; an operator and an agent per node run as processes, as they would in a
cluster. Every step says what it does, what it expects and what it saw; the exit status is 1 if one differs.

A control plane that was never built here is built beside the first part, which needs none (`demo_directory`). The build
is started before anything enters a namespace, and has ended before this process does.
"""

import fcntl
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.markup import escape

from netloom_e2e import binaries, processes
from netloom_e2e.bench import TROUBLES
from netloom_e2e.binaries import BinariesError
from netloom_e2e.building import building
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.demo_cluster import NETWORK, Demo
from netloom_e2e.demo_directory import DirectoryMesh
from netloom_e2e.lab import Lab
from netloom_e2e.mesh import NETLOOM, PROTOCOL
from netloom_e2e.report import Report

PREFIX = "nldemo"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """One of SIGNALS."""


def _keep(demo: Demo) -> None:
    """Tell how to look around, and stay as the parent of everything until somebody ends it."""
    lab, plane = demo.lab, demo.plane
    enter = f"nsenter --net=/run/netns/{lab.switch.name}"
    demo.report.console.print(
        f"""
It stays up, as KEEP=1 asked. To look around:
  {enter} {binaries.find("kubectl")} --kubeconfig {plane.kubeconfig("admin")} get nlnet,nln
  {lab.nodes["n1"].enter_line} {NETLOOM} status --kubeconfig {plane.kubeconfig("admin")}
  ip -n {lab.prefix}-n1 route show proto {PROTOCOL};  ip -n {lab.prefix}-n1 nexthop;  ip -n {lab.prefix}-n1 neigh
  {lab.nodes["n1"].pods["pod"].enter_line} ping {lab.nodes["n2"].pods["pod"].address}
  tail -f {demo.state}/*.log
To take it down:
  kill {os.getpid()}"""
    )


def _let_go_of_terminal() -> None:
    """Whoever reads our output shall see its end, though we stay."""
    sys.stdout.flush()
    with Path(os.devnull).open("r+") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)


def _run(told: Callable[[int], object]) -> int:
    """Run the demo; the exit status. With KEEP=1, `told` gets the status when the story is over, and all stays up."""
    report = Report()
    with ExitStack() as stack:
        folder: Path | None = None
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netloom-demo-")))
            demo = _story(stack, folder, report)
            report.verdict()
            if os.environ.get("KEEP"):
                _keep(demo)
                told(1 if report.failed else 0)
                _let_go_of_terminal()
                signal.pause()
        except Stopped as name:
            report.console.print(f"\nstopped by {name}; cleaning up")
            return 130
        except Exception as error:  # noqa: BLE001 (who tries Netloom is not to read a traceback)
            report.saw("the demo could not go on", _sentence(error), False)
            if folder and not isinstance(error, BinariesError):
                _show_logs(folder, report)
            report.verdict()
        finally:
            _catch_signals(ignore=True)  # taking it down takes a second, and is not to be broken off
    return 1 if report.failed else 0


def _story(stack: ExitStack, folder: Path, report: Report) -> Demo:
    """All parts, in order. What is on the stack afterwards keeps the cluster up."""
    stack.enter_context(_alone())
    with ExitStack() as beside:
        build = None if binaries.present() else beside.enter_context(building("control-plane"))
        lab = stack.enter_context(Lab(PREFIX))
        first = DirectoryMesh(lab, folder / "manifests", NETWORK, report)
        first.tell()
        if build:
            first.go_on_until(build)
        first.end()
    binaries.prepare()
    lab.enter_switch()
    plane = stack.enter_context(ControlPlane(bind=lab.address))
    demo = Demo(lab, plane, folder, report)
    demo.tell()
    return demo


def _show_logs(folder: Path, report: Report) -> None:
    for log in sorted(folder.glob("*.log")):
        tail = "".join(log.read_text().splitlines(keepends=True)[-15:])
        report.console.print(f"--- end of {log.name}\n{escape(tail)}")


@contextmanager
def _alone() -> Iterator[None]:
    """Two demos would take each other's namespaces away. Raises RuntimeError, which names the other."""
    with (processes.root() / "demo.lock").open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another demo is up: `kill {lock.read().strip()}` takes it down") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _sentence(error: Exception) -> str:
    """What went wrong; where nobody has thought of it, with a file for the report of the fault."""
    if isinstance(error, (*TROUBLES, ValueError)):
        return str(error)
    with tempfile.NamedTemporaryFile("w", prefix="netloom-fault-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"a fault of the demo itself, please report it with {file.name}: {type(error).__name__}: {error}"


def _catch_signals(*, ignore: bool = False) -> None:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(signum).name)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup
            signal.signal(number, signal.SIG_IGN if ignore else stop)


def main() -> int:
    """Run the demo; the exit status.

    With KEEP=1 it runs in a child in a session of its own: the child stays as the parent of all that stays up, while
    this process ends with the status of the story.
    """
    if not os.environ.get("KEEP"):
        _catch_signals()
        return _run(told=lambda status: None)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(read)
        _catch_signals()
        return _run(told=lambda status: os.write(write, bytes([status])))
    os.close(write)
    for signum in SIGNALS:
        signal.signal(signum, lambda number, frame: os.kill(child, number))
    status = os.read(read, 1)
    return status[0] if status else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
