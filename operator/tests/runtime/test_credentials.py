"""Authentication, by real kubeconfigs, plugins, files and certificates."""

import asyncio
import datetime as dt
import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from netloom.api.core import NODES
from netloom.runtime import credentials, kubeconfig
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError, Unauthorized
from netloom_e2e.certificates import Authority
from tests.runtime import scripted
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import Call, ScriptedApi, serving, until


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def wants(token: Callable[[], str]) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    """Answers only to this Authorization header."""

    async def fault(call: Call) -> web.StreamResponse:
        if call.request.headers.get("Authorization") != f"Bearer {token()}":
            return await scripted.refuse(401, "Unauthorized")(call)
        return await call.ordinary()

    return fault


def plugin(folder: Path, *, lifetime: float | None) -> tuple[dict[str, Any], Callable[[str], None], Callable[[], int]]:
    """An exec plugin: its user section, a setter of the token that it gives, and a count of its runs."""
    status: dict[str, str] = {"token": "TOKEN"}
    if lifetime is not None:
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lifetime)
        status["expirationTimestamp"] = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    script = folder / "plugin"
    answer = json.dumps(credential).replace("TOKEN", "'$(cat token)'")
    script.write_text(f"#!/bin/sh\ncd {folder}\necho run >>runs\necho '{answer}'\n")
    script.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}
    runs = folder / "runs"
    return user, (folder / "token").write_text, lambda: len(runs.read_text().splitlines())


async def test_a_plugins_token_is_renewed_when_the_server_refuses_it(server: ScriptedApi, tmp_path: Path):
    user, set_token, runs = plugin(tmp_path, lifetime=3600)
    set_token("one")
    good = "one"
    server.faulty = wants(lambda: good)
    async with await Api.connect(write_kubeconfig(tmp_path / "k", {"server": server.url}, user)) as api:
        await asyncio.gather(*(api.list(NODES) for _ in range(10)))
        assert (runs(), server.count("list")) == (1, 10)
        good = "two"
        set_token("two")
        await asyncio.gather(*(api.list(NODES) for _ in range(10)))
        assert (runs(), server.count("list")) == (2, 30)  # each was repeated once
        good = "three"
        with pytest.raises(Unauthorized):  # renewed a moment ago: once is enough
            await api.list(NODES)
        assert (runs(), server.count("list")) == (2, 31)


async def test_a_refused_watch_renews_the_token_for_the_next(server: ScriptedApi, tmp_path: Path):
    user, set_token, runs = plugin(tmp_path, lifetime=None)
    set_token("one")
    server.faulty = wants(lambda: "two")
    async with await Api.connect(write_kubeconfig(tmp_path / "k", {"server": server.url}, user)) as api:
        set_token("two")
        query = {"watch": "1", "resourceVersion": "0"}
        with pytest.raises(Unauthorized):
            async with api.stream("/api/v1/nodes", query):
                pass
        async with api.stream("/api/v1/nodes", query):
            pass
    assert (runs(), server.count("watch")) == (2, 2)


async def test_a_plugins_token_is_renewed_before_it_ends(tmp_path: Path):
    user, set_token, runs = plugin(tmp_path, lifetime=60)
    set_token("one")
    clock = Clock()
    auth = await credentials.load(write_kubeconfig(tmp_path / "k", {"server": "http://x"}, user), clock=clock)
    set_token("two")
    assert await auth.authorization() == "Bearer one"
    clock.now += kubeconfig.REFRESH_SECONDS
    assert {await auth.authorization() for _ in range(5)} == {"Bearer two"}
    assert runs() == 2


async def test_a_plugins_token_that_lasts_is_kept(tmp_path: Path):
    user, set_token, runs = plugin(tmp_path, lifetime=3600)
    set_token("one")
    clock = Clock()
    auth = await credentials.load(write_kubeconfig(tmp_path / "k", {"server": "http://x"}, user), clock=clock)
    for _ in range(10):
        clock.now += kubeconfig.REFRESH_SECONDS
        assert await auth.authorization() == "Bearer one"
    assert runs() == 1


async def test_a_plugin_that_fails_later_leaves_the_old_token(tmp_path: Path):
    user, set_token, _runs = plugin(tmp_path, lifetime=60)
    set_token("one")
    clock = Clock()
    auth = await credentials.load(write_kubeconfig(tmp_path / "k", {"server": "http://x"}, user), clock=clock)
    (tmp_path / "plugin").write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    clock.now += kubeconfig.REFRESH_SECONDS
    assert await auth.authorization() == "Bearer one"


def _pipes() -> set[str]:
    """Those that this process has open."""
    files = Path("/proc/self/fd").iterdir()
    return {target for target in (str(each.readlink()) for each in files if each.is_symlink()) if "pipe:" in target}


@pytest.mark.parametrize("last", ["exec sleep 600", "sleep 10; true"])
async def test_a_plugin_that_is_not_waited_for_any_more_is_killed(tmp_path: Path, last: str):
    """Also one whose child keeps its pipes open: nothing of it is left behind."""
    script = tmp_path / "plugin"
    script.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/part && mv {tmp_path}/part {tmp_path}/pid\n{last}\n")
    script.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}
    path = write_kubeconfig(tmp_path / "k", {"server": "http://127.0.0.1:1"}, user)
    pipes = _pipes()
    asked = asyncio.create_task(Api.connect(path))
    await until((tmp_path / "pid").exists)
    process = Path("/proc", (tmp_path / "pid").read_text().strip())
    assert process.exists()
    asked.cancel()  # as its time-out does
    await asyncio.wait([asked])
    # Not at once: the loop hears of its end by a signal. By itself it would end after twice as long.
    await until(lambda: not process.exists(), "it is killed", seconds=5)
    await until(lambda: _pipes() <= pipes, "its pipes are closed")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("echo no network >&2; exit 3", "the credential plugin {} ended with status 3. no network"),
        (
            "echo hello",
            "the credential plugin {} gives no ExecCredential: JSON is malformed: invalid character (byte 0)",
        ),
        (
            """echo '{"apiVersion": "v2", "status": {"token": "t"}}'""",
            "the credential plugin {} answers in v2, not in client.authentication.k8s.io/v1",
        ),
        (
            """echo '{"apiVersion": "client.authentication.k8s.io/v1", "status": {"token": null}}'""",
            "the credential plugin {} gives neither a token nor a client certificate",
        ),
    ],
)
async def test_what_is_wrong_with_a_plugins_answer_is_said(tmp_path: Path, answer: str, said: str):
    script = tmp_path / "plugin"
    script.write_text(f"#!/bin/sh\n{answer}\n")
    script.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}
    with pytest.raises(ConfigError) as refusal:
        await Api.connect(write_kubeconfig(tmp_path / "k", {"server": "http://127.0.0.1:1"}, user))
    assert str(refusal.value).endswith(said.format(script))


async def test_a_plugin_that_another_replaces_and_fails_is_not_run_for_every_refusal(
    server: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.0)
    user, set_token, _runs = plugin(tmp_path, lifetime=None)
    set_token("one")
    path = write_kubeconfig(tmp_path / "k", {"server": server.url}, user)
    async with await Api.connect(path) as api:
        other = tmp_path / "other"
        other.write_text(f"#!/bin/sh\necho run >>{tmp_path}/others\necho no network >&2; exit 1\n")
        other.chmod(0o755)
        write_kubeconfig(tmp_path / "k", {"server": server.url}, {"exec": user["exec"] | {"command": str(other)}})
        await api.list(NODES)
        assert server.calls[-1].headers["Authorization"] == "Bearer one"
        server.faulty = wants(lambda: "two")
        for _ in range(10):
            with pytest.raises(Unauthorized, match=r"what is on disk now cannot be used: .* no network"):
                await api.list(NODES)
    assert (tmp_path / "others").read_text() == "run\n"


async def test_a_token_file_is_read_again(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("one\n")
    clock = Clock()
    path = write_kubeconfig(tmp_path / "k", {"server": "http://x"}, {"tokenFile": str(token)})
    auth = await credentials.load(path, clock=clock)
    assert await auth.authorization() == "Bearer one"
    token.write_text("two\n")
    assert await auth.authorization() == "Bearer one"
    clock.now += kubeconfig.REFRESH_SECONDS
    assert await auth.authorization() == "Bearer two"


async def test_a_password_is_basic_authentication(tmp_path: Path):
    path = write_kubeconfig(tmp_path / "k", {"server": "http://x"}, {"username": "u", "password": "p"})
    auth = await credentials.load(path)
    assert await auth.authorization() == "Basic dTpw"


async def test_a_pods_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.0)
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "token").write_text("one")
    auth = await credentials.load()
    assert auth.endpoint.host == "https://10.96.0.1:443"
    assert await auth.authorization() == "Bearer one"
    (tmp_path / "token").write_text("two")
    assert await auth.authorization() == "Bearer two"
    (tmp_path / "token").unlink()  # a moment in which the mount is swapped
    assert await auth.authorization() == "Bearer two"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "test-ca")


def serve_tls(authority: Authority, *hosts: str) -> ssl.SSLContext:
    pair = authority.issue("server", "kube-apiserver", hosts=hosts or ["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    context.load_cert_chain(pair.certificate, pair.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_a_client_certificate_is_shown_to_requests_and_watches(authority: Authority, tmp_path: Path):
    client = authority.issue("client", "system:node:a")
    user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
    async with serving(ssl_context=serve_tls(authority)) as server:
        server.put("/api/v1/nodes", {"metadata": {"name": "a"}})
        cluster = {"server": server.url, "certificate-authority": str(authority.certificate)}
        async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, user)) as api:
            assert await api.check() == "v1.37.2"
            async with api.stream("/api/v1/nodes", {"watch": "1", "resourceVersion": "0"}) as content:
                assert b"ADDED" in await content.readline()


async def test_the_servers_certificate_may_be_for_another_name(authority: Authority, tmp_path: Path):
    """`tls-server-name`: the API server is reached through a tunnel or by an address of its own."""
    client = authority.issue("client", "system:node:a")
    user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
    async with serving(ssl_context=serve_tls(authority, "api.example.org")) as server:
        cluster = {"server": server.url, "certificate-authority": str(authority.certificate)}
        async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, user)) as api:
            with pytest.raises(ConfigError, match="not trusted"):
                await api.check()
        cluster["tls-server-name"] = "api.example.org"
        async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, user)) as api:
            assert await api.check() == "v1.37.2"
            async with api.stream("/api/v1/nodes", {"watch": "1", "resourceVersion": "0"}):
                pass


async def test_an_unknown_authority_is_one_sentence(authority: Authority, tmp_path: Path):
    client = authority.issue("client", "system:node:a")
    user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
    other = Authority(tmp_path / "other", "other-ca")
    async with serving(ssl_context=serve_tls(authority)) as server:
        cluster = {"server": server.url, "certificate-authority": str(other.certificate)}
        async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, user)) as api:
            with pytest.raises(ConfigError) as caught:
                await api.check()
    shows = f"the API server at {server.url} shows a certificate that {other.certificate} does not trust: "
    assert str(caught.value).startswith(shows)
    assert "\n" not in str(caught.value)


async def test_a_broken_certificate_file_is_one_sentence(authority: Authority, tmp_path: Path):
    (tmp_path / "ca.crt").write_text("no certificate")
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority": str(tmp_path / "ca.crt")}
    with pytest.raises(ConfigError, match=r"a certificate or key for https://127\.0\.0\.1:1 cannot be used: .*ca\.crt"):
        await Api.connect(write_kubeconfig(tmp_path / "k", cluster, {"token": "t"}))


@pytest.mark.parametrize("named_by", ["kubeconfig", "environment"])
async def test_a_proxy_is_used(server: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str):
    """The scripted server is the proxy here: it is asked for a host that does not exist."""
    cluster = {"server": "http://cluster.invalid"}
    if named_by == "kubeconfig":
        cluster["proxy-url"] = server.url
    else:
        monkeypatch.setenv("http_proxy", server.url)
    async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, {"token": "t"})) as api:
        assert await api.check() == "v1.37.2"
        async with api.stream("/api/v1/nodes", {"watch": "1", "resourceVersion": "0"}):
            pass
    assert {call.headers["Host"] for call in server.calls} == {"cluster.invalid"}
    assert server.count("watch") == 1


async def test_no_proxy_is_obeyed(server: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with await Api.connect(write_kubeconfig(tmp_path / "k", {"server": server.url}, {"token": "t"})) as api:
        assert await api.check() == "v1.37.2"


CONTEXT = {"name": "c", "context": {"cluster": "k", "user": "u"}}
CLUSTER = {"name": "k", "cluster": {"server": "http://x"}}
USER = {"name": "u", "user": {"token": "t"}}


@pytest.mark.parametrize(
    ("content", "context", "sentence"),
    [
        ("", None, "is empty or not a mapping"),
        ("a: [", None, "is not YAML: while parsing a flow node"),
        ("just text", None, "is empty or not a mapping"),
        ({"contexts": [CONTEXT]}, None, "sets no current-context, and no context was given; it has: c"),
        ({"contexts": [CONTEXT], "current-context": "x"}, None, "has no context 'x'; it has: c"),
        ({"contexts": [CONTEXT], "current-context": "c"}, "y", "has no context 'y'; it has: c"),
        ({"current-context": "c"}, None, "has no context 'c'; it has: none"),
        (
            {"contexts": [CONTEXT], "current-context": "c", "users": [USER]},
            None,
            ", context 'c': its cluster 'k' has no server address",
        ),
        (
            {"contexts": [CONTEXT], "current-context": "c", "clusters": [CLUSTER]},
            None,
            ", context 'c': its user 'u' does not exist",
        ),
        (
            {
                "contexts": [CONTEXT], "current-context": "c", "clusters": [CLUSTER],
                "users": [{"name": "u", "user": {"exec": {"apiVersion": "v1", "command": "/no/such/plugin"}}}],
            },
            None,
            ", context 'c': [Errno 2] No such file or directory: '/no/such/plugin'",
        ),
    ],
)  # fmt: skip
async def test_a_wrong_kubeconfig_is_one_sentence(tmp_path: Path, content: Any, context: str | None, sentence: str):
    path = tmp_path / "kubeconfig"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        await credentials.load(str(path), context)
    text = str(caught.value)
    assert text.startswith(f"kubeconfig {path}")
    assert sentence in text
    assert "\n" not in text


async def test_a_missing_kubeconfig_is_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        await credentials.load(str(tmp_path / "nowhere"))
    assert str(caught.value) == f"kubeconfig {tmp_path}/nowhere does not exist"


async def test_no_way_to_a_cluster_names_all_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        await credentials.load()
    for part in ("$KUBECONFIG is not set", f"{tmp_path}/.kube/config does not exist", "no pod of a cluster"):
        assert part in str(caught.value)


async def test_of_several_kubeconfigs_the_first_that_says_so_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = tmp_path / "one"
    one.write_text(yaml.safe_dump({"contexts": [CONTEXT], "current-context": "c"}))
    two = tmp_path / "two"
    two.write_text(yaml.safe_dump({"clusters": [CLUSTER], "users": [USER], "current-context": "other"}))
    monkeypatch.setenv("KUBECONFIG", f"{one}:{two}:{tmp_path}/absent")
    auth = await credentials.load()
    assert (auth.endpoint.host, await auth.authorization()) == ("http://x", "Bearer t")


@pytest.mark.slow
@pytest.mark.parametrize("full_first", [False, True])
async def test_the_slim_import_brings_no_models_and_harms_no_full_one(full_first: bool):
    code = f"""
import sys
if {full_first}:
    import kubernetes_asyncio
from netloom.runtime import slim
brought = [name for name in sys.modules if name.startswith("kubernetes_asyncio")]
assert bool(brought) == {full_first}, brought
if not {full_first}:
    assert not {{"dateutil", "dateutil.parser", "multiprocessing", "urllib3"}} & set(sys.modules)
import kubernetes_asyncio.client
assert kubernetes_asyncio.client.V1Node(kind="Node").kind == "Node"
assert kubernetes_asyncio.client.ApiClient is not slim.ApiClient
read = slim.ApiClient._ApiClient__deserialize_datetime
assert read(None, "2026-11-25T03:51:07Z").year == 2026
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
