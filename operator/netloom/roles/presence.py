"""Whether an agent runs here: it holds an abstract Unix socket of a known name as long as it lives.

Such a name belongs to a network namespace, which is just what an agent looks after; it needs no directory that two
containers share, and goes with the process, however that ends.
"""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import structlog

log = structlog.get_logger(__name__)

NAME = "\0netloom-agent"


@contextlib.asynccontextmanager
async def shown() -> AsyncIterator[None]:
    """While the context lasts, `sentence` tells of this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(NAME)
            holder.listen()
        except OSError as error:
            log.warning("`netloom cleanup` will not see that this agent runs", error=error.strerror, other=sentence())
        yield


def sentence() -> str:
    """What an agent that runs in this network namespace would do to a cleanup; "" if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(NAME)
            pid, _uid, _gid = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except BlockingIOError:  # so many have asked
            pid = 0
        except OSError:
            return ""
    process = f"process {pid}" if pid else "in another container"
    return f"An agent runs on this machine ({process}), and would put everything back at once."
