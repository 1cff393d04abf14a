"""The agent of a node that has no peers, from manifests: for benches of what a node does for its own pods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from netloom_e2e.lab import Machine
from netloom_e2e.mesh import NETLOOM

_MANIFESTS = """\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {{name: default}}
spec: {{ipam: {{mode: kubernetes}}}}
---
apiVersion: netloom.dev/v1alpha1
kind: NetloomNode
metadata: {{name: n1}}
spec:
  addresses: [{{type: InternalIP, ip: {address}}}]
  ipam: {{mode: kubernetes, podCIDRs: {cidrs}}}
"""


def started(
    stack: ExitStack, machine: Machine, folder: Path, cidrs: Sequence[str], run_dir: Path, *flags: str
) -> subprocess.Popen[str]:
    """Its process, which ends with the stack. folder: for its manifests and its log."""
    manifests = folder / "manifests"
    manifests.mkdir()
    (manifests / "all.yaml").write_text(_MANIFESTS.format(address=machine.address, cidrs=json.dumps(list(cidrs))))
    command = [str(NETLOOM), "agent", "--manifests", str(manifests), "--node-name", "n1", "--run-dir", str(run_dir)]
    with (folder / "agent.log").open("w") as log:
        agent = machine.popen([*command, *flags], stdout=log)
    stack.callback(agent.wait, 30)
    stack.callback(agent.terminate)
    return agent
