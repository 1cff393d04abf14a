"""What the kubelet and Prometheus ask a role: /healthz, /readyz, /metrics.

A check returns "" when all is well, else one sentence, and that is in the answer: a probe that only says 503 helps
nobody.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from netloom.runtime import metrics
from netloom.runtime.errors import ConfigError
from netloom.runtime.http import web

log = structlog.get_logger(__name__)

Check = Callable[[], str]


class HealthChecks:
    """Named checks. A check is cheap, does not wait, and returns what is wrong, or ""."""

    def __init__(self) -> None:
        self._ready: dict[str, Check] = {}

    def ready(self, name: str, check: Check) -> None:
        """Adds a check: where it fails, the role does not do its work (yet, or now)."""
        self._ready[name] = check

    def not_ready(self) -> dict[str, str]:
        """What is wrong, by name of the check; empty if nothing is."""
        return {name: wrong for name, check in self._ready.items() if (wrong := _ask(check))}

    async def healthz(self, _request: web.Request) -> web.Response:
        """Handler of /healthz: that it is answered at all is what it says."""
        return web.Response(text="ok\n")

    async def readyz(self, _request: web.Request) -> web.Response:
        """Handler of /readyz."""
        wrong = self.not_ready()
        lines = [f"[-] {name}: {wrong[name]}" if name in wrong else f"[+] {name}" for name in sorted(self._ready)]
        return web.Response(status=503 if wrong else 200, text="\n".join([*lines, "failed" if wrong else "ok", ""]))


def _ask(check: Check) -> str:
    try:
        return check()
    except Exception as error:
        log.exception("health check crashed")
        return f"the check crashed: {error or type(error).__name__}"


def parse_address(text: str, option: str = "--http-address") -> tuple[str, int]:
    """Host and port of `127.0.0.1:9963` or `[::1]:9963`. Raises ConfigError, which names the option."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {text!r} is not HOST:PORT, such as 127.0.0.1:9963")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def serve(
    health: HealthChecks,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    routes: Iterable[web.RouteDef] = (),
) -> AsyncIterator[int]:
    """Serves the checks, metrics and further `routes`, and gives the port (0: a free one). Raises ConfigError."""

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", health.healthz)
    app.router.add_get("/readyz", health.readyz)
    app.router.add_get("/metrics", show_metrics)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot serve HTTP on {host}:{port}: {error.strerror or error}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
