"""The guard's HTTPS server with nothing behind it: `python -m netloom_e2e.constant PORT CERTIFICATE KEY`.

It follows no objects, decides nothing, and allows all but the pool `default`, by which a bench sees that it is asked.
What it adds to a write is what Python, TLS and HTTP cost there: no guard on this server can add less.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from netloom.api.admission import AdmissionRequest
from netloom.api.problem import Problem
from netloom.guard.verdict import ALLOWED, Ruling
from netloom.runtime import log, loop
from netloom.webhook.server import serve
from netloom.webhook.tls import ServingTLS

_REFUSED = Ruling(refusals=(Problem("CiliumPodIPPool default", "", "", "Constant", "refused, always.", ""),))


def decide(request: AdmissionRequest) -> Ruling:
    """Without looking at anything but the name."""
    return _REFUSED if request.name == "default" else ALLOWED


async def main(port: int, certificate: Path, key: Path) -> None:
    """Until it is killed."""
    tls = ServingTLS()
    tls.present(certificate.read_text(), key.read_text())
    async with serve(decide, tls.context, "127.0.0.1", port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    log.configure("console", "info")
    loop.run(main(int(sys.argv[1]), *map(Path, sys.argv[2:4])))
