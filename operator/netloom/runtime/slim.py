"""The parts of kubernetes-asyncio that Netloom uses, without its 700 model classes.

Both package `__init__`s of kubernetes-asyncio import every model: 1,260 modules, 0.3 s, and 63 MiB that an agent on
every node of a cluster would carry for nothing. Here both are shells, and `client.models` is an empty module, while
configuration, authentication and ApiClient are imported: 5 MiB.

urllib3, of which its configuration uses one function for one way to log in, is imported when it is asked for that; so
are dateutil (2 MiB), by which ApiClient would read the times in models, its pool of threads (0.5 MiB), and the standard
library's client (0.2 MiB), which it tells to log nothing.
"""

import os

from netloom.runtime import http as _http  # noqa: F401 - before kubernetes-asyncio imports aiohttp
from netloom.shells import imported_later, shells

_HOMELESS = os.path.expanduser("~") == "~"  # noqa: PTH111 - pathlib's raises an error then
"""The user has no home, and kubernetes-asyncio asks for it when it is imported."""
if _HOMELESS:
    os.environ["HOME"] = "/"

_LATER: dict[str, tuple[str, ...]] = {
    "urllib3": (),
    "http.client": ("HTTPConnection",),
    "dateutil.parser": ("parse",),
    "multiprocessing.pool": ("ThreadPool",),
}

with shells("kubernetes_asyncio", "client", stand_ins={"client.models": {}}), imported_later(_LATER):
    from kubernetes_asyncio import client as _client
    from kubernetes_asyncio.client.api_client import ApiClient
    from kubernetes_asyncio.client.configuration import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject

    # kube_config takes these two from the package, whose __init__ has not run.
    _client.Configuration, _client.ApiClient = Configuration, ApiClient
    from kubernetes_asyncio.config.kube_config import ConfigNode, ExecProvider, KubeConfigLoader, KubeConfigMerger

if _HOMELESS:
    del os.environ["HOME"]

__all__ = [
    "ApiClient",
    "ConfigNode",
    "Configuration",
    "ExecProvider",
    "KubeConfigLoader",
    "KubeConfigMerger",
    "RESTClientObject",
]
