"""The guard's certificates on a real API server: replicas that agree, a bundle that is kept, and an API server that
believes them, also while the CA changes."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.api.admission import AdmissionRequest
from netloom.api.admissionregistration import VALIDATING_WEBHOOK_CONFIGURATIONS
from netloom.api.core import CONFIG_MAPS, SECRETS, ConfigMap, ManagedMeta, Secret
from netloom.api.meta import ObjectMeta
from netloom.api.problem import Problem
from netloom.guard.verdict import ALLOWED, Ruling
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, Conflict, NotFound
from netloom.webhook import certificates
from netloom.webhook.authority import Authority, AuthorityTiming
from netloom.webhook.configuration import WebhookConfiguration
from netloom.webhook.files import CertificateFiles
from netloom.webhook.server import serve
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.namespaces import until

NAMESPACE = "default"
SECRET = "netloom-guard-ca"
NAME = "netloom-guard"
LABEL = "guard-test"
FAST = AuthorityTiming(period=0.05, base=0.02, cap=0.2)
DAY = dt.timedelta(days=1)


class Clock:
    """A clock that a test moves. It begins now, as the API server has the machine's."""

    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now


class CountingApi(Api):
    """The client, which counts what it writes."""

    written: list[str]

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        if method != "GET":
            self.__dict__.setdefault("written", []).append(f"{method} {path.rpartition('/')[2]}")
        return await super().request(method, path, **options)

    def writes(self) -> list[str]:
        """Since the last call."""
        written = list(self.__dict__.get("written", []))
        self.__dict__["written"] = []
        return written


@pytest.fixture
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    yield control_plane
    # First the webhooks: they would judge the rest.
    control_plane.delete_all("validatingwebhookconfigurations.v1.admissionregistration.k8s.io")
    control_plane.delete_all("secrets", "configmaps", namespace=NAMESPACE)


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[CountingApi]:
    async with await CountingApi.connect(str(plane.kubeconfig())) as client:
        assert isinstance(client, CountingApi)
        yield client


class Replicas:
    """Authorities that run until the test ends."""

    def __init__(self, api: Api, clock: Clock, group: asyncio.TaskGroup) -> None:
        self._api, self._clock, self._group = api, clock, group
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, **options: Any) -> Authority:
        authority = Authority(
            options.pop("api", self._api), namespace=NAMESPACE, hosts=["guard.test", "127.0.0.1"],
            secret=SECRET, configuration=NAME, now=options.pop("now", self._clock), timing=FAST, **options,
        )  # fmt: skip
        self._tasks[id(authority)] = self._group.create_task(authority.run())
        return authority

    async def stop(self, *authorities: Authority) -> None:
        tasks = [self._tasks.pop(id(authority)) for authority in authorities]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def stop_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def replicas(api: CountingApi, clock: Clock) -> AsyncIterator[Replicas]:
    async with asyncio.TaskGroup() as group:
        running = Replicas(api, clock, group)
        yield running
        await running.stop_all()


def configuration(port: int = 9, *, bundle: str = "", name: str = NAME) -> dict[str, Any]:
    """Webhooks for labelled ConfigMaps: what else lives in the control plane is not asked about."""
    webhook = {
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 3,
        "clientConfig": {"url": f"https://127.0.0.1:{port}/validate"} | ({"caBundle": bundle} if bundle else {}),
        "objectSelector": {"matchLabels": {LABEL: "yes"}},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE"]}
        ],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{"name": "one.guard.test", **webhook}, {"name": "two.guard.test", **webhook}],
    }


def apply(plane: ControlPlane, obj: dict[str, Any]) -> None:
    plane.kubectl("apply", "-f", "-", input=json.dumps(obj))


async def published(api: Api) -> set[str]:
    """The caBundles of all webhooks, as PEM."""
    found = await api.get(VALIDATING_WEBHOOK_CONFIGURATIONS, NAME)
    return {base64.b64decode(hook.client_config.ca_bundle).decode() for hook in found.webhooks}


async def becomes_published(api: Api, bundles: set[str]) -> None:
    async with asyncio.timeout(20):
        while await published(api) != bundles:
            await asyncio.sleep(0.01)


async def cas(api: Api) -> tuple[certificates.CA, ...]:
    return certificates.parse((await api.get(SECRETS, SECRET, NAMESPACE)).data, SECRET)


def serving(authority: Authority) -> bool:
    return authority.fault == ""


def config_map(name: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ManagedMeta(name=name, namespace=NAMESPACE, labels={LABEL: "yes"}), data=data)


async def believes(trusted: str, authority: Authority) -> None:
    """A real TLS handshake with what the authority presents. Raises ssl.SSLError."""
    async with serve(lambda request: ALLOWED, authority.tls, "127.0.0.1") as port:
        context = ssl.create_default_context(cadata=trusted)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="guard.test")
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


async def test_three_replicas_that_start_at_once_agree_on_one_ca(plane: ControlPlane, api: CountingApi,
                                                                 replicas: Replicas):  # fmt: skip
    apply(plane, configuration())
    started = [replicas.start() for _ in range(3)]
    await until(lambda: all(map(serving, started)), "all serve")
    (ca,) = await cas(api)
    assert {replica.serving.signer for replica in started if replica.serving} == {ca.certificate}
    assert len({replica.serving.certificate for replica in started if replica.serving}) == 3
    assert await published(api) == {ca.certificate}
    for replica in started:
        await believes(ca.certificate, replica)
    assert api.writes().count("POST secrets") <= 3


async def test_one_that_comes_later_writes_nothing(plane: ControlPlane, api: CountingApi, replicas: Replicas):
    apply(plane, configuration())
    first = replicas.start()
    await until(lambda: serving(first), "the first serves")
    assert api.writes() == ["POST secrets", f"PATCH {NAME}"]
    before = await api.get(VALIDATING_WEBHOOK_CONFIGURATIONS, NAME)
    second = replicas.start()
    await until(lambda: serving(second), "the second serves")
    plane.kubectl("annotate", "validatingwebhookconfiguration", NAME, "x=y")
    await until(lambda: second.configuration.object and second.configuration.object.metadata.annotations.get("x"))
    assert api.writes() == []
    assert (await api.get(VALIDATING_WEBHOOK_CONFIGURATIONS, NAME)).webhooks == before.webhooks


async def test_an_emptied_or_foreign_bundle_is_repaired(plane: ControlPlane, api: CountingApi, replicas: Replicas):
    apply(plane, configuration())
    replica = replicas.start()
    await until(lambda: serving(replica), "it serves")
    right = await published(api)
    foreign = base64.b64encode(certificates.new_ca(dt.datetime.now(dt.UTC)).certificate.encode()).decode()
    for bundle in ("", foreign):
        api.writes()
        plane.kubectl("replace", "-f", "-", input=json.dumps(configuration(bundle=bundle)))
        await becomes_published(api, right)
        await until(lambda: serving(replica), "it serves again")
        assert len(api.writes()) == 1


async def test_a_configuration_that_is_not_there_is_never_made(plane: ControlPlane, api: CountingApi,
                                                               replicas: Replicas):  # fmt: skip
    replica = replicas.start()
    await until(lambda: serving(replica), "it serves all the same")
    apply(plane, configuration())
    await until(lambda: bool(replica.configuration.bundles()), "seen")
    await until(lambda: serving(replica), "trusted")
    seen = replica.configuration.object
    assert seen
    plane.kubectl("delete", "validatingwebhookconfiguration", NAME)
    await until(lambda: replica.configuration.object is None, "gone")
    # As if the watch had not told it yet:
    late = WebhookConfiguration(api, NAME)
    late.store.put(seen)
    with pytest.raises(ApiError) as refused:
        await late.publish("x")
    assert isinstance(refused.value, Conflict), refused.value
    with pytest.raises(NotFound):
        await api.get(VALIDATING_WEBHOOK_CONFIGURATIONS, NAME)


async def test_a_deleted_secret_is_a_new_ca_for_all(plane: ControlPlane, api: CountingApi, replicas: Replicas):
    apply(plane, configuration())
    started = [replicas.start() for _ in range(2)]
    await until(lambda: all(map(serving, started)), "all serve")
    (old,) = await cas(api)
    await api.delete(SECRETS, SECRET, namespace=NAMESPACE)
    await until(
        lambda: (
            all(replica.serving and replica.serving.signer != old.certificate for replica in started)
            and all(map(serving, started))
        ),
        "all changed",
    )
    (new,) = await cas(api)
    assert {replica.serving.signer for replica in started if replica.serving} == {new.certificate}
    assert await published(api) == {new.certificate}


RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: guard-test}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [create]}
- {apiGroups: [""], resources: [secrets], resourceNames: [netloom-guard-ca], verbs: [get, list, watch, update]}
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [netloom-guard]
  verbs: [get, list, watch, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: guard-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: guard-test}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: guard-test}]
"""


async def test_rights_on_its_own_two_objects_are_enough(plane: ControlPlane, replicas: Replicas, clock: Clock):
    plane.kubectl("apply", "-f", "-", input=RIGHTS)
    apply(plane, configuration())
    try:
        async with await Api.connect(str(plane.kubeconfig("guard-test"))) as limited:
            replica = replicas.start(api=limited)
            await until(lambda: serving(replica), "it serves")
            clock.now += certificates.CA_LIFE * 2 / 3
            await until(lambda: len(replica.cas) == 2, "a second CA")
            await until(lambda: {certificates.bundle(replica.cas)} == set(replica.configuration.bundles()))
            await replicas.stop(replica)
    finally:
        plane.kubectl("delete", "-f", "-", input=RIGHTS)


async def test_foreign_content_is_left_alone_and_said(plane: ControlPlane, api: CountingApi, replicas: Replicas):
    data = {"password": base64.b64encode(b"hunter2").decode()}
    await api.create(SECRETS, Secret(metadata=ObjectMeta(name=SECRET, namespace=NAMESPACE), data=data))
    api.writes()
    replica = replicas.start()
    await until(lambda: "is nothing that the guard put there" in replica.fault, "said")
    assert "Secret default/netloom-guard-ca: data['password']" in replica.fault
    assert api.writes() == []
    await api.delete(SECRETS, SECRET, namespace=NAMESPACE)
    await until(lambda: serving(replica), "the way out is one")


async def test_a_year_and_a_half_of_rotations(plane: ControlPlane, api: CountingApi, replicas: Replicas, clock: Clock):
    """Two replicas and a third whose clock is five minutes late, day by day, minute by minute around a rotation: at
    each moment every replica's certificate verifies against the bundle in force."""
    apply(plane, configuration())
    started = [replicas.start(), replicas.start(), replicas.start(now=lambda: clock() - dt.timedelta(minutes=5))]
    await until(lambda: all(map(serving, started)), "all serve")
    end = clock() + 550 * DAY
    seen: set[str] = set()
    while clock() < end:
        known = await cas(api)
        newest = max(ca.created for ca in known)
        step = dt.timedelta(minutes=4) if clock() - newest < dt.timedelta(minutes=20) else 9 * DAY
        clock.now += min(step, max(newest + certificates.CA_LIFE * 2 / 3 - clock(), dt.timedelta(minutes=4)))

        def in_force(replica: Authority) -> bool:
            now = clock()
            held = replica.serving
            (bundle,) = set(replica.configuration.bundles())
            assert held
            # What is shown at any moment is trusted at that moment ...
            assert certificates.contains(bundle, held.signer)
            # ... and soon neither is old.
            return held.expires > now + 5 * DAY and certificates.same(bundle, certificates.bundle(replica.cas))

        await until(lambda: all(map(in_force, started)) and all(map(serving, started)), f"kept at {clock.now}")
        seen |= {replica.serving.signer for replica in started if replica.serving}
    assert len(seen) == 3
    assert len(await cas(api)) == 3, "the first stays for a year past its end"


async def test_a_ca_that_expired_while_nobody_ran(plane: ControlPlane, api: CountingApi, replicas: Replicas,
                                                  clock: Clock):  # fmt: skip
    apply(plane, configuration())
    first = replicas.start()
    await until(lambda: serving(first), "it serves")
    (old,) = await cas(api)
    await replicas.stop(first)
    clock.now += 800 * DAY
    assert "has expired" in first.fault
    later = replicas.start()
    await until(lambda: serving(later), "it serves after two years")
    (new,) = await cas(api)
    assert new != old
    assert await published(api) == {new.certificate}


WIDE = " ".join(f"Machine {n} has an address that the pool covers, and pods cannot reach it." for n in range(12))


async def test_the_api_server_asks_and_a_rotation_hurts_nobody(plane: ControlPlane, api: CountingApi,
                                                               replicas: Replicas, clock: Clock):  # fmt: skip
    """The API server's clock cannot be moved: the first CA is as old as one that is about to be followed by another."""
    almost_due = clock() - certificates.CA_LIFE * 2 / 3 + dt.timedelta(minutes=5)
    data = certificates.dump([certificates.new_ca(almost_due)])
    await api.create(SECRETS, Secret(metadata=ObjectMeta(name=SECRET, namespace=NAMESPACE), data=data))
    asked: list[str] = []

    def decide(request: AdmissionRequest) -> Ruling:
        asked.append(request.name)
        if request.name.startswith("bad"):
            return Ruling(refusals=(Problem("ConfigMap default/bad", "data.x", "1", "Bad", "it is bad.", "Be good."),))
        if request.name == "unwise":
            return Ruling(warnings=(Problem("ConfigMap default/unwise", "data.x", "1", "Wide", WIDE, "Be careful."),))
        return ALLOWED

    replica = replicas.start()
    await until(lambda: serving(replica), "it serves")
    async with serve(decide, replica.tls, "127.0.0.1") as port:
        apply(plane, configuration(port))
        await until(lambda: bool(replica.configuration.bundles()), "seen")
        await until(lambda: serving(replica), "trusted")
        await asked_at_all(api, asked)

        with pytest.raises(ApiError) as refused:
            await api.create(CONFIG_MAPS, config_map("bad"))
        assert refused.value.status == 403
        assert "ConfigMap default/bad: data.x '1': it is bad. Be good." in refused.value.message

        labelled = msgspec.to_builtins(config_map("unwise")) | {"apiVersion": "v1", "kind": "ConfigMap"}
        made_by_kubectl = await asyncio.to_thread(plane.kubectl, "create", "-f", "-", input=json.dumps(labelled))
        told = " ".join(line.removeprefix("Warning: ") for line in made_by_kubectl.stderr.splitlines())
        whole = f"ConfigMap default/unwise: data.x '1': {WIDE} Be careful."
        assert told.replace(" ... ...", "") == whole, "no word is cut off on the way through the API server"

        failures: list[str] = []
        rotated = asyncio.Event()
        made = 0

        async def write(worker: int) -> None:
            nonlocal made
            while not rotated.is_set() or made < 50:
                made += 1
                try:
                    await api.create(CONFIG_MAPS, config_map(f"good-{worker}-{made}"))
                except ApiError as error:
                    failures.append(str(error))

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(worker)) for worker in range(4)]
            clock.now += dt.timedelta(minutes=6)
            await until(lambda: len(replica.cas) == 2, "a second CA")
            first, second = replica.cas
            await until(lambda: shown_by(replica) == first.certificate and serving(replica), "the first still signs")
            await becomes_published(api, {first.certificate + second.certificate})
            clock.now += certificates.OVERLAP
            await until(lambda: shown_by(replica) == second.certificate, "the second signs")
            async with serve(decide, replica.tls, "127.0.0.1") as another_port:
                # Connections that are open know only the first one's certificate: let there be new ones.
                await asyncio.to_thread(apply, plane, configuration(another_port))
                asked.clear()
                served = made
                await until(lambda: made > served + 50, "50 more")
                rotated.set()
                await asyncio.wait(writers)
        assert failures == []
        assert made >= 50


def shown_by(replica: Authority) -> str:
    """The CA that signed what a replica shows."""
    return replica.serving.signer if replica.serving else ""


async def asked_at_all(api: Api, asked: list[str]) -> None:
    """The API server takes a moment to follow its own webhook configurations."""
    async with asyncio.timeout(20):
        number = 0
        while not asked:
            number += 1
            with contextlib.suppress(ApiError):
                await api.create(CONFIG_MAPS, config_map(f"probe-{number}"))


async def test_files_of_ones_own(plane: ControlPlane, api: CountingApi, tmp_path: Path):
    """A CA of one's own: its certificate becomes the caBundle, and a change of the files is followed."""
    now = dt.datetime.now(dt.UTC)

    def put(ca: certificates.CA) -> None:
        made = certificates.issue(ca, ["guard.test", "127.0.0.1"], now)
        for name, content in (("tls.crt", made.certificate), ("tls.key", made.key), ("ca.crt", ca.certificate)):
            (tmp_path / name).write_text(content)

    one, other = certificates.new_ca(now), certificates.new_ca(now)
    put(one)
    apply(plane, configuration())
    files = CertificateFiles(
        tmp_path / "tls.crt", tmp_path / "tls.key", ca=tmp_path / "ca.crt",
        configuration=WebhookConfiguration(api, NAME), period=0.05,
    )  # fmt: skip
    task = asyncio.create_task(files.run())
    try:
        for ca in (one, other):
            put(ca)
            await becomes_published(api, {ca.certificate})
            await until(lambda: files.fault == "", "no fault")
    finally:
        task.cancel()
        await asyncio.wait([task])
