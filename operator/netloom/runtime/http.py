"""aiohttp, without what it does when it is imported.

It reads all certificates that the system trusts, twice (60 ms of CPU time, 2.7 MiB), for connections that bring no TLS
context of their own. Ours to an API server do, and the others are no TLS; here such a connection trusts nobody. And it
reads the system's table of media types (10 ms, 0.3 MiB), for files: nobody uses it here. What it imports (2 MiB) for a
command line of its own, proxies of the environment, pages in HTML, media types with parameters, and tracing is imported
when it is asked for. Lists that are frozen are not so many that they need the C++ library (1 MiB).

To be imported from here everywhere, and by whoever imports a library that imports it: it counts who comes first.
"""

import mimetypes
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from netloom.shells import imported_later

_PLAIN_LISTS = "FROZENLIST_NO_EXTENSIONS"


@contextmanager
def _reading_nothing() -> Iterator[None]:
    ssl.SSLContext.set_default_verify_paths = lambda _: None  # type: ignore[method-assign,assignment]
    tables, mimetypes.knownfiles = mimetypes.knownfiles, []
    plain = os.environ.get(_PLAIN_LISTS)
    os.environ[_PLAIN_LISTS] = "1"
    try:
        yield
    finally:
        del os.environ[_PLAIN_LISTS]
        if plain is not None:
            os.environ[_PLAIN_LISTS] = plain
        mimetypes.knownfiles = tables
        del ssl.SSLContext.set_default_verify_paths  # the inherited one is there again


_LATER = {
    "aiohttp.tracing": ("Trace*",),
    "argparse": ("ArgumentParser",),
    "attr.validators": (),
    "email.parser": ("HeaderParser",),
    "email.policy": ("HTTP",),
    "html": ("escape",),
    "pickle": ("_Unpickler",),  # of cookie jars in files: without it they cannot be loaded
    "urllib.request": ("getproxies", "proxy_bypass"),
}

with _reading_nothing(), imported_later(_LATER):
    import aiohttp
    from aiohttp import web

__all__ = ["aiohttp", "web"]
