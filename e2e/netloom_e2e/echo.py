"""What address does the other side see? A UDP server that answers each packet with the address it came from.

with Echo(lab.add_outside(), tmp_path) as echo:
    assert ask(pod, "192.0.2.10") == node.address   # masqueraded
    assert echo.seen() == [node.address]            # whether or not the answer found its way back
"""

import selectors
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from netloom_e2e.namespaces import Namespace, wait_for

PORT = 7007
_CLIENT = """
import socket, sys
address, port, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(wait)
    client.sendto(b"who am I?", (address, port))
    try:
        print(client.recv(100).decode())
    except TimeoutError:
        pass
"""


class Echo:
    """The server, in a namespace, on all its addresses."""

    def __init__(self, place: Namespace, folder: Path) -> None:
        self._place = place
        self._log = folder / f"echo-{place.name}.log"
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Echo":
        with self._log.open("w") as log:
            self._server = self._place.popen([sys.executable, "-m", "netloom_e2e.echo"], stdout=log)
        wait_for("the echo server", lambda: self._log.read_text().startswith("listening\n"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.kill()
            self._server.wait()

    def seen(self) -> list[str]:
        """The addresses that packets came from, in order, repetitions included."""
        return self._log.read_text().splitlines()[1:]


def ask(place: Namespace, address: str, *, wait: float = 1.0) -> str:
    """The address under which the server at `address` sees us; "" if no answer comes in `wait` seconds."""
    return place.run(sys.executable, "-SE", "-c", _CLIENT, address, str(PORT), str(wait)).strip()


def serve() -> None:
    """Answer for ever."""
    selector = selectors.DefaultSelector()
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        server = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((any_address, PORT))
        selector.register(server, selectors.EVENT_READ, server)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            _, peer = key.data.recvfrom(100)
            print(peer[0], flush=True)
            with suppress(OSError):  # no way back: that is for the test to judge
                key.data.sendto(peer[0].encode(), peer)


if __name__ == "__main__":
    serve()
