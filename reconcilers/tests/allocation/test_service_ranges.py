"""What is known of Services' addresses, from an API server that serves ServiceCIDRs or not, and lets us read or not."""

import asyncio
from typing import Any

import pytest

from netloom.api.core import SERVICE_CIDRS, SERVICES, Service, ServiceCIDR, ServiceCIDRSpec, ServiceSpec
from netloom.api.meta import ObjectMeta
from netloom.runtime.errors import ApiError, Forbidden, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.allocation import service_ranges
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRanges

MISSING = NotFound(404, "NotFound", "the server could not find the requested resource")
FORBIDDEN = Forbidden(403, "Forbidden", "you may not")


class Api:
    """Answers each kind's first question so; what follows is the test's to put into the stores."""

    def __init__(self, **answers: ApiError) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def ask(self, kind: str, namespace: str, field_selector: str) -> None:
        self.asked.append(f"{kind} {namespace} {field_selector}".strip())
        if kind in self.answers:
            raise self.answers[kind]


class Watch:
    """A list of what there is, and silence."""

    world: dict[str, list[Service | ServiceCIDR]] = {}  # noqa: RUF012

    def __init__(self, api: Api, store: Store[Any], *, namespace: str, field_selector: str) -> None:
        self.api, self.store = api, store
        self.chosen = namespace, field_selector

    async def load(self) -> None:
        self.api.ask(self.store.resource.kind, *self.chosen)
        objects = self.world[self.store.resource.kind]
        self.store.replace({f"{each.metadata.namespace}/{each.metadata.name}".lstrip("/"): each for each in objects})

    async def run(self) -> None:
        await asyncio.Event().wait()


KUBERNETES = Service(
    metadata=ObjectMeta(name="kubernetes", namespace="default", resource_version="7"),
    spec=ServiceSpec(cluster_ips=("10.96.0.1", "fd00::1")),
)
CIDR = ServiceCIDR(
    metadata=ObjectMeta(name="kubernetes", resource_version="8"), spec=ServiceCIDRSpec(cidrs=("10.96.0.0/12",))
)
BOTH = {"ServiceCIDR": [CIDR], "Service": [KUBERNETES]}


@pytest.mark.parametrize(
    ("world", "answers", "known", "unreadable"),
    [
        (BOTH, {}, ["10.96.0.0/12 ServiceCIDR kubernetes"], ""),
        (BOTH, {"Service": FORBIDDEN}, ["10.96.0.0/12 ServiceCIDR kubernetes"], ""),
        (BOTH, {"ServiceCIDR": MISSING}, ["10.96.0.1/32 Service", "fd00::1/128 Service"], ""),
        (BOTH, {"ServiceCIDR": FORBIDDEN}, ["10.96.0.1/32 Service", "fd00::1/128 Service"], ""),
        (BOTH | {"ServiceCIDR": []}, {}, ["10.96.0.1/32 Service", "fd00::1/128 Service"], ""),
        (BOTH, {"ServiceCIDR": FORBIDDEN, "Service": FORBIDDEN}, [], "you may not (403 Forbidden); you may not (403"),
        (BOTH, {"ServiceCIDR": MISSING, "Service": FORBIDDEN}, [], "you may not (403 Forbidden)"),
    ],
)
async def test_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
    world: dict[str, list[Service | ServiceCIDR]],
    answers: dict[str, ApiError],
    known: list[str],
    unreadable: str,
) -> None:
    monkeypatch.setattr(service_ranges, "ListWatch", Watch)
    monkeypatch.setattr(Watch, "world", world)
    api, news = Api(**answers), []
    ranges = ServiceRanges(api)  # type: ignore[arg-type]
    ranges.on_change = lambda: news.append(ranges.known)
    running = asyncio.create_task(ranges.run())
    await ranges.answered(5)
    assert [f"{each.cidr} {each.source}".removesuffix(" default/kubernetes") for each in ranges.known] == known
    assert ranges.unreadable.startswith(unreadable)
    assert bool(ranges.unreadable) == bool(unreadable)
    assert news[-1:] == [ranges.known]
    assert sorted(api.asked) == [SERVICES.kind + " default metadata.name=kubernetes", SERVICE_CIDRS.kind]
    running.cancel()
