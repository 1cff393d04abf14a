"""Lets the nodes of a lab reach a TCP port of this machine: the API server that the tests share.

A socket belongs to the network namespace it was made in, for ever. So a listener made inside the switch's namespace
can be served by an event loop outside of it, and the connections onward are made outside.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from netloom_e2e.lab import Lab
from netloom_e2e.relay import Relay


@contextmanager
def gateway(lab: Lab, port: int, *, to_host: str = "127.0.0.1") -> Iterator[None]:
    """While it lasts, the lab's nodes reach `to_host`:`port` of the caller's namespace at `lab.address`:`port`."""
    listener = lab.switch.inside(lambda: socket.create_server((lab.address, port)))
    with Relay(to_host, port, listener=listener).running():
        yield
