"""Where the API server is and who we are: kubeconfig or service account, kept fresh while the process runs.

kubernetes-asyncio reads both. It renews a service account's token (through `Configuration.refresh_api_key_hook`,
once a minute), but what a kubeconfig names it reads once: an exec plugin's token that ends after 15 minutes, a token
file that is replaced, an OIDC token. An operator lives longer than those, so the same hook is set for a kubeconfig,
too, and loads the credentials again with the loader that loaded them first.
"""

import asyncio
import datetime as dt
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import yaml

from netloom.runtime import slim
from netloom.runtime.errors import ConfigError

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 60.0
"""How often credentials that can change (token file, OIDC, expiring exec token) are looked at."""
REFUSED_SECONDS = 10.0
"""After a 401, credentials are loaded again at once, but not more often than this."""
PLUGIN_SECONDS = 30.0
"""How long a credential plugin may take."""
EXPIRY_MARGIN = dt.timedelta(minutes=2)


class Credentials:
    """A kubernetes-asyncio Configuration whose bearer token stays valid.

    `reload` loads the credentials again into the configuration; None where the configuration does it by itself (a
    service account) or nothing can change (a client certificate, a fixed token).
    """

    def __init__(
        self,
        configuration: Any,
        reload: Callable[[], Awaitable[None]] | None = None,
        expiry: Callable[[], dt.datetime | None] = lambda: None,
        *,
        changes_silently: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.configuration = configuration
        self._reload = reload
        self._expiry = expiry
        self._changes_silently = changes_silently
        self._clock = clock
        self._next_look = clock() + REFRESH_SECONDS
        self._next_refused_reload = clock()
        self._lock = asyncio.Lock()
        if reload is not None:
            configuration.refresh_api_key_hook = self._hook

    @property
    def host(self) -> str:
        """Base URL of the API server, without a slash at the end."""
        host: str = self.configuration.host
        return host.rstrip("/")

    async def authorization(self) -> str:
        """The Authorization header's value for a request that is sent now; "" where there is none."""
        if "BearerToken" in self.configuration.api_key:
            try:
                await self.configuration.get_api_key_with_prefix("BearerToken")
            except (OSError, slim.ConfigException) as error:
                log.warning("service account token not read again", error=str(error))
        return self._current()

    def _current(self) -> str:
        # A token file usually ends in a newline, which has no place in a header.
        value: str = self.configuration.api_key.get("BearerToken", "")
        return value.strip()

    async def refused(self, sent: str) -> bool:
        """The server answered 401 to `sent`: load the credentials again. True if there is another one to try."""
        async with self._lock:
            now = self._clock()
            if self._current() == sent and self._reload is not None and now >= self._next_refused_reload:
                self._next_refused_reload = now + REFUSED_SECONDS
                await self._renew(self._reload)
            return self._current() != sent

    async def _hook(self, _configuration: Any) -> None:
        """Called by the configuration for every request."""
        if self._clock() < self._next_look or self._reload is None:
            return
        async with self._lock:
            if self._clock() < self._next_look:
                return
            self._next_look = self._clock() + REFRESH_SECONDS
            expiry = self._expiry()
            ends = expiry is not None and expiry - EXPIRY_MARGIN <= dt.datetime.now(dt.UTC)
            if ends or self._changes_silently:
                await self._renew(self._reload)

    async def _renew(self, reload: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(PLUGIN_SECONDS):
                await reload()
        except Exception:
            # The old token may still be good, and the next request says so if not.
            log.warning("credentials not renewed", exc_info=True)


async def load(
    kubeconfig: str | None = None, context: str | None = None, clock: Callable[[], float] = time.monotonic
) -> Credentials:
    """The credentials of `kubeconfig`; where it is None, of $KUBECONFIG, ~/.kube/config or the pod, as kubectl does.

    Raises ConfigError.
    """
    paths = kubeconfig or os.environ.get("KUBECONFIG") or ""
    default = Path.home() / ".kube" / "config"
    if not paths and default.is_file():
        paths = str(default)
    if paths:
        return await _from_kubeconfig(paths, context, clock)
    if context:
        raise ConfigError(
            f"context {context!r} was asked for, but there is no kubeconfig: "
            f"$KUBECONFIG is not set and {default} does not exist"
        )
    return _from_service_account(default)


def _from_service_account(default: Path) -> Credentials:
    configuration = slim.Configuration()
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise ConfigError(
            f"no way to an API server: no kubeconfig was given, $KUBECONFIG is not set, {default} does not exist, "
            "and this is no pod of a cluster ($KUBERNETES_SERVICE_HOST is not set)"
        )
    try:
        slim.load_incluster_config(client_configuration=configuration)
    except (OSError, slim.ConfigException) as error:
        raise ConfigError(
            "this looks like a pod of a cluster, but its service account cannot be used "
            f"(/var/run/secrets/kubernetes.io/serviceaccount): {error}"
        ) from error
    return Credentials(configuration)


async def _from_kubeconfig(paths: str, context: str | None, clock: Callable[[], float]) -> Credentials:
    context, user = _check_kubeconfig(paths, context)
    configuration = slim.Configuration()
    where = f"kubeconfig {paths}, context {context!r}"
    try:
        async with asyncio.timeout(PLUGIN_SECONDS):
            loader = await slim.load_kube_config(
                config_file=paths, context=context, client_configuration=configuration, persist_config=_writable(paths)
            )
    except TimeoutError as error:
        raise ConfigError(f"{where}: the credential plugin did not answer within {PLUGIN_SECONDS:g} s") from error
    except Exception as error:
        if isinstance(error, OSError) and not error.filename:  # uvloop does not say which program cannot be run
            error.filename = (user.get("exec") or {}).get("command")
        raise ConfigError(f"{where}: {error or type(error).__name__}") from error

    async def reload() -> None:
        # Without this the loader would keep a token that the server refuses until it is about to expire.
        vars(loader).pop("exec_plugin_expiry", None)
        await loader.load_and_set(configuration)

    return Credentials(
        configuration,
        reload=reload,
        expiry=lambda: getattr(loader, "exec_plugin_expiry", None),
        changes_silently="tokenFile" in user or "auth-provider" in user,
        clock=clock,
    )


def _check_kubeconfig(paths: str, context: str | None) -> tuple[str, dict[str, Any]]:
    """Finds what is wrong with a kubeconfig before its loader does, which would say it in its own terms.

    Returns the context to use (of several files the first that sets one counts, as with kubectl) and its user section.
    """
    files = [Path(path).expanduser() for path in paths.split(os.pathsep) if path]
    present = [path for path in files if path.is_file()]
    if not present:
        raise ConfigError(f"kubeconfig {paths} does not exist")
    merged: dict[str, dict[str, Any]] = {"contexts": {}, "clusters": {}, "users": {}}
    current = ""
    for path in present:
        content = _read_mapping(path)
        current = current or str(content.get("current-context") or "")
        for kind, entries in merged.items():
            for entry in content.get(kind) or []:
                if isinstance(entry, dict) and "name" in entry:
                    entries.setdefault(str(entry["name"]), entry.get(kind[:-1]) or {})
    chosen = context or current
    known = ", ".join(sorted(merged["contexts"])) or "none"
    if not chosen:
        raise ConfigError(f"kubeconfig {paths} sets no current-context, and no context was given; it has: {known}")
    if chosen not in merged["contexts"]:
        raise ConfigError(f"kubeconfig {paths} has no context {chosen!r}; it has: {known}")
    section = merged["contexts"][chosen]
    cluster = str(section.get("cluster") or "")
    if not (merged["clusters"].get(cluster) or {}).get("server"):
        raise ConfigError(f"kubeconfig {paths}, context {chosen!r}: its cluster {cluster!r} has no server address")
    name = str(section.get("user") or "")
    if name and name not in merged["users"]:
        raise ConfigError(f"kubeconfig {paths}, context {chosen!r}: its user {name!r} does not exist")
    user: dict[str, Any] = merged["users"].get(name, {})
    return chosen, user


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"kubeconfig {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"kubeconfig {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"kubeconfig {path} is empty or not a mapping")
    return content


def _writable(paths: str) -> bool:
    """Whether a renewed OIDC token can be written back, as kubectl does, for the next process."""
    return all(os.access(path, os.W_OK) for path in paths.split(os.pathsep) if path)
