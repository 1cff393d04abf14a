"""AdmissionReview of admission.k8s.io/v1: what an API server asks a webhook, and what it is told.

Source: k8s.io/api/admission/v1/types.go. The objects stay raw JSON: whoever decides knows which kind they are.
"""

from typing import Literal

import msgspec

from netloom.api.meta import Struct

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]


class GroupVersionResource(Struct, frozen=True):
    """Of the request as the webhook's rule matched it."""

    group: str = ""
    version: str = ""
    resource: str = ""


class UserInfo(Struct, frozen=True):
    """Who asks. `extra` holds, among others, the node that a service account's token is bound to."""

    username: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class AdmissionRequest(Struct, frozen=True):
    """request: one write that waits for an answer. `name` is empty where the server is to make one up (generateName);
    `object` is null at DELETE, `old_object` at CREATE."""

    uid: str
    operation: Operation
    resource: GroupVersionResource = GroupVersionResource()
    sub_resource: str = ""
    name: str = ""
    namespace: str = ""
    user_info: UserInfo = UserInfo()
    object: msgspec.Raw = msgspec.Raw(b"null")
    old_object: msgspec.Raw = msgspec.Raw(b"null")
    dry_run: bool | None = None


class AdmissionStatus(Struct, frozen=True, omit_defaults=False):
    """response.status: what a refused user reads. `code` is the HTTP status of the refusal, and always written: the
    API server makes a missing one 400."""

    message: str
    code: int = 403
    reason: str = "Forbidden"


class AdmissionResponse(Struct, frozen=True):
    """response. Warnings are shown by kubectl; the API server cuts each at 256 characters."""

    uid: str
    allowed: bool
    status: AdmissionStatus | None = None
    warnings: tuple[str, ...] = ()


class AdmissionReview(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The envelope of both directions; what is required is always written."""

    api_version: str
    kind: str
    request: AdmissionRequest | None = None
    response: AdmissionResponse | None = None
