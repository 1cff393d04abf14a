"""admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration, as far as the guard keeps it: who is to be trusted,
and as far as it goes by it: where API servers call.

Source: k8s.io/api/admissionregistration/v1/types.go. It is never replaced as a whole, only applied field by field.
"""

from netloom.api.meta import ObjectMeta, Resource, Struct


class ServiceReference(Struct, frozen=True):
    """webhooks[].clientConfig.service"""

    name: str = ""
    namespace: str = ""


class WebhookClientConfig(Struct, frozen=True):
    """webhooks[].clientConfig: a service or a URL; `ca_bundle` is PEM in base64, as on the wire."""

    ca_bundle: str = ""
    url: str = ""
    service: ServiceReference | None = None


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
