"""What a bench reads beside its clock: the API server's own counts, its audit log, and a process's memory and CPU."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import time
from collections import Counter
from http.client import HTTPSConnection
from pathlib import Path
from typing import NamedTuple

from netloom_e2e import audit_log
from netloom_e2e.client import Client

_TICKS = os.sysconf("SC_CLK_TCK")
_WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
_SAMPLE = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

AUDIT_LISTS = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, users: [%s], verbs: [list]}
  - {level: None}
"""


class Write(NamedTuple):
    """One row of the API server's counts of writes."""

    group: str
    resource: str
    verb: str
    code: str


def writes(client: Client) -> Counter[Write]:
    """All writes that the API server has answered since it started, its own included."""
    text: str = client.request("GET", "/metrics", timeout=60)
    found: Counter[Write] = Counter()
    for labels, value in _SAMPLE.findall(text):
        label = dict(_LABEL.findall(labels))
        if label["verb"] in _WRITES:
            resource = "/".join(part for part in (label["resource"], label["subresource"]) if part)
            found[Write(label["group"], resource, label["verb"], label["code"])] += int(float(value))
    return found


class Lists:
    """The audit log of one user's lists, for when a process of that user first asked for anything.

    The API server's own time of receipt: exact to the microsecond, and free for all other requests.
    """

    def __init__(self, folder: Path, user: str) -> None:
        self._log = folder / "audit.log"
        self._policy = folder / "audit-policy.yaml"
        self._policy.write_text(AUDIT_LISTS % user)

    @property
    def flags(self) -> list[str]:
        """For kube-apiserver."""
        return [f"--audit-policy-file={self._policy}", f"--audit-log-path={self._log}"]

    def first(self, since: float) -> float:
        """When the user's first list after `since` arrived, both in seconds of the wall clock; 0 if none did yet."""
        received = [json.loads(line)["requestReceivedTimestamp"] for line in audit_log.lines(self._log)]
        times = [dt.datetime.fromisoformat(each).timestamp() for each in received]
        return min((each for each in times if each >= since), default=0.0)


class Counting:
    """How many objects of a kind there are, for some microseconds of the API server's time: a list of one object
    says how many remain. One connection is kept."""

    def __init__(self, connection: HTTPSConnection, path: str) -> None:
        self._connection = connection
        self._path = f"{path}?limit=1"

    def count(self) -> int:
        self._connection.request("GET", self._path, headers={"Accept": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"GET {self._path}: {answer}")
        return len(answer["items"]) + int(answer["metadata"].get("remainingItemCount", 0))

    def reach(self, wanted: int, began: float, deadline: float) -> float:
        """When that many were there. Asks seldom at first, and often towards the end: few polls, a sharp result."""
        self._connection.close()  # the API server has closed it, if it was idle for long; the next request opens it
        while (count := self.count()) < wanted:
            now = time.time()
            if now > deadline:
                raise TimeoutError(f"{count} of {wanted} {self._path} after {now - began:.0f} s")
            left = (now - began) / count * (wanted - count) if count else 0.05
            time.sleep(min(max(left / 3, 0.002), 1.0))
        return time.time()


class Usage(NamedTuple):
    """Of one process. Memory in MiB."""

    rss: float
    peak: float
    cpu_seconds: float


def usage(pid: int) -> Usage:
    """What the kernel says of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {key: int(value) for key, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE)}
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage(kib["VmRSS"] / 1024, kib["VmHWM"] / 1024, (int(fields[11]) + int(fields[12])) / _TICKS)
