"""What the allocation asks of the API server, and what an answer (or none) means for the safety of a block."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

from netloom.api.meta import Object, Resource
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import ApiError
from netloom.runtime.wire import Listing

T = TypeVar("T", bound=Object)

DEFINITE = frozenset({400, 401, 403, 404, 409, 422, 429})
"""Statuses that say: the request was not executed, and will not be. After any other failure it may be, later."""


class Patches(Protocol):
    """A client that can change some fields of an object."""

    async def patch(
        self,
        res: Resource[T],
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        kind: Literal["merge", "apply"] = "merge",
        field_manager: str = "",
    ) -> T: ...


class Dated(Patches, Protocol):
    """One that knows what time it is on the API server: what it writes is dated by that."""

    @property
    def clock(self) -> ServerClock: ...


class Requests(Dated, Protocol):
    """The requests of `netloom.runtime.client.Api` that allocation uses; tests put a model of the server here."""

    async def get(self, res: Resource[T], name: str, namespace: str = "") -> T: ...

    async def list(self, res: Resource[T]) -> Listing[T]: ...

    async def create(self, res: Resource[T], obj: T) -> T: ...

    async def replace(self, res: Resource[T], obj: T, subresource: str = "") -> T: ...

    async def delete(
        self, res: Resource[T], name: str, *, namespace: str = "", uid: str = "", resource_version: str = ""
    ) -> None: ...


def definite(error: BaseException) -> bool:
    """Whether a failed write is known not to be executed, now or later."""
    return isinstance(error, ApiError) and error.status in DEFINITE
