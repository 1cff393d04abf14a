"""What kubelets would do with pods of a release, on a control plane that has none: their words are run here, with the
rights of their ServiceAccounts."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import account_kubeconfig
from netloom_e2e.lab import environment

_NETLOOM = Path(sys.executable).with_name("netloom")
_NOW = "2026-01-01T00:00:00Z"
_HOOK = "helm.sh/hook"
_LOOK_SECONDS = 0.1
_RUN_SECONDS = 120.0


def words(pod: Mapping[str, Any], mounts: Mapping[str, str | Path]) -> list[str]:
    """What its only container is started with, after `netloom`. mounts: where on this machine its volumes are, by
    name."""
    (container,) = pod["containers"]
    places = {each["mountPath"]: str(mounts[each["name"]]) for each in container.get("volumeMounts", ())}

    def here(word: str) -> str:
        option, equals, path = word.rpartition("=")
        return f"{option}{equals}{places.get(path, path)}"

    return [here(word) for word in (*container.get("command", ())[1:], *container.get("args", ()))]


class Hooks:
    """Jobs and Pods that Helm makes and waits for: each is run once. ran: what each printed, by its name."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.ran: dict[str, str] = {}
        self._plane = plane
        self._namespace = namespace
        self._folder = folder
        self._seen: set[str] = set()
        self._ended = threading.Event()

    @contextmanager
    def served(self) -> Iterator[Hooks]:
        """While it lasts. Raises what a hook raised."""
        failures: list[Exception] = []

        def serve() -> None:
            try:
                while not self._ended.wait(_LOOK_SECONDS):
                    self._look()
            except Exception as failure:  # noqa: BLE001 it is raised in the thread that waits
                failures.append(failure)

        self._ended.clear()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
        for failure in failures:
            raise failure

    def _look(self) -> None:
        for path in (f"/apis/batch/v1/namespaces/{self._namespace}/jobs", f"/api/v1/namespaces/{self._namespace}/pods"):
            for each in self._plane.client.request("GET", path)["items"]:
                meta = each["metadata"]
                if _HOOK in meta.get("annotations", {}) and meta["uid"] not in self._seen:
                    self._seen.add(meta["uid"])
                    self._run(f"{path}/{meta['name']}", meta["name"], each["spec"])

    def _run(self, path: str, name: str, spec: Mapping[str, Any]) -> None:
        job = "template" in spec
        pod = spec["template"]["spec"] if job else spec
        kubeconfig = account_kubeconfig(self._plane, self._namespace, pod["serviceAccountName"])
        env = environment() | {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": self._namespace}
        command = [str(_NETLOOM), *words(pod, self._volumes(pod))]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_RUN_SECONDS, check=False)
        self.ran[name] = done.stdout + done.stderr
        status = _job_status(done.returncode) if job else {"phase": "Failed" if done.returncode else "Succeeded"}
        with suppress(ApiFailure):  # Helm may have given up
            self._plane.client.request("PATCH", f"{path}/status", {"status": status})

    def _volumes(self, pod: Mapping[str, Any]) -> dict[str, Path]:
        found = {}
        for volume in pod.get("volumes", ()):
            folder = found[volume["name"]] = self._folder / volume["name"]
            folder.mkdir(exist_ok=True)
            name = volume["configMap"]["name"]
            config = self._plane.client.request("GET", f"/api/v1/namespaces/{self._namespace}/configmaps/{name}")
            for file, text in config["data"].items():
                (folder / file).write_text(text)
        return found


def _job_status(code: int) -> dict[str, Any]:
    types = ("FailureTarget", "Failed") if code else ("SuccessCriteriaMet", "Complete")
    ended = [{"type": each, "status": "True", "lastTransitionTime": _NOW} for each in types]
    counted = {"failed": 1} if code else {"succeeded": 1, "completionTime": _NOW}
    return {"startTime": _NOW, "conditions": ended, **counted}
