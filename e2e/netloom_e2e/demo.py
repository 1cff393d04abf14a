"""`make demo`: from `kubectl apply` to a mesh that pings, step by step, on a real control plane and a real kernel.

Nodes are network namespaces of this machine; an operator and an agent per node run as processes, as they would in a
cluster. Every step says what it does, what it expects and what it saw; the exit status is 1 if one differs.

A control plane that was never built here is built beside the first part, which needs none (`demo_directory`). The build
is started before anything enters a namespace, and has ended before this process does.
"""

import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from netloom_e2e import binaries
from netloom_e2e.building import building
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.demo_cluster import NETWORK, Demo
from netloom_e2e.demo_directory import DirectoryMesh
from netloom_e2e.lab import Lab
from netloom_e2e.mesh import NETLOOM, PROTOCOL
from netloom_e2e.report import Report
from netloom_e2e.stage import SIGNALS, catch_signals, perform

PREFIX = "nldemo"


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


def _stay(status: int, demo: Demo, report: Report) -> None:
    """With KEEP=1: when the story is over, `status` (a descriptor) gets the exit status, and all stays up."""
    _keep(demo)
    os.write(status, bytes([1 if report.failed else 0]))
    _let_go_of_terminal()
    signal.pause()


def _story(stack: ExitStack, folder: Path, report: Report) -> Demo:
    """All parts, in order. What is on the stack afterwards keeps the cluster up."""
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


def main() -> int:
    """Run the demo; the exit status.

    With KEEP=1 it runs in a child in a session of its own: the child stays as the parent of all that stays up, while
    this process ends with the status of the story.
    """
    if not os.environ.get("KEEP"):
        catch_signals()
        return perform("demo", _story)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(read)
        catch_signals()
        return perform("demo", _story, partial(_stay, write))
    os.close(write)
    for signum in SIGNALS:
        signal.signal(signum, lambda number, frame: os.kill(child, number))
    status = os.read(read, 1)
    return status[0] if status else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
