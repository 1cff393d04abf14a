"""Certificates kept against an API server that fails, refuses and lags. The e2e tests have a real one."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from netloom.runtime import clock as clock_module
from netloom.runtime.client import Api
from netloom.runtime.clock import ServerClock
from netloom.runtime.metrics import REGISTRY
from netloom.runtime.watch import WatchTiming
from netloom.webhook import certificates
from netloom.webhook.authority import Authority, AuthorityTiming
from netloom.webhook.configuration import PACE
from netloom.webhook.mint import Mint
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import Call, Object, ScriptedApi, half_open, refuse, serving, until
from tests.webhook.conftest import NOW, InProcess
from tests.webhook.test_certificates import handshake

SECRETS = "/api/v1/namespaces/netloom-system/secrets"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
NAME, SECRET = "netloom-guard", "netloom-guard-ca"
MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)
FAST = AuthorityTiming(period=0.02, base=0.01, cap=0.05, watch=WatchTiming(base=0.01, cap=0.05))


class Clock:
    def __init__(self) -> None:
        self.now = NOW
        self.looks = 0

    def __call__(self) -> dt.datetime:
        self.looks += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedApi]:
    async with serving() as running:
        yield running


@pytest.fixture
async def api(server: ScriptedApi, tmp_path: Path) -> AsyncIterator[Api]:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", {"server": server.url}, {"token": "secret"})
    async with await Api.connect(kubeconfig, timeout=5.0) as client:
        yield client


Start = Callable[..., Authority]


@pytest.fixture
async def start(api: Api, clock: Clock) -> AsyncIterator[Start]:
    async with asyncio.TaskGroup() as group:
        tasks = []

        def begin(**options: Any) -> Authority:
            options = {"now": clock, "mint": InProcess(), **options}
            authority = Authority(api, namespace="netloom-system", hosts=["guard.test"], timing=FAST, **options)
            tasks.append(group.create_task(authority.run()))
            return authority

        yield begin
        for task in tasks:
            task.cancel()


def secret(*cas: certificates.CA) -> Object:
    return {"metadata": {"name": SECRET, "namespace": "netloom-system"}, "data": certificates.dump(cas)}


def configuration(bundle: str = "", *urls: str) -> Object:
    """Two webhooks of a Service; or one at each URL."""
    encoded = base64.b64encode(bundle.encode()).decode()
    hook = {
        "clientConfig": {"caBundle": encoded, "service": {"name": NAME, "namespace": "netloom-system"}},
        "failurePolicy": "Fail",
    }
    hooks = [{"name": "one", **hook}, {"name": "two", **hook}]
    if urls:
        hooks = [{"name": f"at-{url}", "clientConfig": {"caBundle": encoded, "url": url}} for url in urls]
    return {"metadata": {"name": NAME}, "webhooks": hooks}


def published(server: ScriptedApi) -> set[str]:
    hooks = server.objects[CONFIGURATIONS][NAME]["webhooks"]
    return {base64.b64decode(hook["clientConfig"]["caBundle"]).decode() for hook in hooks}


def stored(server: ScriptedApi) -> tuple[certificates.CA, ...]:
    return certificates.parse(server.objects[SECRETS][SECRET]["data"], SECRET)


def good(authority: Authority) -> bool:
    return authority.fault == ""


async def test_the_watches_ask_for_one_object_each(server: ScriptedApi, start: Start):
    authority = start()
    await until(lambda: good(authority), "it serves")
    asked = {(call.collection, call.query["fieldSelector"]) for call in server.calls if call.verb in ("list", "watch")}
    assert asked == {(SECRETS, f"metadata.name={SECRET}"), (CONFIGURATIONS, f"metadata.name={NAME}")}


async def test_the_patch_names_the_object_that_was_seen_and_nothing_but_the_bundle(server: ScriptedApi, start: Start):
    seen = server.put(CONFIGURATIONS, configuration())
    authority = start()
    await until(lambda: good(authority), "it serves")
    (patch,) = [call for call in server.calls if call.verb == "patch"]
    encoded = base64.b64encode(stored(server)[0].certificate.encode()).decode()
    assert patch.body == {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME, "uid": seen["metadata"]["uid"]},
        "webhooks": [{"name": name, "clientConfig": {"caBundle": encoded}} for name in ("one", "two")],
    }
    assert patch.query == {"fieldManager": "netloom-guard-ca", "force": "true"}


async def test_it_says_what_it_waits_for(server: ScriptedApi, start: Start):
    server.faulty = refuse(403, "Forbidden", "secrets is forbidden")
    authority = start()
    await until(lambda: "secrets is forbidden" in authority.fault, "said")
    assert authority.fault.startswith("no certificate to serve with yet: ")
    server.faulty = None
    await until(lambda: good(authority), "it serves")


async def test_a_secret_that_another_made_first_is_taken_over(server: ScriptedApi, start: Start, ca: certificates.CA):
    async def faster(call: Call) -> web.StreamResponse:
        server.put(SECRETS, secret(ca))
        return await call.ordinary()

    server.on("create", faster)
    authority = start()
    await until(lambda: good(authority), "it serves")
    assert stored(server) == (ca,)
    assert authority.serving
    assert authority.serving.signer == ca.certificate


async def test_a_write_whose_answer_is_lost_is_not_repeated(server: ScriptedApi, start: Start):
    async def lost(call: Call) -> web.StreamResponse:
        await call.ordinary()
        return await refuse(500, "InternalError", "etcd is gone")(call)

    server.on("create", lost)
    authority = start()
    await until(lambda: good(authority), "it serves")
    assert server.count("create") <= 2
    assert len(stored(server)) == 1


async def test_of_two_that_rotate_at_once_one_wins(
    server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA
):
    server.put(SECRETS, secret(ca))
    authority = start()
    await until(lambda: good(authority), "it serves")
    clock.now += certificates.CA_LIFE * 2 / 3
    second = certificates.new_ca(clock.now)

    async def faster(call: Call) -> web.StreamResponse:
        server.put(SECRETS, secret(ca, second))
        return await call.ordinary()

    server.on("update", faster)
    await until(lambda: len(authority.cas) == 2, "a second CA")
    clock.now += certificates.OVERLAP
    await until(lambda: authority.serving and authority.serving.signer == second.certificate, "it signs")
    assert stored(server) == (ca, second)
    assert server.count("update") == 1


async def test_foreign_labels_of_the_secret_survive_a_rotation(
    server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA
):
    made = secret(ca)
    made["metadata"]["labels"] = {"backup": "no"}
    server.put(SECRETS, made)
    authority = start()
    await until(lambda: good(authority), "it serves")
    clock.now += certificates.CA_LIFE * 2 / 3
    await until(lambda: len(authority.cas) == 2, "a second CA")
    assert server.objects[SECRETS][SECRET]["metadata"]["labels"] == {"backup": "no"}


async def test_an_api_server_that_is_away_when_it_is_time_costs_nothing_but_a_sentence(
    server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA
):
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))
    authority = start()
    await until(lambda: good(authority), "it serves")
    server.faulty = refuse(503, "ServiceUnavailable", "away")
    server.disconnect()
    clock.now += certificates.CA_LIFE * 2 / 3
    await until(lambda: "away" in authority.failure, "said")
    assert authority.fault == "", "it renews by itself what it can, and stays ready"
    assert authority.serving
    assert authority.serving.expires == clock.now + certificates.SERVING_LIFE
    assert stored(server) == (ca,)
    server.faulty = None
    await until(lambda: authority.failure == "" and len(authority.cas) == 2, "it goes on")
    assert len(stored(server)) == 2


async def test_a_bundle_that_may_not_be_written_is_said_and_tried_seldom(
    server: ScriptedApi, start: Start, ca: certificates.CA
):
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration())
    server.on("patch", *[refuse(403, "Forbidden", "cannot patch")] * 3)
    authority = start()
    await until(lambda: "cannot patch" in authority.fault, "said")
    assert f"the caBundle of ValidatingWebhookConfiguration {NAME} does not have the CA" in authority.fault
    await until(lambda: good(authority), "written at last")
    assert server.count("patch") == 4


async def test_two_that_keep_different_bundles_do_not_answer_each_other_for_ever(
    server: ScriptedApi, start: Start, clock: Clock
):
    """Each write is told to the other, who writes at once; and to all API servers."""
    server.put(CONFIGURATIONS, configuration())
    both = [start(secret="one"), start(secret="two")]
    await until(lambda: server.count("patch") >= 2 * PACE.most, "they fight")
    looks = clock.looks
    await until(lambda: clock.looks > looks + 40, "they look again")
    assert server.count("patch") == 2 * PACE.most
    await until(lambda: any("again and again" in each.fault for each in both), "said")


async def test_a_signer_that_is_not_published_does_not_replace_one_that_is(
    server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA
):
    """A CA that is long seen in the Secret, while the patch of the webhooks is refused."""
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))
    authority = start()
    await until(lambda: good(authority), "it serves")
    second = certificates.new_ca(NOW + MINUTE)
    refused = refuse(403, "Forbidden", "cannot patch")

    async def no_patches(call: Call) -> web.StreamResponse:
        return await (refused(call) if call.verb == "patch" else call.ordinary())

    server.faulty = no_patches
    server.put(SECRETS, secret(ca, second))
    clock.now += 2 * certificates.OVERLAP
    await until(lambda: server.count("patch") >= 2, "tried")
    assert authority.serving
    assert authority.serving.signer == ca.certificate
    server.faulty = None
    await until(lambda: authority.serving and authority.serving.signer == second.certificate, "published, so shown")
    assert published(server) == {ca.certificate + second.certificate}


async def test_a_replica_that_lags_does_not_undo_what_others_published(
    server: ScriptedApi, start: Start, ca: certificates.CA
):
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))

    async def secret_lags(call: Call) -> web.StreamResponse:
        lags = call.verb == "watch" and call.collection == SECRETS
        return await (half_open(call) if lags else call.ordinary())

    server.faulty = secret_lags
    authority = start()
    await until(lambda: good(authority), "it serves")
    second = certificates.new_ca(NOW + MINUTE)
    server.put(SECRETS, secret(ca, second))
    server.put(CONFIGURATIONS, configuration(ca.certificate + second.certificate))
    await until(lambda: len(authority.cas) == 2, "it looks again before it writes")
    await until(lambda: good(authority), "content")
    assert server.count("patch") == 0


async def test_nothing_is_written_when_nothing_differs(server: ScriptedApi, start: Start, clock: Clock):
    server.put(CONFIGURATIONS, configuration())
    first = start()
    await until(lambda: good(first), "it serves")
    writes = len([call for call in server.calls if call.verb in ("create", "update", "patch")])
    assert writes == 2
    others = [start() for _ in range(3)]
    await until(lambda: all(map(good, others)), "all serve")
    for day in range(1, 30):
        clock.now = NOW + day * DAY
        await until(
            lambda: all(each.serving and each.serving.expires > clock.now + 9 * DAY for each in (first, *others))
        )
    assert len([call for call in server.calls if call.verb in ("create", "update", "patch")]) == writes


class Shown:
    """For `handshake`: what an authority listens with."""

    def __init__(self, authority: Authority) -> None:
        self.context = authority.tls


def believed(server: ScriptedApi, authority: Authority) -> bool:
    """Whether an API server with the machine's clock and the bundle in force takes what the authority shows."""
    (bundle,) = published(server)
    try:
        handshake(Shown(authority), bundle, "guard.test")  # type: ignore[arg-type]
    except ssl.SSLError:
        return False
    return True


def shown_to(server: ScriptedApi, authority: Authority, *hosts: str) -> list[str]:
    """Those of the hosts for which an API server takes what the authority shows."""
    taken = []
    for host in hosts:
        with contextlib.suppress(ssl.SSLError):
            handshake(Shown(authority), next(iter(published(server))), host)  # type: ignore[arg-type]
            taken.append(host)
    return taken


async def test_the_certificate_is_for_where_the_webhooks_are_called(server: ScriptedApi, start: Start):
    urls = "https://127.0.0.1:9443/validate", "https://[0:0::1]:9443/validate", "https://Guard.Example.com./validate"
    server.put(CONFIGURATIONS, configuration("", *urls))
    authority = start()
    await until(lambda: good(authority), "it serves")
    every = "127.0.0.1", "::1", "guard.example.com", "guard.test"
    assert shown_to(server, authority, *every, "127.0.0.2", "example.com") == list(every)


async def test_a_change_of_the_url_makes_a_certificate_and_keeps_the_names_of_before_for_once(
    server: ScriptedApi, start: Start, clock: Clock
):
    """API servers that have not seen the change go on to call where they did."""
    server.put(CONFIGURATIONS, configuration("", "https://10.0.0.1:9443/"))
    authority = start()
    await until(lambda: good(authority), "it serves")
    (ca,) = stored(server)
    hosts = "10.0.0.1", "10.0.0.2", "10.0.0.3"

    async def becomes(*shown: str) -> None:
        await until(lambda: shown_to(server, authority, *hosts) == list(shown) and good(authority), f"for {shown}")

    await becomes("10.0.0.1")
    server.put(CONFIGURATIONS, configuration(ca.certificate, "https://10.0.0.2:9443/"))
    await becomes("10.0.0.1", "10.0.0.2")
    server.put(CONFIGURATIONS, configuration(ca.certificate, "https://10.0.0.3:9443/"))
    await becomes("10.0.0.2", "10.0.0.3")
    clock.now += certificates.SERVING_LIFE * 3 / 4
    await until(
        lambda: authority.serving and authority.serving.hosts == ("guard.test", "10.0.0.3"), "no names of before"
    )
    assert server.count("patch") == 1, "the CA is the same"


async def test_an_address_that_the_certificate_is_not_for_is_said(
    server: ScriptedApi, start: Start, ca: certificates.CA
):
    """While none for it can be issued."""
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))
    mint = InProcess()
    authority = start(mint=mint)
    await until(lambda: good(authority), "it serves")
    mint.fail = "no memory"
    server.put(CONFIGURATIONS, configuration(ca.certificate, "https://[fd00::7]:9443/"))
    await until(lambda: "no memory" in authority.fault, "said")
    assert authority.fault == (
        "the certificate of this replica is for guard.test, netloom-guard.netloom-system.svc, and not for fd00::7, "
        f"where API servers call (ValidatingWebhookConfiguration {NAME}, webhook at-https://[fd00::7]:9443/): "
        "a serving certificate was not issued: no process to do it could be started: no memory"
    )
    mint.fail = ""
    await until(lambda: good(authority), "it serves again")


async def test_a_url_without_a_host_is_said(server: ScriptedApi, start: Start, ca: certificates.CA):
    server.put(CONFIGURATIONS, configuration("", "https://[::1", "https://127.0.0.1:9443/"))
    authority = start()
    await until(lambda: "clientConfig says no host" in authority.fault, "said")
    assert authority.fault.endswith("webhook at-https://[::1: clientConfig says no host to call that could be read")


JUMPS = [-400 * DAY, -120 * MINUTE, 120 * MINUTE, 400 * DAY]


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_replica_whose_clock_is_wrong_for_a_while_takes_nothing_from_another(
    server: ScriptedApi, start: Start, clock: Clock, jump: dt.timedelta
):
    server.put(CONFIGURATIONS, configuration())
    other, wrong = Clock(), clock
    good_one, bad_one = start(now=other), start()
    await until(lambda: good(good_one) and good(bad_one), "both serve")
    (ca,) = stored(server)
    server.calls.clear()
    wrong.now += jump
    looks = wrong.looks
    await until(lambda: wrong.looks > looks + 10 and good(bad_one), "it does what its clock demands")
    assert ca in stored(server)
    assert ca.certificate in "".join(published(server))
    assert good(good_one)
    assert believed(server, good_one)
    wrong.now = NOW
    await until(lambda: good(bad_one) and believed(server, bad_one), "it is itself again")
    assert ca in stored(server)
    assert believed(server, good_one)
    assert server.count("update") <= 1
    bundles = Counter(str(call.body) for call in server.calls if call.verb == "patch")
    assert max(bundles.values(), default=0) <= 2, "each writes a bundle at most once"


@pytest.mark.parametrize("jump", JUMPS)
async def test_replicas_go_by_the_clock_of_the_api_server(
    server: ScriptedApi, start: Start, api: Api, monkeypatch: pytest.MonkeyPatch, jump: dt.timedelta
):
    """All wall clocks here are wrong, that of the API server alone is right."""
    monkeypatch.setattr(clock_module, "wall", lambda: NOW + jump)
    api.clock = ServerClock(wall=clock_module.wall)
    server.put(CONFIGURATIONS, configuration())
    replicas = [start(now=None), start(now=None)]
    await until(lambda: all(map(good, replicas)), "they serve")
    assert all(believed(server, each) for each in replicas)
    (ca,) = stored(server)
    assert abs(ca.created - dt.datetime.now(dt.UTC)) < MINUTE


@pytest.mark.parametrize("jump", JUMPS)
async def test_an_api_server_whose_clock_is_set_is_served_there_and_back(
    server: ScriptedApi, start: Start, api: Api, jump: dt.timedelta
):
    server.put(CONFIGURATIONS, configuration())
    replicas = [start(now=None), start(now=None)]
    await until(lambda: all(map(good, replicas)), "they serve")
    (ca,) = stored(server)
    for ahead in (jump, dt.timedelta()) * 2:
        server.ahead = ahead
        await api.request("GET", "/version")
        await until(lambda: all(map(good, replicas)), "they serve by the new clock")
        now = NOW + ahead + MINUTE
        for replica in replicas:
            assert replica.serving
            assert certificates.invalidity(replica.serving, now) == ""
            (by,) = [each for each in stored(server) if each.certificate == replica.serving.signer]
            assert certificates.invalidity(by, now) == ""
    assert all(believed(server, each) for each in replicas)
    assert ca in stored(server)
    assert len(stored(server)) <= 2, "the way there and back, twice, takes one CA more"


@pytest.mark.parametrize("beside", [False, True])
async def test_a_secret_with_a_ca_of_the_future_heals_by_itself(
    server: ScriptedApi, start: Start, ca: certificates.CA, beside: bool
):
    """What an older version left when its clock was ahead: that CA alone, published, and nothing else trusted."""
    future = certificates.new_ca(NOW + 400 * DAY)
    server.put(SECRETS, secret(future, *([ca] if beside else [])))
    server.put(CONFIGURATIONS, configuration(future.certificate))
    authority = start()
    await until(lambda: good(authority), "it serves")
    assert believed(server, authority)
    assert len(stored(server)) == 2
    assert set(certificates.certificates_of("".join(published(server)))) == set(
        certificates.certificates_of("".join(each.certificate for each in stored(server)))
    )


async def test_what_is_not_valid_now_is_not_shown_and_said(
    server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA
):
    """Nothing can be made, as neither children nor the API server do their work."""
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))
    authority = start()
    await until(lambda: good(authority) and believed(server, authority), "it serves")
    server.faulty = refuse(503, "ServiceUnavailable", "away")
    server.disconnect()
    clock.now -= 2 * DAY
    await until(lambda: authority.failure, "it fails to make another")
    assert authority.fault.startswith("the certificate is not valid before ")
    assert not believed(server, authority)
    clock.now = NOW + 800 * DAY
    assert authority.fault.startswith("the certificate has expired at ")
    clock.now = NOW
    assert authority.fault == ""
    assert believed(server, authority), "the clock is right again, and what was there is as good as before"


async def test_the_end_of_the_certificates_is_measured(server: ScriptedApi, start: Start):
    authority = start()
    await until(lambda: good(authority), "it serves")
    read = REGISTRY.get_sample_value
    assert read("netloom_guard_certificate_expiry_seconds") == (NOW + certificates.SERVING_LIFE).timestamp()
    assert read("netloom_guard_ca_expiry_seconds") == (NOW + certificates.CA_LIFE).timestamp()


async def test_private_keys_go_nowhere_but_into_the_secret(
    server: ScriptedApi, start: Start, capsys: pytest.CaptureFixture[str]
):
    server.put(CONFIGURATIONS, configuration())
    authority = start()
    await until(lambda: good(authority), "it serves")
    assert "PRIVATE" not in capsys.readouterr().out
    assert "PRIVATE" not in json.dumps([call.body for call in server.calls if call.collection != SECRETS])


@pytest.mark.slow
async def test_an_ordinary_turn_starts_no_process(server: ScriptedApi, start: Start, clock: Clock, ca: certificates.CA):
    server.put(SECRETS, secret(ca))
    server.put(CONFIGURATIONS, configuration(ca.certificate))
    mint = Mint()
    authority = start(mint=mint)
    await until(lambda: good(authority), "it serves")
    assert mint.children == 2, "one read the Secret, one issued"
    looks = clock.looks
    clock.now += DAY
    server.put(CONFIGURATIONS, configuration(ca.certificate + "\n"))
    await until(lambda: clock.looks > looks + 10, "it looks at the clock again and again")
    assert mint.children == 2
    clock.now += certificates.SERVING_LIFE * 2 / 3
    expired = clock.now + certificates.SERVING_LIFE / 3
    await until(lambda: bool(authority.serving and authority.serving.expires > expired), "when it is time, another")
    assert mint.children == 3


async def test_foreign_content_is_read_once(server: ScriptedApi, start: Start, clock: Clock):
    server.put(SECRETS, secret() | {"data": {"password": "eA=="}})
    mint = Mint()
    authority = start(mint=mint)
    await until(lambda: "is nothing that the guard put there" in authority.failure, "said")
    looks = clock.looks
    await until(lambda: clock.looks > looks + 3, "it looks again and again")
    assert mint.children == 1


@pytest.mark.slow
async def test_a_child_that_fails_is_said_and_tried_again(server: ScriptedApi, start: Start, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.touch()
    once = f"import pathlib, runpy, sys; pathlib.Path({str(broken)!r}).exists() and sys.exit('no entropy'); "
    child = f"{once} runpy.run_module('netloom.webhook.mint', run_name='__main__')"
    authority = start(mint=Mint((sys.executable, "-c", child)))
    await until(lambda: authority.failure, "said")
    assert authority.fault == (
        "no certificate to serve with yet: a CA was not made: the process that does it ended with status 1: no entropy"
    )
    broken.unlink()
    await until(lambda: good(authority), "it serves")


@pytest.mark.slow
async def test_the_serving_process_never_loads_cryptography(server: ScriptedApi, tmp_path: Path):
    """A process of its own, as this one has long loaded it."""
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", {"server": server.url}, {"token": "secret"})
    program = """
import asyncio, sys
from netloom.runtime.client import Api
from netloom.webhook.authority import Authority

async def main(kubeconfig):
    async with await Api.connect(kubeconfig) as api:
        authority = Authority(api, namespace="netloom-system", hosts=["guard.test"])
        running = asyncio.create_task(authority.run())
        async with asyncio.timeout(30):
            while authority.fault:
                await asyncio.sleep(0.01)
        running.cancel()
    print(authority.serving, *(name for name in sys.modules if name.startswith("cryptography")))

asyncio.run(main(sys.argv[1]))
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(kubeconfig), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await child.communicate()
    last = said.decode().splitlines()[-1]
    assert last.startswith("ServingCertificate(created=")
    assert "cryptography" not in last
