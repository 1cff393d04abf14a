"""`make conformance`: whether Kubernetes itself finds that a cluster's network by Netloom does what it has to do.

It runs Kubernetes' own conformance specs of SIG Network on a real cluster: three kubelets, wired by Netloom, with
kube-proxy and CoreDNS. Which there are is asked of the program that holds them; what came of them is what ginkgo
reports: a spec that did not run, or that skipped itself, has failed. Those of LEFT_OUT are not run.

Takes root. Ends with one line `RESULT {json}`; the exit status is 0 if all have passed that were to be run.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netloom_e2e import bench, binaries, kubelets, netloom_cluster, specs
from netloom_e2e.bench import Wrong
from netloom_e2e.progress import Progress
from netloom_e2e.specs import Outcome

LEFT_OUT: Mapping[str, str] = {}
"""Names of specs that cannot pass here for a reason outside of Netloom, and that reason, as in docs/conformance.md."""

REPORTS = Path(__file__).resolve().parents[2] / "dist" / "conformance"
_TAGS = re.compile(r"^\[sig-network\] | \[(Conformance|NodeConformance|LinuxOnly)\]")


def conformance(focus: str, network: str, at_once: int, minutes: float) -> dict[str, Any]:
    """All of it; what RESULT says. focus: a regular expression that names match. network: a manifest. Raises Wrong."""
    console = bench.console()
    kubelets.prepare()
    found = specs.listed(specs.CONFORMANCE)
    wanted = [name for name in found if re.search(focus, name) and name not in LEFT_OUT]
    left_out = {name: why for name, why in LEFT_OUT.items() if re.search(focus, name)}
    if unknown := LEFT_OUT.keys() - set(found):
        raise Wrong(f"left out, but there is no such spec: {', '.join(sorted(unknown))}")
    if not wanted:
        raise Wrong(f"no spec to run matches {focus!r}; there are:\n" + "\n".join(found))
    cluster = netloom_cluster.cluster(kubelets.prefix(), network=network, further=specs.images())
    began = time.monotonic()
    try:
        with cluster:
            console.print(f"three nodes with Netloom are Ready after {time.monotonic() - began:.0f} s")
            outcomes = _run(cluster, wanted, at_once, minutes)
    except AssertionError as error:  # with what the cluster looks like
        raise Wrong(str(error)) from error
    _tell(outcomes, left_out)
    passed = sum(outcome.passed for outcome in outcomes)
    result = {
        "kubernetes": binaries.KUBERNETES_VERSION,
        "specs": len(outcomes) + len(left_out),
        "passed": passed,
        "failed": len(outcomes) - passed,
        "left_out": len(left_out),
        "seconds": round(time.monotonic() - began, 1),
    }
    console.print(
        f"\n{passed} passed, {result['failed']} failed, {len(left_out)} left out, of {len(found)} conformance specs of "
        f"SIG Network in Kubernetes {binaries.KUBERNETES_VERSION}; {result['seconds']:.0f} s\nreports: {REPORTS}"
    )
    return result


def _run(cluster: kubelets.KubeletCluster, wanted: Sequence[str], at_once: int, minutes: float) -> list[Outcome]:
    progress = Progress(f"Running {len(wanted)} specs, {at_once} at a time")

    def told(ended: Sequence[Outcome]) -> None:
        failed = sum(not outcome.passed for outcome in ended)
        progress.show(f"{len(ended)} of {len(wanted)} have ended, {failed} failed")

    outcomes = specs.run(cluster, wanted, REPORTS, at_once=at_once, seconds=60 * minutes, told=told)
    progress.end("done")
    return outcomes


def _tell(outcomes: Sequence[Outcome], left_out: Mapping[str, str]) -> None:
    console = bench.console()
    for outcome in sorted(outcomes, key=lambda each: (not each.passed, each.name)):
        verdict = "passed" if outcome.passed else outcome.state.upper()
        console.print(f"{verdict:<8} {outcome.seconds:6.1f} s  {_TAGS.sub('', outcome.name)}", markup=False)
        if not outcome.passed:
            console.print("\n".join(f"    {line}" for line in outcome.why.splitlines()[:12]), markup=False)
    for name, why in left_out.items():
        console.print(f"left out           {_TAGS.sub('', name)}\n    {why}", markup=False)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description="Kubernetes' conformance specs of networks, on a cluster with Netloom."
    )
    parser.add_argument("--focus", default="", help="only those whose name matches this regular expression")
    parser.add_argument(
        "--network",
        type=Path,
        default=netloom_cluster.EXAMPLES / "tunnel-kubernetes.yaml",
        help="a NetloomNetwork's manifest, in IPAM mode kubernetes with pod CIDRs of 10.244.0.0/16",
    )
    parser.add_argument("--at-once", type=int, default=specs.AT_ONCE)
    parser.add_argument("--minutes", type=float, default=30.0, help="after which those that run are ended, and fail")
    options = parser.parse_args()
    found: dict[str, Any] = {}

    def judged() -> dict[str, Any]:
        network = options.network.read_text()
        found.update(conformance(options.focus, network, options.at_once, options.minutes))
        return found

    return bench.conclude("conformance", judged) or int(found["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
