"""A port of this machine's loopback that leads into a namespace: for kubectl on the machine, where a cluster is a lab.

`python -m netloom_e2e.host_port NAMESPACE ADDRESS PORT` listens on the same port, and serves until it is killed.
"""

import signal
import socket
import sys

from netloom_e2e.namespaces import Namespace
from netloom_e2e.relay import Relay


def serve(namespace: str, address: str, port: int) -> None:
    """Until a signal comes. A listener stays in the namespace it was made in; connections are made in the other."""
    listener = socket.create_server(("127.0.0.1", port))
    Namespace(namespace).move_thread()
    with Relay(address, port, listener=listener).running():
        signal.pause()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
