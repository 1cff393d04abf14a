"""Pods that fill a node of a real cluster and are all deleted again, and what they leave there: round by round."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.addresses import AddressSocket
from netloom_e2e.client import ApiFailure
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.mesh import facts
from netloom_e2e.pod_traces import Traces, traces

NODE = "n1"
_FOLDERS = ("run/netloom", "var/lib/netloom", "var/lib/cni", "run/netns", "etc/cni/net.d", "opt/cni/bin")
_DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd}
spec:
  replicas: 0
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers: [{name: pause, image: "${pause}", imagePullPolicy: Never}]
"""
_SECONDS = 600.0
_QUIET_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Round:
    """started, ended: seconds until all pods were Ready, and until nothing of them was there. left: `Traces.left`."""

    started: float
    ended: float
    left: list[str]
    after: Traces


class Soak:
    """The pods of one node, in a cluster that Netloom wires and that nothing else is done to."""

    def __init__(self, bed: KubeletCluster) -> None:
        self.bed = bed
        self.node = bed.nodes[NODE]
        bed.apply(_DEPLOYMENT)
        self._folders = [self.node.root / folder for folder in _FOLDERS]
        self._socket = AddressSocket(self.node.root / "run/netloom/agent.sock")
        self._agent = self._agent_process()
        self.before = self.traces()

    def rounds(self, count: int, pods: int) -> Iterator[Round]:
        """So many times: all come, all go."""
        for _ in range(count):
            started = self._scale(pods)
            has = facts(self.node.machine)["endpoints"]["pods"]
            assert has >= pods, f"{pods} pods are Ready, and the agent knows of {has}"
            began = time.monotonic()
            self._scale(0)
            after = self._settled()
            yield Round(started, time.monotonic() - began, after.left(self.before), after)

    def traces(self) -> Traces:
        return traces(self.node.machine, self._agent, self._socket, self._folders)

    def _settled(self) -> Traces:
        """What there is when nothing is left, or when there has been time enough for that."""
        deadline = time.monotonic() + _QUIET_SECONDS
        while (found := self.traces()).left(self.before) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _scale(self, pods: int) -> float:
        """Seconds until so many are Ready, and no others there."""
        began = time.monotonic()
        path = "/apis/apps/v1/namespaces/default/deployments/crowd"
        self.bed.plane.client.request("PATCH", f"{path}/scale", {"spec": {"replicas": pods}})

        def there() -> bool:
            with suppress(ApiFailure):
                status = self.bed.plane.client.request("GET", path)["status"]
                if status.get("readyReplicas", 0) != pods:
                    return False
                found = self.bed.plane.client.request("GET", "/api/v1/namespaces/default/pods?labelSelector=app=crowd")
                return len(found["items"]) == pods
            return False

        self.bed.wait(f"{pods} pods", there, deadline=_SECONDS)
        return time.monotonic() - began

    def _agent_process(self) -> int:
        path = "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io/name=netloom-agent"
        (pod,) = self.bed.plane.client.request("GET", path)["items"]
        for pid in self.node.pod_processes(pod["metadata"]["uid"]):
            if b"netloom" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise LookupError(f"no process of {pod['metadata']['name']} is Netloom's")
