"""The guard's webhooks as they are configured: where API servers call them, and the caBundle, by which they know whom
they may believe.

Only what is there is written to: a configuration that somebody deleted, in an emergency perhaps, stays deleted. The
patch names the uid of the object that was seen, and the API server refuses to create one under a given uid.
"""

import base64
import binascii
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from yarl import URL

from netloom.api.admissionregistration import (
    VALIDATING_WEBHOOK_CONFIGURATIONS,
    ValidatingWebhookConfiguration,
    WebhookClientConfig,
)
from netloom.cidr import CidrError, format_address, parse_address
from netloom.runtime.allowance import Allowance, Pace
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming
from netloom.webhook import certificates, metrics, tls

log = structlog.get_logger(__name__)

FIELD_MANAGER = "netloom-guard-ca"
"""Of its own: what the guard applies elsewhere under another name must not drop these fields."""
PACE = Pace(most=10, seconds=60.0)
"""Writes of the caBundle. Somebody else who keeps it, too, answers each at once, and all API servers follow both."""


class Contested(Exception):
    """The caBundle is not written, as it would be another again at once. The text is a sentence with the way out."""


@dataclass(frozen=True, slots=True)
class Called:
    """host: how API servers call webhooks, a DNS name or an IP address; "" if that cannot be read.
    bundle: PEM of whom they trust there; "" for whom their machine trusts."""

    host: str
    bundle: str


class WebhookConfiguration:
    """The ValidatingWebhookConfiguration of one name, watched; it may be missing."""

    def __init__(
        self,
        api: Api,
        name: str,
        *,
        timing: WatchTiming | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.store = Store(VALIDATING_WEBHOOK_CONFIGURATIONS)
        self.watch = ListWatch(api, self.store, field_selector=f"metadata.name={name}", timing=timing)
        self._api = api
        self._clock = clock
        self._allowance = Allowance(clock(), PACE.most)
        self._judged: tuple[ssl.SSLContext, ValidatingWebhookConfiguration, str] | None = None

    def __str__(self) -> str:
        return f"ValidatingWebhookConfiguration {self.name}"

    @property
    def object(self) -> ValidatingWebhookConfiguration | None:
        """As it was seen last."""
        return self.store.get(self.name)

    def bundles(self) -> list[str]:
        """The caBundle of every webhook, as PEM; "" where there is none, or nothing readable."""
        return [_decoded(hook.client_config.ca_bundle) for hook in self.object.webhooks] if self.object else []

    def holds(self, bundle: str) -> bool:
        """Whether every webhook's caBundle has these certificates (PEM), and no others."""
        return all(certificates.same(each, bundle) for each in self.bundles())

    def called(self) -> dict[Called, list[str]]:
        """How API servers call the guard, and which webhooks by that; nothing where there is no configuration."""
        found: dict[Called, list[str]] = {}
        for hook in self.object.webhooks if self.object else ():
            client = hook.client_config
            found.setdefault(Called(_host(client), _decoded(client.ca_bundle)), []).append(hook.name)
        return found

    def hosts(self) -> tuple[str, ...]:
        """The names and addresses by which API servers call the guard."""
        return tuple(dict.fromkeys(each.host for each in self.called() if each.host))

    def refusal(self, shown: ssl.SSLContext, what: str, bundle: str = "") -> str:
        """Why API servers that call these webhooks would not accept the certificate in a context; "" if they would, or
        if there are no webhooks. Whether it is valid now is not looked at: that goes by the API server's clock.

        what: the certificate, for the sentence. bundle: what is about to be the caBundle (PEM), if not what it is.
        """
        if (seen := self.object) is None:
            return ""
        if not bundle and self._judged and self._judged[0] is shown and self._judged[1] is seen:
            return self._judged[2]
        found = next(filter(None, (self._refused(shown, what, *one, bundle) for one in self.called().items())), "")
        if not bundle:
            self._judged = shown, seen, found
        return found

    def _refused(self, shown: ssl.SSLContext, what: str, one: Called, webhooks: list[str], bundle: str) -> str:
        where = f"{self}, webhook{'s' if len(webhooks) > 1 else ''} {', '.join(webhooks)}"
        if not one.host:
            return f"{where}: clientConfig says no host to call that could be read"
        why = tls.refusal(shown, one.host, bundle or one.bundle)
        return f"{what} {why}, where API servers call ({where})" if why else ""

    async def publish(self, bundle: str) -> None:
        """Writes `bundle` (PEM) into all webhooks of the configuration that was seen. Raises ApiError, Contested."""
        seen = self.object
        if seen is None or not seen.webhooks:
            return
        if not self._allowance.take_if_any(self._clock(), PACE):
            raise Contested(
                f"somebody else writes another caBundle into {self} again and again, so it is written once a minute: "
                "end one of the two, be it a guard with another Secret or cert-manager's cainjector"
            )
        encoded = base64.b64encode(bundle.encode()).decode()
        patch = {
            "metadata": {"name": self.name, "uid": seen.metadata.uid},
            "webhooks": [{"name": hook.name, "clientConfig": {"caBundle": encoded}} for hook in seen.webhooks],
        }
        written = await self._api.patch(
            VALIDATING_WEBHOOK_CONFIGURATIONS, self.name, patch, kind="apply", field_manager=FIELD_MANAGER
        )
        self.store.put(written)
        metrics.CA_BUNDLE_WRITES.inc()
        log.info("caBundle written", configuration=self.name, webhooks=[hook.name for hook in seen.webhooks])


def host_of(url: str) -> str:
    """The host of a URL as certificates have it: no brackets, no final dot, in ASCII; "" if there is none."""
    try:
        host = (URL(url).raw_host or "").rstrip(".")
    except ValueError:
        return ""
    with suppress(CidrError):
        return format_address(parse_address(host))
    return host


def _host(client: WebhookClientConfig) -> str:
    if client.service:
        return f"{client.service.name}.{client.service.namespace}.svc"
    return host_of(client.url)


def _decoded(ca_bundle: str) -> str:
    try:
        return base64.b64decode(ca_bundle).decode()
    except (binascii.Error, ValueError):
        return ""
