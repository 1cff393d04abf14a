"""admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration, as far as the guard keeps it: who is to be trusted.

Source: k8s.io/api/admissionregistration/v1/types.go. It is never replaced as a whole, only applied field by field.
"""

from netloom.api.meta import ObjectMeta, Resource, Struct


class WebhookClientConfig(Struct, frozen=True):
    """webhooks[].clientConfig: `ca_bundle` is PEM in base64, as on the wire."""

    ca_bundle: str = ""


class ValidatingWebhook(Struct, frozen=True):
    """webhooks[]: a list by name."""

    name: str = ""
    client_config: WebhookClientConfig = WebhookClientConfig()


class ValidatingWebhookConfiguration(Struct, frozen=True):
    """The webhooks of one installation."""

    metadata: ObjectMeta = ObjectMeta()
    webhooks: tuple[ValidatingWebhook, ...] = ()


VALIDATING_WEBHOOK_CONFIGURATIONS = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", ValidatingWebhookConfiguration
)
