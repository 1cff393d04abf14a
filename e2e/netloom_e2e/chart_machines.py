"""Machines of an API server that has no kubelets: they end pods that are deleted, and run those of an uninstallation.

The Job's command runs here, by the rights of its ServiceAccount; what cleans a machine has cleaned it once it is there.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import account_kubeconfig
from netloom_e2e.namespaces import environment

NETLOOM = Path(sys.executable).with_name("netloom")
JOB = "netloom-uninstall"
CLEANUP = "netloom-cleanup"
CONTROLLERS = ("*", "-node-lifecycle-controller", "-taint-eviction-controller", "-node-ipam-controller")
"""Of the controller manager: none that would find these machines silent."""
_PODS = "/api/v1/pods"
_SECONDS = 0.1


class Machines(threading.Thread):
    """kubelets: names of machines, and whether their kubelets live. Not cleaned as long as it is in `dirty`, with what
    is said of it. said: what runs of the Job printed, the last one last."""

    def __init__(self, plane: ControlPlane, kubelets: Mapping[str, bool], taint: str = "") -> None:
        super().__init__(daemon=True)
        self.plane = plane
        self.kubelets = dict(kubelets)
        self.dirty: dict[str, str] = {}
        self.cleaned: list[str] = []
        self.said: list[str] = []
        self.errors: list[str] = []
        self._taint = taint
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        for name, lives in self.kubelets.items():
            taints = [{"key": self._taint, "effect": "NoSchedule"}] if self._taint else []
            node = {"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}, "spec": {"taints": taints}}
            self.plane.client.request("POST", "/api/v1/nodes", node)
            ready = {"type": "Ready", "status": "True" if lives else "Unknown"}
            self.plane.client.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join(120)
        for name in self.kubelets:
            self.plane.client.request("DELETE", f"/api/v1/nodes/{name}")

    def run(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                for pod in self.plane.client.request("GET", _PODS)["items"]:
                    self._look_after(pod)
            except (ApiFailure, OSError) as error:  # somebody deleted the pod, or the API server is being killed
                self.errors.append(str(error))

    def _look_after(self, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        name, phase = meta.get("labels", {}).get("app.kubernetes.io/name"), pod.get("status", {}).get("phase")
        node = pod["spec"].get("nodeName", "")
        if meta.get("deletionTimestamp"):
            if self.kubelets.get(node, True):
                with suppress(ApiFailure):
                    self.plane.client.request("DELETE", path, {"gracePeriodSeconds": 0})
        elif name == JOB and phase == "Pending":
            self._run_job(pod, path)
        elif name == CLEANUP and phase == "Pending" and self.kubelets.get(node):
            if node in self.dirty:
                waiting = {"reason": "ImagePullBackOff", "message": self.dirty[node]}
                self._tell(path, "Pending", {"waiting": waiting})
            else:
                self.cleaned.append(node)
                self._tell(path, "Succeeded", {"terminated": {"exitCode": 0, "message": f"nothing is left of {node}"}})

    def _run_job(self, pod: dict[str, Any], path: str) -> None:
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        kubeconfig = account_kubeconfig(self.plane, namespace, spec["serviceAccountName"])
        env = environment() | {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": namespace}
        command = [NETLOOM, *spec["containers"][0]["args"]]
        threading.Thread(target=self._run, args=(command, env, path), daemon=True).start()
        self._tell(path, "Running", {"running": {}})

    def _run(self, command: list[str | Path], env: dict[str, str], path: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
        self.said.append(f"{done.stdout}{done.stderr}")
        self._tell(path, "Failed" if done.returncode else "Succeeded", {"terminated": {"exitCode": done.returncode}})

    def _tell(self, path: str, phase: str, state: dict[str, Any]) -> None:
        status = {"name": "c", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        with suppress(ApiFailure):
            self.plane.client.request(
                "PATCH", f"{path}/status", {"status": {"phase": phase, "containerStatuses": [status]}}
            )
