"""A CA, a server that answers by a function of the test, and clients that trust it."""

import asyncio
import datetime as dt
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from netloom.api.admission import AdmissionRequest
from netloom.guard.verdict import ALLOWED, Ruling
from netloom.webhook import certificates
from netloom.webhook.connection import ServerLimits
from netloom.webhook.mint import Mint, answer
from netloom.webhook.server import serve
from netloom.webhook.tls import ServingTLS
from tests.loops import BOTH, UVLOOP, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


class InProcess(Mint):
    """Answers itself what a child would, in a hundredth of the time: for what is not about children."""

    fail = ""
    """Why no call succeeds, where none does."""

    async def _run(self, call: bytes) -> bytes:
        self.children += 1
        if self.fail:
            raise OSError(self.fail)
        return answer(call)


def review(uid: str = "1", **request: Any) -> dict[str, Any]:
    """An AdmissionReview as an API server sends it."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "netloom.dev", "version": "v1alpha1", "kind": "NetloomNetwork"},
            "resource": {"group": "netloom.dev", "version": "v1alpha1", "resource": "netloomnetworks"},
            "operation": "UPDATE",
            "name": "default",
            "userInfo": {"username": "admin", "groups": ["system:masters"]},
            "object": {"kind": "NetloomNetwork"},
            "oldObject": {"kind": "NetloomNetwork"},
            "dryRun": False,
        }
        | request,
    }


@dataclass
class Guarded:
    """A running server and a way to ask it."""

    port: int
    trusting: ssl.SSLContext
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/validate"

    async def post(self, body: bytes | dict[str, Any], **options: Any) -> tuple[int, str]:
        """Status and body of the answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        async with self.session.post(self.url, data=io.BytesIO(content), headers=headers, **options) as answer:
            return answer.status, await answer.text()

    async def ask(self, **request: Any) -> dict[str, Any]:
        """The `response` to a review."""
        status, text = await self.post(review(**request))
        assert status == 200, text
        told: dict[str, Any] = json.loads(text)
        assert (told["apiVersion"], told["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response: dict[str, Any] = told["response"]
        return response

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare TLS connection."""
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trusting)


@pytest.fixture(scope="session")
def ca() -> certificates.CA:
    return certificates.new_ca(NOW)


@pytest.fixture
def presented(ca: certificates.CA) -> ServingTLS:
    serving = certificates.issue(ca, ["guard.test", "127.0.0.1"], NOW)
    tls = ServingTLS()
    tls.present(serving.certificate, serving.key)
    return tls


Start = Callable[..., Any]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def start(ca: certificates.CA, presented: ServingTLS) -> Start:
    """`async with start(decide, body=..., idle=...) as guarded`; further options are fields of ServerLimits."""

    @asynccontextmanager
    async def running(
        decide: Callable[[AdmissionRequest], Ruling] = lambda request: ALLOWED,
        leaving: Callable[[], bool] = lambda: False,
        **limits: Any,
    ) -> AsyncIterator[Guarded]:
        trusting = ssl.create_default_context(cadata=ca.certificate)
        async with (
            serve(decide, presented.context, "127.0.0.1", limits=ServerLimits(**limits), leaving=leaving) as port,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trusting, limit=0), timeout=aiohttp.ClientTimeout(total=240)
            ) as session,
        ):
            yield Guarded(port, trusting, session)

    return running


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """Production runs on uvloop, whose TLS and timers are code of its own; asyncio's loop is promised the same."""
    uses_them = item.path.stem.removeprefix("test_") in ("authority", "files", "mint", "server")
    return BOTH if uses_them else UVLOOP
