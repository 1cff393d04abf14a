"""The framework of all roles.

As it is imported, aiohttp reads every CA that the system trusts (2.5 MiB) into a context for connections that bring
none. All connections here bring one, so it gets an empty context, by which nobody is trusted.
"""

import ssl

_create_default_context = ssl.create_default_context
ssl.create_default_context = lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
try:
    import aiohttp  # noqa: F401 - once it is imported, it stays so
finally:
    ssl.create_default_context = _create_default_context
