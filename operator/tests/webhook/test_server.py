"""The admission server on a real socket: what it answers, and what it does with those who do not ask properly."""

import asyncio
import json
import logging
import ssl
from typing import Any

import pytest
import structlog.testing

from netloom.api.admission import AdmissionRequest
from netloom.api.problem import Problem
from netloom.guard.verdict import ALLOWED, Ruling
from netloom.runtime.errors import ConfigError
from netloom.runtime.metrics import REGISTRY
from netloom.webhook import certificates
from netloom.webhook.connection import ServerConnection, ServerConnections
from netloom.webhook.server import serve
from netloom.webhook.tls import ServingTLS
from tests.runtime.scripted import until
from tests.webhook.conftest import NOW, Start, review

MODE = Problem(
    object="NetloomNetwork default",
    field="spec.ipam.mode",
    value="kubernetes",
    reason="ModeChange",
    message="the IPAM mode of a live cluster cannot change.",
    way_out="Make a new cluster.",
)
add = ServerConnections.add
BODY = json.dumps(review()).encode()
HEAD = b"POST /validate HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\n"
ASKED = (
    b"POST /validate?timeout=3s HTTP/1.1\r\nHost: guard\r\nUser-Agent: kube-apiserver-admission\r\n"
    b"Content-Length: %d\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\n"
    b"Accept-Encoding: gzip\r\n\r\n"
)
"""The head of a review as an API server sends it."""


def asked(body: bytes = BODY) -> bytes:
    return ASKED % len(body) + body


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Any:
    """Neither asyncio nor aiohttp say anything: no traceback, no exception that nobody retrieved."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server ends the connection."""
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except (ConnectionError, ssl.SSLError):
        return b""


class TestAnswers:
    async def test_the_decision_sees_the_request_and_its_answer_is_told(self, start: Start):
        seen: list[AdmissionRequest] = []

        def decide(request: AdmissionRequest) -> Ruling:
            seen.append(request)
            return ALLOWED

        async with start(decide) as guarded:
            assert await guarded.ask(uid="abc", dryRun=True) == {"uid": "abc", "allowed": True}
        (request,) = seen
        assert (request.operation, request.name, request.dry_run) == ("UPDATE", "default", True)
        assert request.user_info.groups == ("system:masters",)
        assert json.loads(bytes(request.object)) == {"kind": "NetloomNetwork"}

    async def test_a_refusal_carries_every_problem_as_one_line(self, start: Start):
        async with start(lambda request: Ruling(refusals=(MODE, MODE))) as guarded:
            before = counted(
                "netloom_guard_reviews_total", resource="netloomnetworks", operation="UPDATE", verdict="refused"
            )
            response = await guarded.ask()
            after = counted(
                "netloom_guard_reviews_total", resource="netloomnetworks", operation="UPDATE", verdict="refused"
            )
        assert response["allowed"] is False
        assert response["status"] == {"code": 403, "reason": "Forbidden", "message": f"{MODE}\n{MODE}"}
        assert after - before == 1

    async def test_what_is_not_seen_yet_is_refused_for_now(self, start: Start):
        async with start(lambda request: Ruling(unseen=("NetloomNode: not listed yet",))) as guarded:
            status = (await guarded.ask())["status"]
        assert status["code"] == 503
        assert status["message"] == "the guard is not ready: NetloomNode: not listed yet; try again in a few seconds"

    async def test_a_bug_in_the_decision_is_a_refusal_that_says_so(self, start: Start):
        def decide(request: AdmissionRequest) -> Ruling:
            raise KeyError("mode")

        before = counted("netloom_guard_errors_total", cause="decision")
        with structlog.testing.capture_logs() as logs:
            async with start(decide) as guarded:
                response = await guarded.ask()
                assert (await guarded.ask(uid="2"))["allowed"] is False  # the connection lives on
        assert response["allowed"] is False
        assert response["status"]["code"] == 500
        assert "UPDATE of netloomnetworks.netloom.dev default" in response["status"]["message"]
        assert "a bug in Netloom" in response["status"]["message"]
        assert "KeyError: 'mode'" in response["status"]["message"]
        assert counted("netloom_guard_errors_total", cause="decision") - before == 2
        assert [entry["exc_info"] for entry in logs if entry["log_level"] == "error"] == [True, True]

    async def test_a_review_of_3_mib_is_answered(self, start: Start):
        async with start() as guarded:
            assert (await guarded.ask(object={"data": "x" * (3 << 20)}))["allowed"] is True

    async def test_names_in_metrics_are_bounded(self, start: Start):
        async with start() as guarded:
            for number in range(3):
                await guarded.ask(resource={"group": "", "version": "v1", "resource": f"made-up-{number}"})
        names = {
            sample.labels["resource"]
            for metric in REGISTRY.collect()
            if metric.name == "netloom_guard_reviews"
            for sample in metric.samples
        }
        assert not any(name.startswith("made-up") for name in names)
        assert "other" in names

    @pytest.mark.slow
    async def test_1000_at_once_get_each_its_own_answer(self, start: Start):
        def decide(request: AdmissionRequest) -> Ruling:
            return ALLOWED if int(request.uid) % 2 else Ruling(refusals=(MODE,))

        # The clients' share of 1,000 handshakes is done in this process, too: a busy machine needs its time.
        async with start(decide, handshake=120.0, request=120.0) as guarded:
            responses = await asyncio.gather(*(guarded.ask(uid=str(number)) for number in range(1000)))
        assert [response["uid"] for response in responses] == [str(number) for number in range(1000)]
        assert [response["allowed"] for response in responses] == [bool(number % 2) for number in range(1000)]


class TestWhatIsNoReview:
    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            (b"", "the body is not JSON"),
            (b"{", "the body is not JSON"),
            (b"\xff\xfe", "the body is not JSON"),
            (b'{"apiVersion": "\xff"}', "the body is not JSON"),
            (b'{"x":' * 100_000, "nested too deeply"),
            (b'{"apiVersion":"a","kind":"b","request":{"uid":"1","operation":"UPDATE","object":' + b"[" * 100_000,
             "the body is not JSON"),
            (b"null", "not an AdmissionReview"),
            (b"[]", "not an AdmissionReview"),
            (b"{}", "not an AdmissionReview"),
            (review() | {"kind": "Node"}, "the body is a Node of admission.k8s.io/v1"),
            (review() | {"apiVersion": "admission.k8s.io/v1beta1"}, "admissionReviewVersions be [v1]"),
            (review() | {"request": None}, "has no request"),
            (review(uid=""), "has no uid"),
            (review() | {"request": {"operation": "UPDATE"}}, "missing required field `uid`"),
            (review(operation="EXPLODE"), "Invalid enum value 'EXPLODE'"),
            (review(userInfo="root"), "Expected `object`, got `str`"),
        ],
    )  # fmt: skip
    async def test_is_refused_with_a_sentence(self, start: Start, body: Any, sentence: str):
        async with start() as guarded:
            status, text = await guarded.post(body)
            assert (status, sentence in text) == (400, True), text
            assert (await guarded.ask())["allowed"]

    async def test_other_paths_methods_and_types(self, start: Start):
        async with start() as guarded:
            base = guarded.url.removesuffix("/validate")
            for path in ("/", "/validate/", "/mutate", "/metrics", "/healthz", "//validate"):
                async with guarded.session.post(base + path, json=review()) as answer:
                    assert answer.status == 404, path
            for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
                async with guarded.session.request(method, guarded.url) as answer:
                    assert (answer.status, answer.headers["Allow"]) == (405, "POST"), method
            assert (await guarded.post(review(), headers={"Content-Type": "text/plain"}))[0] == 415
            assert (await guarded.post(b"", headers={"Content-Type": "application/json; charset=utf-8"}))[0] == 400
            assert (await guarded.post(b"x", headers={"Content-Encoding": "gzip"}))[0] == 415
            status, _ = await guarded.post(review(), params={"timeout": "3s"})
            assert status == 200

    async def test_a_body_over_the_limit(self, start: Start):
        async def chunks() -> Any:
            for _ in range(9):
                yield b" " * (1 << 20)

        async with start() as guarded:
            status, text = await guarded.post(b" " * (9 << 20))
            assert (status, text) == (413, "the body has more than 8 MiB\n")
            async with guarded.session.post(
                guarded.url, data=chunks(), headers={"Content-Type": "application/json"}
            ) as answer:
                assert answer.status == 413
            assert (await guarded.ask())["allowed"]

    async def test_a_client_that_waits_for_leave_gets_it(self, start: Start):
        """curl does so for bodies of more than a MiB."""
        async with start() as guarded:
            status, _ = await guarded.post(review(), expect100=True)
            assert status == 200

    @pytest.mark.parametrize(
        "garbage",
        [b"\x00" * 100, b"SSH-2.0-OpenSSH_9.6\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
         HEAD + b"Content-Length: nonsense\r\n\r\n", HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
         HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    )  # fmt: skip
    async def test_what_is_not_http_ends_quietly(self, start: Start, garbage: bytes):
        with structlog.testing.capture_logs() as logs:
            async with start() as guarded:
                reader, writer = await guarded.connect()
                writer.write(garbage)
                answer = await closed(reader)
                writer.close()
                assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer
                assert (await guarded.ask())["allowed"]
        assert [entry for entry in logs if entry["log_level"] == "error"] == []

    @pytest.mark.parametrize(
        "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\x00" * 300, b"\x80\x2e\x01" * 50, b""]
    )
    async def test_what_is_not_tls_ends_quietly(self, start: Start, garbage: bytes):
        with structlog.testing.capture_logs() as logs:
            async with start(handshake=0.3) as guarded:
                reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
                writer.write(garbage)
                await closed(reader)
                writer.close()
                assert (await guarded.ask())["allowed"]
        assert [entry for entry in logs if entry["log_level"] in ("warning", "error")] == []

    async def test_old_tls_is_not_spoken(self, start: Start):
        async with start() as guarded:
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", guarded.port, ssl=old)


async def told(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer: status, headers in lower case, body."""
    async with asyncio.timeout(20):
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


class TestAPIServers:
    """What has the form in which API servers ask is answered as it is read; the rest is aiohttp's."""

    async def test_a_question_costs_no_task_and_only_the_first_a_handshake(self, start: Start):
        tasks: list[Any] = []

        def noted(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            tasks.append(coro)
            return asyncio.Task(coro, loop=loop, **options)

        handshakes, irregular = (f"netloom_guard_{name}_total" for name in ("handshakes", "irregular_requests"))
        before = counted(handshakes), counted(irregular)
        async with start() as guarded:
            reader, writer = await guarded.connect()
            writer.write(asked())
            await told(reader)
            asyncio.get_running_loop().set_task_factory(noted)
            for number in range(50):
                writer.write(asked(json.dumps(review(uid=str(number))).encode()))
                status, headers, body = await told(reader)
                assert (status, headers["content-type"]) == (200, "application/json")
                assert json.loads(body)["response"] == {"uid": str(number), "allowed": True}
            asyncio.get_running_loop().set_task_factory(None)
            writer.close()
        assert tasks == []
        assert (counted(handshakes) - before[0], counted(irregular) - before[1]) == (1, 0)

    async def test_no_clock_but_our_own_ends_a_rest(self, start: Start, monkeypatch: pytest.MonkeyPatch):
        """aiohttp's knows nothing of what it did not answer itself."""
        made: list[ServerConnection] = []
        monkeypatch.setattr(ServerConnections, "add", lambda self, each: (made.append(each), add(self, each)))
        async with start(idle=30.0) as guarded:
            assert (await guarded.ask())["allowed"]
        assert [each.keepalive_timeout > 1e6 for each in made] == [True]

    @pytest.mark.parametrize("size", [1, 7, 100, 400])
    async def test_a_question_in_pieces(self, start: Start, size: int):
        before = counted("netloom_guard_irregular_requests_total")
        async with start() as guarded:
            reader, writer = await guarded.connect()
            whole = asked()
            head = len(whole) - len(BODY)
            for begin in (0, *range(head, len(whole), size)):
                writer.write(whole[begin : begin + size] if begin else whole[:head])
                await asyncio.sleep(0.001)
            assert (await told(reader))[0] == 200
            writer.write(asked())
            assert (await told(reader))[0] == 200
            writer.close()
        assert counted("netloom_guard_irregular_requests_total") == before

    @pytest.mark.parametrize(
        ("other", "answers"),
        [
            (asked().replace(b"Accept-Encoding", b"X-Other"), [200]),
            (asked().replace(b"POST", b"PUT"), [405]),
            (asked().replace(b"?timeout=3s", b"/other"), [404]),
            (asked().replace(b"json\r", b"yaml\r"), [415]),
            (asked().replace(b"Accept-", b"Content-"), [415]),
            (asked(b"[]"), [400]),
            (asked(b""), [400]),
            (asked() + asked(), [200, 200]),
            (asked() + HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, [200, 200]),
            (asked(json.dumps(review(object={"data": "x" * (80 << 10)})).encode()), [200]),
            (asked(json.dumps(review(object={"data": "x" * (200 << 10)})).encode()), [200]),
        ],
    )  # fmt: skip
    async def test_any_other_request_is_aiohttps_and_so_is_what_follows(
        self, start: Start, other: bytes, answers: list[int]
    ):
        async with start() as guarded:
            before = counted("netloom_guard_irregular_requests_total")
            reader, writer = await guarded.connect()
            for request, statuses in ((asked(), [200]), (other, answers), (asked(), [200])):
                writer.write(request)
                assert [(await told(reader))[0] for _ in statuses] == statuses
            writer.close()
            assert counted("netloom_guard_irregular_requests_total") - before == len(answers) + 1

    @pytest.mark.parametrize(
        "more",
        [
            b"Content-Length: 5\r\n",
            b"Content-Length: %d\r\n" % len(BODY),
            b"Transfer-Encoding: chunked\r\n",
            b" X: y\r\n",
        ],
    )
    async def test_a_head_that_can_be_read_in_two_ways_ends_the_connection(self, start: Start, more: bytes):
        async with start() as guarded:
            for place in (b"User-Agent", b"Accept: ", b"Accept-Encoding"):
                reader, writer = await guarded.connect()
                for request, status in ((asked(), 200), (asked().replace(place, more + place), 400)):
                    writer.write(request)
                    assert (await told(reader))[0] == status
                assert await closed(reader) == b""
                writer.close()

    async def test_half_a_request_of_another_form_is_not_taken_for_a_question(self, start: Start):
        """A body that reads like a question is a body: aiohttp was given its head."""
        seen: list[str] = []

        def decide(request: AdmissionRequest) -> Ruling:
            seen.append(request.uid)
            return ALLOWED

        async with start(decide) as guarded:
            reader, writer = await guarded.connect()
            inner = asked(json.dumps(review(uid="smuggled")).encode())
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(inner))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(inner)
            assert (await told(reader))[0] == 400
            writer.close()
        assert seen == []

    async def test_a_refusal_and_a_bug_are_told_as_ever(self, start: Start):
        def decide(request: AdmissionRequest) -> Ruling:
            if request.uid == "2":
                raise KeyError("mode")
            return Ruling(refusals=(MODE,))

        with structlog.testing.capture_logs():
            async with start(decide) as guarded:
                reader, writer = await guarded.connect()
                for uid, code in (("1", 403), ("2", 500), ("3", 403)):
                    writer.write(asked(json.dumps(review(uid=uid)).encode()))
                    status, _, body = await told(reader)
                    assert (status, json.loads(body)["response"]["status"]["code"]) == (200, code)
                writer.close()


class TestSlowClients:
    """Each is cut off, and others are served meanwhile."""

    async def test_a_handshake_that_never_ends(self, start: Start):
        async with start(handshake=0.3) as guarded:
            reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            assert (await guarded.ask())["allowed"]
            assert await closed(reader) == b""
            writer.close()

    @pytest.mark.parametrize("first", [False, True], ids=["first request", "after another"])
    @pytest.mark.parametrize(
        "begun",
        [HEAD[:10], HEAD, HEAD + b"Content-Length: 1000\r\n\r\n{", ASKED % 1000 + b"{"],
        ids=["line", "headers", "body", "question"],
    )
    async def test_a_request_that_trickles_in(self, start: Start, first: bool, begun: bytes):
        before = counted("netloom_guard_errors_total", cause="deadline")
        async with start(request=0.5, idle=60.0) as guarded:
            reader, writer = await guarded.connect()
            if first:
                body = json.dumps(review()).encode()
                writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")
            writer.write(begun)
            ended = asyncio.create_task(closed(reader))
            while not ended.done():
                if not writer.is_closing():
                    writer.write(b"x" if b"\r\n\r\n" in begun else b"x" if begun != HEAD else b"X: y\r\n")
                assert (await guarded.ask())["allowed"]
                await asyncio.wait([ended], timeout=0.05)
            assert b"200" not in await ended
            writer.close()
        assert counted("netloom_guard_errors_total", cause="deadline") - before == 1

    @pytest.mark.parametrize(
        "requests",
        [[(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) * 20], [asked()] * 20],
        ids=["pipelined", "one by one"],
    )
    async def test_a_client_that_does_not_take_its_answers(self, start: Start, requests: list[bytes]):
        """It sends reviews whose refusals are long, and never reads."""
        long = Ruling(refusals=(MODE,) * 20_000)
        before = counted("netloom_guard_errors_total", cause="deadline")
        async with start(lambda request: long, request=0.5) as guarded:
            _, writer = await guarded.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            for request in requests:
                writer.write(request)
                await asyncio.sleep(0.02)
            await until(lambda: counted("netloom_guard_errors_total", cause="deadline") > before, "cut off")
            assert (await guarded.ask())["allowed"] is False
            writer.transport.abort()

    async def test_a_client_that_takes_a_long_answer_late(self, start: Start):
        long = Ruling(refusals=(MODE,) * 20_000)
        before = counted("netloom_guard_irregular_requests_total")
        async with start(lambda request: long) as guarded:
            reader, writer = await guarded.connect()
            for _ in range(2):
                writer.write(asked())
                await asyncio.sleep(0.05)  # a StreamReader takes in 128 KiB by itself, and no more
                assert (await told(reader))[0] == 200
            writer.close()
        assert counted("netloom_guard_irregular_requests_total") == before

    async def test_a_pause_that_is_too_long(self, start: Start):
        async with start(idle=0.4) as guarded:
            never_asked, writer = await guarded.connect()
            assert (await guarded.ask())["allowed"]
            assert await closed(never_asked) == b""
            writer.close()

    async def test_a_client_that_leaves_in_the_middle(self, start: Start):
        with structlog.testing.capture_logs() as logs:
            async with start() as guarded:
                for begun in (b"", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n{"):
                    _, writer = await guarded.connect()
                    writer.write(begun)
                    await writer.drain()
                    writer.transport.abort()
                assert (await guarded.ask())["allowed"]
        assert [entry for entry in logs if entry["log_level"] == "error"] == []


class TestCrowds:
    async def test_who_rests_longest_goes_first(self, start: Start):
        async with start(connections=3) as guarded:
            oldest, first = await guarded.connect()
            _, second = await guarded.connect()
            _, third = await guarded.connect()
            fourth_reader, fourth = await guarded.connect()
            assert await closed(oldest) == b""
            body = json.dumps(review()).encode()
            fourth.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert (await fourth_reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")
            for writer in (first, second, third, fourth):
                writer.close()

    async def test_half_open_handshakes_do_not_keep_others_out(self, start: Start):
        async with start(connections=20, handshake=60.0) as guarded:
            crowd = [await asyncio.open_connection("127.0.0.1", guarded.port) for _ in range(40)]
            assert (await guarded.ask())["allowed"]
            for reader, _ in crowd[:20]:
                assert await closed(reader) == b""
            for _, writer in crowd:
                writer.close()

    async def test_requests_that_never_end_do_not_keep_others_out(self, start: Start):
        async with start(connections=20, request=60.0) as guarded:
            crowd = [await guarded.connect() for _ in range(20)]
            for _, writer in crowd:
                writer.write(HEAD)
                await writer.drain()
            assert (await guarded.ask())["allowed"]
            for _, writer in crowd:
                writer.transport.abort()

    async def test_large_bodies_share_what_they_may_take_and_small_ones_do_not_care(self, start: Start):
        async with start(large=1 << 20) as guarded:
            slow = [await guarded.connect() for _ in range(2)]
            for _, writer in slow:
                writer.write(HEAD + b"Content-Length: 4000000\r\n\r\n" + b" " * (600 << 10))
                await writer.drain()
            answers = [asyncio.create_task(closed(reader)) for reader, _ in slow]
            (refused, *_), _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert refused.result().startswith(b"HTTP/1.1 503")
            assert (await guarded.ask())["allowed"]
            for _, writer in slow:
                writer.transport.abort()
            await asyncio.wait(answers)
            assert (await guarded.ask(object={"data": "x" * (1 << 19)}))["allowed"]


class TestLife:
    async def test_a_new_certificate_needs_no_restart(self, start: Start, presented: ServingTLS, ca: Any):

        def serial(writer: asyncio.StreamWriter) -> str:
            return str(writer.get_extra_info("peercert")["serialNumber"])

        async with start() as guarded:
            reader, before = await guarded.connect()
            serving = certificates.issue(ca, ["guard.test", "127.0.0.1"], NOW)
            presented.present(serving.certificate, serving.key)
            _, after = await guarded.connect()
            assert serial(before) != serial(after)
            body = json.dumps(review()).encode()
            before.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")
            before.close()
            after.close()

    async def test_a_pair_that_does_not_fit_changes_nothing(self, start: Start, presented: ServingTLS, ca: Any):

        one, other = (certificates.issue(ca, ["guard.test"], NOW) for _ in range(2))
        async with start() as guarded:
            with pytest.raises(ssl.SSLError):
                presented.present(one.certificate, other.key)
            with pytest.raises(ssl.SSLError):
                presented.present("nonsense", other.key)
            assert (await guarded.ask())["allowed"]

    async def test_without_a_certificate_no_handshake_succeeds_and_nothing_is_logged(self):
        async with serve(lambda request: ALLOWED, ServingTLS().context, "127.0.0.1") as port:
            anyone = ssl.create_default_context()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=anyone, server_hostname="guard.test")

    async def test_a_taken_port_is_said_plainly(self, start: Start, presented: ServingTLS):
        async with start() as guarded:
            with pytest.raises(ConfigError, match=f"cannot serve HTTPS on 127.0.0.1:{guarded.port}: Address already"):
                async with serve(lambda request: ALLOWED, presented.context, "127.0.0.1", guarded.port):
                    pass

    async def test_all_addresses_of_both_families(self, presented: ServingTLS, ca: Any):
        async with serve(lambda request: ALLOWED, presented.context, "") as port:
            trusting = ssl.create_default_context(cadata=ca.certificate)
            for host in ("127.0.0.1", "::1"):
                _, writer = await asyncio.open_connection(host, port, ssl=trusting, server_hostname="guard.test")
                writer.close()
                await writer.wait_closed()

    @pytest.mark.parametrize("request_", [HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, asked()])
    async def test_who_is_leaving_sends_clients_elsewhere_with_their_answers(self, start: Start, request_: bytes):
        away = False
        async with start(leaving=lambda: away) as guarded:
            request = request_
            reader, writer = await guarded.connect()
            for away in (False, True):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["response"]["allowed"]
                assert (b"connection: close" in head.lower()) == away
            assert await closed(reader) == b""
            writer.close()

    async def test_the_end_does_not_wait_for_those_who_rest(self, start: Start):
        async with start(idle=600.0) as guarded:
            reader, writer = await guarded.connect()
            half_open, other = await asyncio.open_connection("127.0.0.1", guarded.port)
        assert await closed(reader) == b""
        assert await closed(half_open) == b""
        writer.close()
        other.close()
