"""Sends requests at a fixed rate and times each from the moment at which it was due: a stall is not forgiven.

A client that waits for one answer before it sends the next request measures a slow server kindly ("coordinated
omission"). This one is a process of its own: `python -m netloom_e2e.paced --kubeconfig FILE --rate 200 <REQUESTS`, one
request per line as JSON (see `Request`); it prints what it saw as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop
import yaml

_CONNECTIONS = 64
_REQUEST_SECONDS = 30.0
_WARM_UP = 20
"""Requests that are not counted: they open the connections, of this client and of the server to a webhook."""


_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')


class Request(NamedTuple):
    """One request of a plan."""

    method: str
    path: str
    body: str
    content_type: str = "application/merge-patch+json"


class Answer(NamedTuple):
    """When a request was sent and its answer had ended, in seconds since the first was due; and the resourceVersion in
    it, "" if there is none."""

    sent: float
    ended: float
    version: str


class Seen(NamedTuple):
    """Seconds from when each request was due to the end of its answer, and how many answers had which status: without
    those that warm up. `answers`: to all of the plan, in its order."""

    seconds: list[float]
    statuses: dict[str, int]
    answers: list[Answer]


def paced(kubeconfig: Path, requests: Sequence[Request], rate: float) -> Seen:
    """Runs the client to its end. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "netloom_e2e.paced", f"--kubeconfig={kubeconfig}", f"--rate={rate}"]
    lines = "".join(f"{json.dumps(request)}\n" for request in requests)
    limit = len(requests) / rate + 2 * _REQUEST_SECONDS
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
    seconds, statuses, answers = json.loads(done.stdout)
    return Seen(seconds, statuses, [Answer(*each) for each in answers])


async def _send(kubeconfig: Path, requests: Sequence[Request], rate: float) -> Seen:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
    tls.load_cert_chain(user["client-certificate"], user["client-key"])
    seconds: list[float] = []
    statuses: dict[str, int] = {}
    answers: dict[int, Answer] = {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=tls),
        timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
    ) as session:

        async def send(number: int, request: Request, due: float) -> None:
            sent = time.perf_counter()
            headers = {"Content-Type": request.content_type}
            async with session.request(
                request.method, cluster["server"] + request.path, data=request.body, headers=headers
            ) as response:
                body = await response.read()
                status = str(response.status)
            ended = time.perf_counter()
            version = _VERSION.search(body)
            answers[number] = Answer(sent - began, ended - began, version[1].decode() if version else "")
            if number >= _WARM_UP:
                seconds.append(ended - due)
                statuses[status] = statuses.get(status, 0) + 1

        began = time.perf_counter() + 0.1
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(requests):
                due = began + number / rate
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(send(number, request, due))
    return Seen(seconds, statuses, [answers[number] for number in range(len(requests))])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Sends requests at a fixed rate.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    requests = [Request(*json.loads(line)) for line in sys.stdin]
    gc.disable()  # it lives for seconds, and a collection would be in the tail of what it measures
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_send(options.kubeconfig, requests, options.rate))))


if __name__ == "__main__":
    main()
