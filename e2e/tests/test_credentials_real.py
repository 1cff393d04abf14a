"""Each file that leads to the API server is changed while requests and a watch are under way, on a real API server.

Nothing is restarted, no write is lost, and the watch goes on at its position: it lists once in its life.
"""

import asyncio
import base64
import datetime as dt
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from netloom.api.core import NODES
from netloom.runtime import credentials, kubeconfig
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming
from netloom_e2e.certificates import Authority, KeyPair
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.namespaces import until

REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
MASTERS = ("system:masters",)


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path) -> Iterator[ControlPlane]:
    """Its own, as its certificates are changed."""
    with ControlPlane("credentials") as running:
        yield running


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.05)


class CountingApi(Api):
    """The client, which counts lists and watches."""

    lists = 0
    watches = 0

    async def list(self, *arguments: Any, **options: Any) -> Any:
        self.lists += 1
        return await super().list(*arguments, **options)

    @asynccontextmanager
    async def stream(self, *arguments: Any) -> AsyncIterator[Any]:
        self.watches += 1
        async with super().stream(*arguments) as content:
            yield content


class Underway:
    """A client in the middle of its work: it writes an object all the time, and watches it."""

    def __init__(self, api: CountingApi) -> None:
        self.api = api
        self.store = Store(NODES)
        self.watch = ListWatch(api, self.store, timing=WatchTiming(base=0.05, cap=0.2))
        self.written = 0
        self.failures: list[str] = []

    async def write(self) -> None:
        while True:
            try:
                number = str(self.written + 1)
                await self.api.patch(NODES, "beat", {"metadata": {"labels": {"number": number}}})
                self.written += 1
            except ApiError as error:
                self.failures.append(str(error))
            await asyncio.sleep(0.01)

    @property
    def seen(self) -> int:
        beat = self.store.get("beat")
        return int(beat.metadata.labels.get("number", "0")) if beat else 0

    async def goes_on(self) -> None:
        """The watch tells what is written after this call."""
        target = self.written + 2
        await until(lambda: self.seen >= target, f"write {target} is seen; {self.watch.fault} {self.failures[-1:]}")

    async def is_(self, user: str) -> None:
        """Until requests are made as this user."""

        async def who() -> str:
            body = msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
            try:
                answer = msgspec.json.decode(await self.api.request("POST", REVIEWS, body=body))
            except ApiError as error:
                return str(error)
            return str(answer["status"]["userInfo"]["username"])

        said = ""
        try:
            async with asyncio.timeout(20):
                while (said := await who()) != user:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it is {said!r}, not {user!r}") from None


@asynccontextmanager
async def underway(plane: ControlPlane, path: str | None = None, moves: int = 0) -> AsyncIterator[Underway]:
    """The client, working. At the end: no write failed, and it listed once, and once more for each move to another
    address: what answers there may be of another history."""
    plane.client.request("POST", "/api/v1/nodes", {"metadata": {"name": "beat"}})
    try:
        async with await CountingApi.connect(path) as api, asyncio.TaskGroup() as group:
            assert isinstance(api, CountingApi)
            client = Underway(api)
            tasks = [group.create_task(run()) for run in (client.write, client.watch.run, api.follow)]
            await client.goes_on()
            yield client
            await client.goes_on()
            for task in tasks:
                task.cancel()
        assert client.failures == []
        assert api.lists == 1 + moves
    finally:
        plane.delete_all("nodes")


def config(plane: ControlPlane, user: dict[str, object], **cluster: object) -> str:
    given = {"server": plane.url, "certificate-authority": str(plane.authority.certificate), **cluster}
    return yaml.safe_dump(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": given}],
            "users": [{"name": "u", "user": user}],
        }
    )


def replace(path: Path, content: str | bytes) -> None:
    """Atomically."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.rename(path)


def account(plane: ControlPlane, name: str) -> str:
    """A ServiceAccount that may do everything, and a token of it."""
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    plane.client.request("POST", ACCOUNTS, {"metadata": {"name": name}})
    plane.client.request("POST", BINDINGS, {"metadata": {"name": name}, "subjects": [subject], "roleRef": role})
    answer = plane.client.request("POST", f"{ACCOUNTS}/{name}/token", {"spec": {}})
    return str(answer["status"]["token"])


def revoke(plane: ControlPlane, name: str) -> None:
    plane.client.request("DELETE", f"{ACCOUNTS}/{name}")
    plane.client.request("DELETE", f"{BINDINGS}/{name}")


def paths(pair: KeyPair) -> dict[str, object]:
    return {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}


async def test_a_client_certificate_that_is_renewed_on_disk(plane: ControlPlane, tmp_path: Path) -> None:
    """Key and certificate are two files, so that for a moment one does not fit the other. The first ends meanwhile."""
    began = dt.datetime.now(dt.UTC)
    lifetime = dt.timedelta(seconds=4)
    first = plane.authority.issue("first", "first", groups=MASTERS, lifetime=lifetime)
    second = plane.authority.issue("second", "second", groups=MASTERS)
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    certificate.write_bytes(first.certificate.read_bytes())
    key.write_bytes(first.key.read_bytes())
    path = tmp_path / "kubeconfig"
    path.write_text(config(plane, {"client-certificate": str(certificate), "client-key": str(key)}))
    async with underway(plane, str(path)) as client:
        await client.is_("first")
        key.write_bytes(second.key.read_bytes())
        await until(lambda: "is not the key of the certificate in" in client.api._auth.fault, "it is noticed")
        await client.is_("first")
        certificate.write_bytes(second.certificate.read_bytes())
        await client.is_("second")
        assert client.api._auth.fault == ""
        await client.goes_on()
        assert client.api.watches == 2
        await until(lambda: dt.datetime.now(dt.UTC) > began + lifetime + dt.timedelta(seconds=1), "the first has ended")


async def test_a_plugins_client_certificate_is_renewed_before_it_ends(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeconfig, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(kubeconfig, "EXPIRY_MARGIN", dt.timedelta(seconds=3))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    began = dt.datetime.now(dt.UTC)
    lifetime = dt.timedelta(seconds=4)

    def give(user: str, lifetime: dt.timedelta) -> None:
        pair = plane.authority.issue(f"plugin-{user}", user, groups=MASTERS, lifetime=lifetime)
        status = {"clientCertificateData": pair.certificate.read_text(), "clientKeyData": pair.key.read_text()}
        credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        replace(tmp_path / "answer", json.dumps(credential))

    give("first", lifetime)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [f"{tmp_path}/answer"]}}
    path = tmp_path / "kubeconfig"
    path.write_text(config(plane, user))
    async with underway(plane, str(path)) as client:
        await client.is_("first")
        give("second", dt.timedelta(hours=1))
        await client.is_("second")
        assert dt.datetime.now(dt.UTC) < began + lifetime
        await until(lambda: dt.datetime.now(dt.UTC) > began + lifetime + dt.timedelta(seconds=1), "the first has ended")
    assert list((tmp_path / "tmp").iterdir()) == [], "no key is left on a disk"


async def test_a_token_file_is_replaced_and_the_old_token_revoked(plane: ControlPlane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(account(plane, "one"))
    path = tmp_path / "kubeconfig"
    path.write_text(config(plane, {"tokenFile": str(token)}))
    async with underway(plane, str(path)) as client:
        await client.is_("system:serviceaccount:default:one")
        replace(token, account(plane, "two"))
        await client.is_("system:serviceaccount:default:two")
        revoke(plane, "one")
        await client.goes_on()
        assert client.api.watches == 1  # a stream that is open is not asked for its token again
    revoke(plane, "two")


async def test_a_kubeconfig_that_names_something_else(plane: ControlPlane, tmp_path: Path) -> None:
    """Other files, other data, another address; replaced and edited in place; and nonsense in between."""
    users = {name: plane.authority.issue(name, name, groups=MASTERS) for name in ("anna", "bert", "carl")}
    path = tmp_path / "kubeconfig"
    path.write_text(config(plane, paths(users["anna"])))
    async with underway(plane, str(path), moves=2) as client:
        await client.is_("anna")
        replace(path, config(plane, paths(users["bert"])))
        await client.is_("bert")
        await client.goes_on()
        path.write_text(config(plane, paths(users["carl"]))[:-40])  # half-written
        await until(lambda: client.api._auth.fault, "it is noticed")
        await client.is_("bert")
        path.write_text(config(plane, inline(users["carl"]), server=f"https://localhost:{plane.port}"))
        await client.is_("carl")
        assert client.api.host == f"https://localhost:{plane.port}"
        await client.goes_on()
        path.unlink()
        await until(lambda: "does not exist" in client.api._auth.fault, "it is noticed")
        await client.is_("carl")
        replace(path, config(plane, {"token": plane.token}))
        await client.is_("admin")
        await client.goes_on()
        assert client.api.watches == 4
        assert client.api._auth.fault == ""


def inline(pair: KeyPair) -> dict[str, object]:
    files = {"client-certificate-data": pair.certificate, "client-key-data": pair.key}
    return {field: base64.b64encode(file.read_bytes()).decode() for field, file in files.items()}


def mount(folder: Path, number: int, **files: str) -> None:
    """As the kubelet does it: files are links into `..data`, and that is a link which is replaced."""
    data = folder / f"..{number}"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name.replace("_", ".")).write_text(content)
        link = folder / name.replace("_", ".")
        if not link.is_symlink():
            link.symlink_to(f"..data/{link.name}")
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").rename(folder / "..data")


async def test_a_pods_token_and_ca_and_the_api_servers_certificate_change(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that is rotated as it should be: first both are trusted, then the server changes, then the old one goes."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))
    pod = tmp_path / "serviceaccount"
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", pod)
    new = Authority(tmp_path / "new", "the next CA")
    old_ca, new_ca = plane.authority.certificate.read_text(), new.certificate.read_text()
    mount(pod, 1, ca_crt=old_ca, token=account(plane, "one"))
    async with underway(plane) as client:
        await client.is_("system:serviceaccount:default:one")
        mount(pod, 2, ca_crt=old_ca + new_ca, token=account(plane, "two"))
        await client.is_("system:serviceaccount:default:two")
        revoke(plane, "one")
        await client.goes_on()
        plane.present(new)
        await until(lambda: shown_by(plane, new), "the API server shows the new certificate")
        mount(pod, 3, ca_crt=new_ca, token=account(plane, "three"))
        await client.is_("system:serviceaccount:default:three")
        revoke(plane, "two")
        await client.goes_on()
        assert client.api.watches == 3
    revoke(plane, "three")


def shown_by(plane: ControlPlane, authority: Authority) -> bool:
    """Whether the API server's certificate is of this authority."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    try:
        with (
            socket.create_connection((plane.host, plane.port), 5) as raw,
            context.wrap_socket(raw, server_hostname=plane.host),
        ):
            return True
    except ssl.SSLError:
        return False


async def test_a_ca_that_is_rotated_without_a_warning(plane: ControlPlane, tmp_path: Path) -> None:
    """The API server is back with a certificate that nobody was told of; the file comes later, and is enough."""
    new = Authority(tmp_path / "another", "a CA out of nowhere")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(plane.authority.certificate.read_bytes())
    path = tmp_path / "kubeconfig"
    user = paths(plane.authority.issue("dora", "dora", groups=MASTERS))
    path.write_text(config(plane, user, **{"certificate-authority": str(ca)}))
    plane.client.request("POST", "/api/v1/nodes", {"metadata": {"name": "beat"}})
    async with await CountingApi.connect(str(path)) as api, asyncio.TaskGroup() as group:
        assert isinstance(api, CountingApi)
        client = Underway(api)
        tasks = [group.create_task(run()) for run in (client.write, client.watch.run, api.follow)]
        await client.goes_on()
        plane.kill_apiserver()
        plane.present(new)
        await asyncio.to_thread(plane.start_apiserver)
        sentence = f"the API server at {plane.url} shows a certificate that {ca} does not trust: "
        await until(lambda: sentence in client.watch.fault, "the watch says why")
        await until(lambda: sentence in client.failures[-1], "a request says why")
        ca.write_bytes(new.certificate.read_bytes()[:-50])
        await until(
            lambda: (
                f"what is on disk now cannot be used: a certificate or key for {plane.url} cannot be used: "
                f"there is no certificate (PEM) in {ca}" in client.watch.fault
            ),
            "both are said",
        )
        ca.write_bytes(new.certificate.read_bytes())
        await client.is_("dora")
        await client.goes_on()
        for task in tasks:
            task.cancel()
    plane.delete_all("nodes")


async def test_a_401_says_which_certificate_has_ended(plane: ControlPlane, tmp_path: Path) -> None:
    ended = plane.authority.issue("ended", "emil", lifetime=-dt.timedelta(minutes=1))
    path = tmp_path / "kubeconfig"
    path.write_text(config(plane, paths(ended)))
    async with await Api.connect(str(path)) as api:
        with pytest.raises(ApiError) as caught:
            await api.list(NODES)
    assert f"shown was the client certificate of {ended.certificate}, which ended 20" in str(caught.value)
