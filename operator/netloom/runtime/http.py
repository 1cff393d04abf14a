"""aiohttp, without what it does when it is imported: it reads all certificates that the system trusts, twice (60 ms of
CPU time, 2.7 MiB), for connections that bring no TLS context of their own. Ours to an API server do, and the others are
no TLS; here such a connection trusts nobody.

To be imported from here everywhere, and by whoever imports a library that imports it: it counts who comes first.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _trusting_nobody() -> Iterator[None]:
    ssl.SSLContext.set_default_verify_paths = lambda _: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the inherited one is there again


with _trusting_nobody():
    import aiohttp
    from aiohttp import web

__all__ = ["aiohttp", "web"]
