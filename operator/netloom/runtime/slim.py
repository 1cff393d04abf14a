"""The parts of kubernetes-asyncio that Netloom uses, without its 700 model classes.

Both package `__init__`s of kubernetes-asyncio import every model: 1,260 modules, 0.3 s, and 63 MiB that an agent on
every node of a cluster would carry for nothing. Here both are shells, and `client.models` is an empty module, while
configuration, authentication and ApiClient are imported: 5 MiB.

urllib3, of which its configuration uses one function for one way to log in, is imported when it is asked for that; so
are dateutil (2 MiB), by which ApiClient would read the times in models, and its pool of threads (0.5 MiB).
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from netloom.shells import shell, shells


@contextmanager
def _imported_later() -> Iterator[None]:
    stand_ins = [_later("urllib3"), _later("dateutil.parser", "parse"), _later("multiprocessing.pool", "ThreadPool")]
    try:
        yield
    finally:
        for stand_in in stand_ins:
            if stand_in and sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]


def _later(name: str, *functions: str) -> types.ModuleType | None:
    """Something in a module's place that imports the module once an attribute of it is asked for, or once one of the
    functions is called: those may be taken out of it before."""
    if name in sys.modules:
        return None

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import system asks every module
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(importlib.import_module(name), attribute)

    def called_later(function: str) -> Callable[..., Any]:
        return lambda *arguments, **options: real(function)(*arguments, **options)

    module = sys.modules[name] = shell(name)
    module.__getattr__ = real  # type: ignore[method-assign]
    for function in functions:
        setattr(module, function, called_later(function))
    return module


with shells("kubernetes_asyncio", "client", stand_ins={"client.models": {}}), _imported_later():
    from kubernetes_asyncio import client as _client
    from kubernetes_asyncio.client.api_client import ApiClient
    from kubernetes_asyncio.client.configuration import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject

    # kube_config takes these two from the package, whose __init__ has not run.
    _client.Configuration, _client.ApiClient = Configuration, ApiClient
    from kubernetes_asyncio.config.kube_config import ConfigNode, ExecProvider, KubeConfigLoader, KubeConfigMerger

__all__ = [
    "ApiClient",
    "ConfigNode",
    "Configuration",
    "ExecProvider",
    "KubeConfigLoader",
    "KubeConfigMerger",
    "RESTClientObject",
]
