"""Where the API server is and who we are: kubeconfig or service account, followed on disk while the process runs.

Whoever renews certificates and tokens replaces files, and restarts nobody. So all is read again every few seconds, and
at once when the server refuses us or shows a certificate that is not trusted, and compared: that finds every way of
replacing a file. What cannot be used, half-written perhaps, never replaces what works.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from netloom.runtime.errors import ConfigError, Unavailable
from netloom.runtime.kubeconfig import ClientConfig, Kubeconfig, is_there, pem, token
from netloom.runtime.tls import ApiEndpoint

log = structlog.get_logger(__name__)

LOOK_SECONDS = 10.0
"""How often the files are read."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Credentials:
    """The endpoint and the credentials that are good now.

    `on_change` is called with a new endpoint before it becomes the present one, and may refuse it (ConfigError).
    """

    def __init__(self, source: "Kubeconfig | ServiceAccount", found: ClientConfig, clock: Callable[[], float]) -> None:
        self._source = source
        self._found = found
        self._clock = clock
        self._look_at = clock() + LOOK_SECONDS
        self._lock = asyncio.Lock()
        self.on_change: Callable[[ApiEndpoint], None] = lambda endpoint: None
        self.fault = ""
        """Why what is on disk now is not used, and what was there before is; "" if nothing is wrong."""

    @property
    def endpoint(self) -> ApiEndpoint:
        """The API server and its TLS; another object if anything of it changed."""
        return self._found.endpoint

    async def authorization(self) -> str:
        """The Authorization header's value, or ""; raises Unavailable if a credential plugin has given nothing yet."""
        if self._clock() >= self._look_at or self._found.missing:
            async with self._lock:
                if self._clock() >= self._look_at or self._found.missing:
                    await self._look()
        if self._found.missing:
            raise Unavailable(0, "NoCredentials", self._found.missing)
        return self._found.authorization

    async def look_again(self, endpoint: ApiEndpoint, refused: str | None = None) -> bool:
        """The server answered 401 to `refused`, or TLS failed (None). True if there is something else now."""

        def unchanged() -> bool:
            return self.endpoint is endpoint and refused in (None, self._found.authorization)

        async with self._lock:
            if unchanged():
                await self._look(renew=refused is not None)
            return not unchanged()

    async def follow(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self._lock:
                await self._look()

    async def _look(self, *, renew: bool = False) -> None:
        self._look_at = self._clock() + LOOK_SECONDS
        try:
            found = await self._source.read(renew=renew)
            if found.endpoint == self.endpoint:
                found = msgspec.structs.replace(found, endpoint=self.endpoint)
            else:
                self.on_change(found.endpoint)
                old, new = msgspec.structs.asdict(self.endpoint), msgspec.structs.asdict(found.endpoint)
                changed = [name for name in old if old[name] != new[name]]
                log.info("the way to the API server changed on disk", changed=changed)
        except ConfigError as error:
            if self.fault != str(error):
                log.error("what is on disk is not used, what was there before is", error=str(error))
            self.fault = str(error)
            return
        if self.fault:
            log.info("what is on disk is used again")
        self.fault = ""
        self._found = found

    @property
    def unused(self) -> str:
        """`fault`, to be appended to what fails meanwhile."""
        return f"; what is on disk now cannot be used: {self.fault}" if self.fault else ""


async def load(
    kubeconfig: str | None = None,
    context: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    patient: bool = False,
) -> Credentials:
    """The credentials of `kubeconfig`; where it is None, of $KUBECONFIG, ~/.kube/config or the pod, as kubectl does.

    Raises ConfigError. patient: a credential plugin that fails is no error, it will be asked again.
    """
    source = _source(kubeconfig, context, clock)
    found = await source.read()
    if found.missing and not patient:
        raise ConfigError(found.missing)
    return Credentials(source, found, clock)


def _source(kubeconfig: str | None, context: str | None, clock: Callable[[], float]) -> "Kubeconfig | ServiceAccount":
    paths = kubeconfig or os.environ.get("KUBECONFIG") or ""
    default = _default()
    if not paths and is_there(default):
        paths = str(default)
    if paths:
        return Kubeconfig(paths, context, clock)
    if context:
        raise ConfigError(
            f"context {context!r} was asked for, but there is no kubeconfig: "
            f"$KUBECONFIG is not set and {default} does not exist"
        )
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ConfigError(
            f"no way to an API server: no kubeconfig was given, $KUBECONFIG is not set, {default} does not exist, "
            "and this is no pod of a cluster ($KUBERNETES_SERVICE_HOST and $KUBERNETES_SERVICE_PORT are not set)"
        )
    return ServiceAccount(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def _default() -> Path:
    """~/.kube/config, whether it is there or not; of a user without a home, where there will be none."""
    try:
        return Path.home() / ".kube" / "config"
    except RuntimeError:  # $HOME is not set, and the user is not in /etc/passwd
        return Path("~/.kube/config")


class ServiceAccount:
    """What a pod is given: a token and a CA, in files that the kubelet replaces."""

    def __init__(self, host: str) -> None:
        self._host = host

    async def read(self, *, renew: bool = False) -> ClientConfig:
        """Both as they are now. Raises ConfigError."""
        del renew  # only the kubelet can
        try:
            ca = pem(SERVICE_ACCOUNT / "ca.crt", "the CA bundle")
            header = token(SERVICE_ACCOUNT / "token")
        except ConfigError as error:
            raise ConfigError(
                f"this looks like a pod of a cluster, but its service account cannot be used: {error}"
            ) from error
        return ClientConfig(endpoint=ApiEndpoint(host=self._host, ca=ca), authorization=header)
