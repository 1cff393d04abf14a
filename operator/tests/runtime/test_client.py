"""The client: what it sends, what it makes of answers, and what it says when there is none."""

import asyncio
import datetime as dt
import email.utils
import json
import socket
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from aiohttp import web

from netloom.api.coordination import LEASES, Lease, LeaseSpec
from netloom.api.core import NODES, Node
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, Address, NetloomNode, NetloomNodeSpec
from netloom.runtime import connection, errors
from netloom.runtime.client import Api
from netloom.runtime.errors import (
    AlreadyExists,
    ApiError,
    ConfigError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from netloom.runtime.wire import encode
from tests.runtime import scripted
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import Call, ScriptedApi, serving

LEASE_PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


def lease(holder: str = "", version: str = "") -> Lease:
    meta = ObjectMeta(name="leader", namespace="kube-system", resource_version=version)
    return Lease(metadata=meta, spec=LeaseSpec(holder_identity=holder))


async def test_an_object_is_created_read_replaced_and_deleted(server: ScriptedApi, api: Api):
    made = await api.create(LEASES, lease("a"))
    assert made.metadata.uid
    assert server.calls[-1].collection == LEASE_PATH
    assert server.calls[-1].body == {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "leader", "namespace": "kube-system"}, "spec": {"holderIdentity": "a"},
    }  # fmt: skip
    assert server.calls[-1].headers["Authorization"] == "Bearer secret"
    assert server.calls[-1].headers["User-Agent"] == "netloom"

    with pytest.raises(AlreadyExists):
        await api.create(LEASES, lease("b"))
    replaced = await api.replace(LEASES, lease("b", made.metadata.resource_version))
    with pytest.raises(Conflict) as caught:
        await api.replace(LEASES, lease("c", made.metadata.resource_version))
    assert not isinstance(caught.value, AlreadyExists)
    assert await api.get(LEASES, "leader", "kube-system") == replaced

    with pytest.raises(Conflict):
        await api.delete(LEASES, "leader", namespace="kube-system", uid="another")
    await api.delete(LEASES, "leader", namespace="kube-system", uid=made.metadata.uid)
    with pytest.raises(NotFound):
        await api.get(LEASES, "leader", "kube-system")


@pytest.mark.parametrize("kind", ["merge", "apply"])
async def test_a_patch_of_a_predecessor_is_a_conflict(server: ScriptedApi, api: Api, kind: Literal["merge", "apply"]):
    """The API server finds the uid immutable: to who writes, the object is another one now, as elsewhere."""
    made = await api.create(NODES, Node(metadata=ObjectMeta(name="a")))
    server.drop("/api/v1/nodes", "a")
    await api.create(NODES, Node(metadata=ObjectMeta(name="a")))
    patch = {"metadata": {"name": "a", "uid": made.metadata.uid, "labels": {"x": "y"}}}
    with pytest.raises(Conflict) as caught:
        await api.patch(NODES, "a", patch, kind=kind, field_manager="me")
    assert caught.value.status == 422
    assert not (await api.get(NODES, "a")).metadata.labels


@pytest.mark.parametrize(
    "causes", [None, "nonsense", [], ["metadata.uid"], [{"field": "spec.podCIDR"}], [{"field": "metadata"}]]
)
def test_any_other_refusal_of_what_an_object_says_is_none(causes: object):
    refusal = errors.Status(code=422, reason="Invalid", details={"causes": causes})
    assert type(errors.from_status(refusal, "PATCH /x")) is Invalid


async def test_a_replacement_must_name_what_it_replaces(server: ScriptedApi, api: Api):
    with pytest.raises(ValueError, match="without resourceVersion"):
        await api.replace(LEASES, lease("a"))
    assert not server.calls


@pytest.mark.parametrize(
    ("kind", "content_type", "query"),
    [
        ("merge", "application/merge-patch+json", {"fieldManager": "me"}),
        ("apply", "application/apply-patch+yaml", {"fieldManager": "me", "force": "true"}),
    ],
)
async def test_a_patch_says_of_what_kind_it_is(server: ScriptedApi, api: Api, kind, content_type, query):
    server.put("/api/v1/nodes", {"metadata": {"name": "a"}})

    async def answer(_call: Call) -> web.StreamResponse:
        return web.json_response(server.objects["/api/v1/nodes"]["a"])

    server.on("patch", answer)
    await api.patch(
        NODES, "a", {"metadata": {"labels": {"x": "y"}}}, kind=kind, field_manager="me", subresource="status"
    )
    assert server.calls[-1].headers["Content-Type"] == content_type
    assert server.calls[-1].query == query
    assert ("kind" in server.calls[-1].body) == (kind == "apply")


def test_encoding_leaves_out_what_is_at_its_default():
    obj = NetloomNode(
        metadata=ObjectMeta(name="a", labels={"ü": "1"}),
        spec=NetloomNodeSpec(addresses=(Address(type="InternalIP", ip="10.0.0.1"),)),
    )
    assert json.loads(encode(NETLOOM_NODES, obj)) == {
        "apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "a", "labels": {"ü": "1"}},
        "spec": {"addresses": [{"type": "InternalIP", "ip": "10.0.0.1"}]},
    }  # fmt: skip
    assert json.loads(encode(NODES, Node())) == {"apiVersion": "v1", "kind": "Node"}


async def test_a_name_cannot_lead_to_another_path(server: ScriptedApi, api: Api):
    for name in ("../../version", "a/b", "a?x=y", "a%2Fb", "ä"):
        with pytest.raises(NotFound):
            await api.get(NODES, name)
    assert {call.verb for call in server.calls} <= {"get"}
    assert all(call.collection == "/api/v1/nodes" for call in server.calls)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", Invalid),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Gone),
        (410, "Gone", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
        (504, "Timeout", Unavailable),
        (418, "Teapot", ApiError),
    ],
)
async def test_a_refusal_is_the_exception_for_it(server: ScriptedApi, api: Api, code: int, reason: str, kind: type):
    server.on("get", scripted.refuse(code, reason, "because"))
    with pytest.raises(ApiError) as caught:
        await api.get(NODES, "a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (code, reason)
    assert str(caught.value) == f"GET /api/v1/nodes/a: because ({code} {reason})"
    assert server.count("get") == 1


async def test_a_proxys_text_is_part_of_the_message(server: ScriptedApi, api: Api):
    server.on("get", scripted.refuse_in_text(503, "upstream  connect\nerror" + "x" * 5000, **{"Retry-After": "3"}))
    with pytest.raises(Unavailable, match="upstream connect error") as caught:
        await api.get(NODES, "a")
    assert caught.value.retry_after == 3.0
    assert len(str(caught.value)) < 400


async def test_an_answer_of_another_form_is_no_object(server: ScriptedApi, api: Api):
    server.on("get", scripted.refuse_in_text(200, "<html>welcome to the hotel</html>"))
    with pytest.raises(Unavailable, match="Node not readable"):
        await api.get(NODES, "a")


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("", None), ("soon", None), (None, None)]
)
def test_retry_after_is_seconds(value: str | None, seconds: float | None):
    assert errors.parse_retry_after(value) == seconds


def test_retry_after_may_be_a_date():
    then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
    seconds = errors.parse_retry_after(email.utils.format_datetime(then, usegmt=True))
    assert seconds is not None
    assert 50 < seconds <= 60
    assert errors.parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert errors.parse_retry_after("Wed, 21 Oct 2015 07:28:00") == 0.0, "one without a zone"


async def test_a_date_to_try_again_is_of_the_clock_of_who_answers(server: ScriptedApi, api: Api):
    """An API server whose clock is two hours ahead, or that we are behind of: the wait is meant in its time."""

    async def later(call: Call) -> web.StreamResponse:
        now = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
        then = now + dt.timedelta(seconds=30)
        date, again = (email.utils.format_datetime(each, usegmt=True) for each in (now, then))
        return web.Response(status=503, headers={"Date": date, "Retry-After": again})

    server.on("get", later)
    with pytest.raises(Unavailable) as refused:
        await api.get(NODES, "a")
    assert refused.value.retry_after is not None
    assert 20 < refused.value.retry_after <= 31


@pytest.mark.parametrize("value", ["3600", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_no_answer_makes_anybody_sleep_for_an_hour(server: ScriptedApi, api: Api, value: str):
    """A load balancer that is being worked on says such things, and may be well in a minute."""
    server.on("get", scripted.refuse_in_text(503, "maintenance", **{"Retry-After": value}))
    with pytest.raises(Unavailable) as refused:
        await api.get(NODES, "a")
    assert refused.value.retry_after == errors.MOST_SECONDS


async def test_every_request_has_an_end(server: ScriptedApi, kubeconfig: str):
    server.on("get", scripted.hang)
    async with await Api.connect(kubeconfig, timeout=0.05) as api:
        with pytest.raises(Unavailable, match=r"GET /api/v1/nodes/a: no answer within 0.05 s \(Timeout\)"):
            await api.get(NODES, "a")


async def test_a_connection_that_is_not_made_is_told_from_an_answer_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        try:
            async with await Api.connect(write_kubeconfig(tmp_path / "kubeconfig", {"server": url}, {})) as api:
                with pytest.raises(Unavailable, match=r"GET /api/v1/nodes/a: no connection within 0.05 s \(Timeout\)"):
                    await api.get(NODES, "a")
        finally:
            for each in waiting:
                each.close()


async def test_connections_are_shared_and_used_again(server: ScriptedApi, kubeconfig: str):
    """Also after refusals: an answer that is not read to its end would cost its connection."""
    server.on("get", *[scripted.refuse(503, "ServiceUnavailable")] * 20)
    async with await Api.connect(kubeconfig, connections=4) as api:
        await asyncio.gather(*(api.get(NODES, "a") for _ in range(40)), return_exceptions=True)
    assert server.count("get") == 40
    assert len(server.transports) == 4


async def test_watches_take_no_connection_from_requests(server: ScriptedApi, kubeconfig: str):
    server.put("/api/v1/nodes", {"metadata": {"name": "a"}})
    async with await Api.connect(kubeconfig, connections=1) as api, asyncio.timeout(5):
        query = {"watch": "1", "resourceVersion": "0"}
        async with api.stream("/api/v1/nodes", query) as one, api.stream("/api/v1/nodes", query) as two:
            assert (await api.get(NODES, "a")).metadata.name == "a"
            assert await one.readline() == await two.readline()


@pytest.mark.parametrize("answer", ['{"items": 7}', '{"items": [{"metadata": {"name": 7}}]}', "[]", "<html>", "{}"])
async def test_what_is_no_list_is_no_truth(server: ScriptedApi, api: Api, answer: str):
    server.on("list", scripted.refuse_in_text(200, answer))
    with pytest.raises(Unavailable, match="list of nodes"):
        await api.list(NODES)


async def test_the_kernel_probes_the_peer_of_a_watch(server: ScriptedApi, api: Api):
    async with api.stream("/api/v1/nodes", {"watch": "1", "resourceVersion": "0"}):
        port = next(iter(server.transports)).get_extra_info("peername")[1]
        found = subprocess.run(["ss", "-Hnto", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
        assert "timer:(keepalive," in found


async def test_a_list_is_typed_and_complete(server: ScriptedApi, api: Api):
    for number in range(7):
        server.put("/api/v1/nodes", {"metadata": {"name": f"n{number}"}})
    listing = await api.list(NODES, limit=3)
    assert [obj.metadata.name for obj in listing.objects] == [f"n{number}" for number in range(7)]
    assert listing.resource_version == str(server.version)
    assert server.count("list") == 3


# What a person is told


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_check_gives_the_version(api: Api):
    assert await api.check() == "v1.37.2"


async def test_nobody_there_is_one_sentence(tmp_path: Path):
    url = f"http://127.0.0.1:{free_port()}"
    async with await Api.connect(write_kubeconfig(tmp_path / "k", {"server": url}, {"token": "t"})) as api:
        with pytest.raises(ConfigError) as caught:
            await api.check()
        assert str(caught.value) == f"the API server at {url} cannot be reached: Connection refused"
        with pytest.raises(Unavailable):
            await api.get(NODES, "a")


async def test_no_answer_is_one_sentence(server: ScriptedApi, api: Api):
    server.on("version", scripted.hang)
    with pytest.raises(ConfigError) as caught:
        await api.check(timeout=0.05)
    assert str(caught.value) == f"the API server at {server.url} does not answer"


async def test_wrong_credentials_are_one_sentence(server: ScriptedApi, api: Api):
    server.on("version", scripted.refuse(401, "Unauthorized"))
    with pytest.raises(ConfigError) as caught:
        await api.check()
    assert str(caught.value).startswith(f"the API server at {server.url} does not accept the credentials (401)")


async def test_another_server_is_one_sentence(server: ScriptedApi, api: Api):
    server.on("version", scripted.refuse_in_text(200, "It works!"))
    with pytest.raises(ConfigError) as caught:
        await api.check()
    assert str(caught.value) == f"{server.url} answers, but not as a Kubernetes API server does"


async def test_a_host_that_does_not_exist_is_one_sentence(tmp_path: Path):
    kubeconfig = write_kubeconfig(tmp_path / "k", {"server": "https://nowhere.invalid:6443"}, {"token": "t"})
    async with await Api.connect(kubeconfig) as api:
        with pytest.raises(ConfigError) as caught:
            await api.check()
    assert str(caught.value).startswith("the API server at https://nowhere.invalid:6443 cannot be reached: ")


async def test_a_redirect_is_not_followed(server: ScriptedApi, api: Api):
    async with serving() as other:

        async def redirect(_call: Call) -> web.StreamResponse:
            raise web.HTTPFound(f"{other.url}/api/v1/nodes/a")

        server.on("get", redirect)
        with pytest.raises(ApiError, match="302"):
            await api.get(NODES, "a")
        assert not other.calls
