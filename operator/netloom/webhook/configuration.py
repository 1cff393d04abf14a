"""The caBundle of the guard's webhooks: by it the API server knows whom it may believe.

Only what is there is written to: a configuration that somebody deleted, in an emergency perhaps, stays deleted. The
patch names the uid of the object that was seen, and the API server refuses to create one under a given uid.
"""

import asyncio
import base64
import binascii
from contextlib import suppress

import structlog

from netloom.api.admissionregistration import (
    VALIDATING_WEBHOOK_CONFIGURATIONS,
    ValidatingWebhookConfiguration,
)
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch
from netloom.runtime.watch import Timing as WatchTiming
from netloom.webhook import certificates, metrics

log = structlog.get_logger(__name__)

FIELD_MANAGER = "netloom-guard-ca"
"""Of its own: what the guard applies elsewhere under another name must not drop these fields."""


class WebhookConfiguration:
    """The ValidatingWebhookConfiguration of one name, watched; it may be missing."""

    def __init__(self, api: Api, name: str, *, timing: WatchTiming | None = None) -> None:
        self.name = name
        self.store = Store(VALIDATING_WEBHOOK_CONFIGURATIONS)
        self.watch = ListWatch(api, self.store, field_selector=f"metadata.name={name}", timing=timing)
        self._api = api

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

    async def publish(self, bundle: str) -> None:
        """Writes `bundle` (PEM) into all webhooks of the configuration that was seen. Raises ApiError."""
        seen = self.object
        if seen is None or not seen.webhooks:
            return
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


def _decoded(ca_bundle: str) -> str:
    try:
        return base64.b64decode(ca_bundle).decode()
    except (binascii.Error, ValueError):
        return ""


async def wait(woken: asyncio.Event, seconds: float) -> None:
    """Until the event is set, or the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()
