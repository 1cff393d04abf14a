"""Proxies: who goes through one, what is said of one that fails, and requests and watches through a real one."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from netloom.runtime.client import Api
from netloom.runtime.connection import ApiPools
from netloom.runtime.errors import ApiError, ConfigError
from netloom.runtime.proxy import Proxy, exempt
from netloom.runtime.tls import ApiEndpoint
from netloom_e2e.certificates import Authority
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import ScriptedApi, refuse, refuse_in_text, serving

WATCH = {"watch": "1", "resourceVersion": "100"}


# Who is exempt


@pytest.mark.parametrize(
    ("no_proxy", "kept", "sent"),
    [
        ("", "localhost 127.0.0.1 127.8.9.10 ::1 ::ffff:127.0.0.1", "10.0.0.1 example.org localhost.example.org"),
        ("*", "10.0.0.1 2001:db8::1 example.org", ""),
        ("a.org, * ,b.org", "10.0.0.1 example.org", ""),
        ("10.0.0.0/8", "10.0.0.1 10.255.0.1 ::ffff:10.1.1.1", "11.0.0.1 2001:db8::1 10.example.org"),
        ("10.1.2.3/8", "10.9.9.9", "11.0.0.1"),
        ("2001:db8::/32,10.0.0.0/24", "2001:db8:1::1 10.0.0.9", "2001:db9::1 10.0.1.9"),
        ("10.96.0.1", "10.96.0.1", "10.96.0.2"),
        ("2001:db8::1", "2001:db8::1 2001:db8:0::1", "2001:db8::2"),
        ("10.96.0.1:443", "10.96.0.1", "10.96.0.2"),
        ("10.96.0.1:6443,[2001:db8::1]:6443", "", "10.96.0.1 2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1", "2001:db8::2"),
        ("example.org", "example.org EXAMPLE.org api.example.org a.b.example.org", "notexample.org example.org.uk"),
        ("Example.ORG", "api.example.org", "example.com"),
        (".example.org", "api.example.org a.b.example.org", "example.org notexample.org"),
        ("*.example.org", "api.example.org", "example.org notexample.org"),
        ("example.org:443", "example.org api.example.org", "example.com"),
        (".example.org:6443", "", "api.example.org example.org"),
        ("1.2.3", "", "1.2.3.4 4.1.2.3"),
        ("b\u00fccher.example", "xn--bcher-kva.example a.xn--bcher-kva.example", "bucher.example"),
        ("nonsense/8,:443,, ,300.0.0.0/8,10.0.0.0/99,a:b:c", "", "10.0.0.1 example.org 2001:db8::1"),
        ("10.0.0.0/255.0.0.0,10.0.0.0/0.255.255.255", "", "10.0.0.1"),  # no masks, as in Go
        (" 10.0.0.1 ,\texample.org ", "10.0.0.1 example.org", "10.0.0.2"),
    ],
)
def test_what_no_proxy_exempts(no_proxy: str, kept: str, sent: str):
    assert [host for host in kept.split() if not exempt(host, 443, no_proxy)] == []
    assert [host for host in sent.split() if exempt(host, 443, no_proxy)] == []


PROXIED = "http://p.test:3128"


@pytest.mark.parametrize(
    ("server", "proxy_url", "environ", "chosen"),
    [
        ("https://api.test", "", {}, ""),
        ("https://api.test", "", {"HTTPS_PROXY": PROXIED}, f"{PROXIED} $HTTPS_PROXY"),
        ("https://api.test", "", {"https_proxy": PROXIED, "HTTPS_PROXY": "http://x"}, f"{PROXIED} $https_proxy"),
        ("https://api.test", "", {"https_proxy": "", "HTTPS_PROXY": PROXIED}, f"{PROXIED} $HTTPS_PROXY"),
        ("https://api.test", "", {"HTTP_PROXY": PROXIED, "ALL_PROXY": PROXIED}, ""),
        ("http://api.test", "", {"HTTP_PROXY": PROXIED}, f"{PROXIED} $HTTP_PROXY"),
        ("https://api.test", "", {"HTTPS_PROXY": "p.test:3128"}, f"{PROXIED} $HTTPS_PROXY"),
        ("https://api.test", "", {"HTTPS_PROXY": "p.test"}, "http://p.test $HTTPS_PROXY"),
        ("https://api.test", "", {"HTTPS_PROXY": "http://u:secret@p.test:3128"}, f"{PROXIED} $HTTPS_PROXY"),
        ("https://[2001:db8::7]:6443", "", {"HTTPS_PROXY": PROXIED, "NO_PROXY": "2001:db8::/64"}, ""),
        ("https://api.test:6443", "", {"HTTPS_PROXY": PROXIED, "NO_PROXY": "api.test:6443"}, ""),
        ("https://api.test", "", {"HTTPS_PROXY": PROXIED, "NO_PROXY": "api.test:443"}, ""),
        ("https://api.test", "", {"HTTPS_PROXY": PROXIED, "no_proxy": "x", "NO_PROXY": "*"}, f"{PROXIED} $HTTPS_PROXY"),
        ("https://127.0.0.1:6443", "", {"HTTPS_PROXY": PROXIED}, ""),
        # One that is not used may be whatever it is.
        ("https://127.0.0.1:6443", "", {"HTTPS_PROXY": "socks5://p.test"}, ""),
        # What the kubeconfig names is always used.
        ("https://api.test", PROXIED, {"NO_PROXY": "*"}, f"{PROXIED} proxy-url in the kubeconfig"),
        ("https://localhost", PROXIED, {"HTTPS_PROXY": "http://x"}, f"{PROXIED} proxy-url in the kubeconfig"),
    ],
)
def test_which_proxy_is_used(server: str, proxy_url: str, environ: dict[str, str], chosen: str):
    proxy = Proxy.of(server, proxy_url, environ)
    assert (f"{proxy} {proxy.source}" if proxy else "") == chosen


async def test_the_password_is_used_and_not_shown():
    pools = ApiPools(ApiEndpoint(host="https://api.test", proxy="http://user:secret@p.test:3128"), 1, {})
    proxy = pools.proxy
    assert proxy is not None
    assert proxy.url == URL("http://user:secret@p.test:3128")
    failure = pools.unanswered("GET /version", ConnectionResetError())
    await pools.close()
    assert "p.test" in str(failure)
    assert "secret" not in f"{proxy}{proxy.name}{failure}"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "socks5://u:secret@p.test:1080",
            "asks for socks5://p.test:1080: proxies of the kind socks5 are not supported",
        ),
        ("ftp://p.test", "asks for ftp://p.test: proxies of the kind ftp are not supported, only http:// ones."),
        ("https://u:secret@p.test", "asks for https://p.test: a proxy that is spoken to by TLS is not supported."),
        ("http://u:secret@:3128", "is not the address of a proxy, such as http://proxy.example.org:3128"),
        ("http://u:secret@p.test:99999", "is not the address of a proxy"),
        ("http://", "is not the address of a proxy"),
    ],
)
@pytest.mark.parametrize("named_by", ["kubeconfig", "environment"])
async def test_a_proxy_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str, given: str, sentence: str
):
    cluster = {"server": "https://api.test"}
    if named_by == "kubeconfig":
        cluster["proxy-url"] = given
    else:
        monkeypatch.setenv("HTTPS_PROXY", given)
    with pytest.raises(ConfigError) as caught:
        await Api.connect(write_kubeconfig(tmp_path / "k", cluster, {"token": "t"}))
    source = "proxy-url in the kubeconfig" if named_by == "kubeconfig" else "$HTTPS_PROXY"
    assert str(caught.value).startswith(f"{source} {sentence}")
    assert "secret" not in str(caught.value)


# Through a real one


@dataclass
class ConnectProxy:
    """Leads every CONNECT to one port of this machine, whatever it is asked for."""

    target: int
    port: int = 0
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    answer: str = "200 Connection established"
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            self.asked.append(head[0])
            self.credentials += [line for line in head if line.lower().startswith("proxy-authorization:")]
            if self.answer == "silence":
                await asyncio.Event().wait()
            if self.answer:
                writer.write(f"HTTP/1.1 {self.answer}\r\n\r\n".encode())
                await writer.drain()
            if self.answer.startswith("200"):
                await self._lead(reader, writer)
        finally:
            writer.close()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, back))
                group.create_task(_pump(there, writer))
        finally:
            back.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await source.read(1 << 16):
            sink.write(content)
            await sink.drain()
    sink.close()  # the other direction ends by that as well


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "test-ca")


@pytest.fixture
async def secure(authority: Authority) -> AsyncIterator[ScriptedApi]:
    """An API server behind TLS that only a proxy leads to: its name does not exist."""
    pair = authority.issue("server", "kube-apiserver", hosts=["api.test"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with serving(ssl_context=context) as server:
        yield server


@pytest.fixture
async def proxy(secure: ScriptedApi) -> AsyncIterator[ConnectProxy]:
    made = ConnectProxy(URL(secure.url).port or 0)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await asyncio.sleep(0)  # what was closed is gone in the next turn of the loop


def through(proxy: ConnectProxy, authority: Authority, folder: Path, **cluster: str) -> str:
    """A kubeconfig whose proxy-url leads to it."""
    section: dict[str, Any] = {
        "server": "https://api.test:6443",
        "certificate-authority": str(authority.certificate),
        "proxy-url": f"http://user:secret@127.0.0.1:{proxy.port}",
    }
    return write_kubeconfig(folder / "k", section | cluster, {"token": "t"})


async def test_requests_and_watches_go_through_a_proxy(
    secure: ScriptedApi, proxy: ConnectProxy, authority: Authority, tmp_path: Path
):
    async with await Api.connect(through(proxy, authority, tmp_path)) as api:
        assert await api.check() == "v1.37.2"
        async with api.stream("/api/v1/nodes", WATCH) as stream:
            secure.put("/api/v1/nodes", {"metadata": {"name": "a"}})
            assert b'"ADDED"' in await stream.readline()
        assert await api.check() == "v1.37.2"
    assert proxy.asked == ["CONNECT api.test:6443 HTTP/1.1"] * 2, "requests share a connection, the watch has its own"
    assert proxy.credentials == ["Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="] * 2
    assert (secure.count("version"), secure.count("watch")) == (2, 1)
    assert all("Proxy-Authorization" not in call.headers for call in secure.calls)


async def test_the_servers_name_may_be_another(
    secure: ScriptedApi, proxy: ConnectProxy, authority: Authority, tmp_path: Path
):
    path = through(proxy, authority, tmp_path, **{"server": "https://10.0.0.1:6443", "tls-server-name": "api.test"})
    async with await Api.connect(path) as api:
        assert await api.check() == "v1.37.2"
    assert proxy.asked == ["CONNECT 10.0.0.1:6443 HTTP/1.1"]


async def test_the_environments_proxy_and_who_needs_none(
    server: ScriptedApi, proxy: ConnectProxy, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    async with await Api.connect(through(proxy, authority, tmp_path, **{"proxy-url": ""})) as api:
        assert await api.check() == "v1.37.2"
    local = write_kubeconfig(tmp_path / "local", {"server": server.url}, {"token": "t"})
    async with await Api.connect(local) as api:
        assert await api.check() == "v1.37.2"
    assert proxy.asked == ["CONNECT api.test:6443 HTTP/1.1"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            "407 Proxy Authentication Required",
            "the proxy {} does not let it through: 407 Proxy Authentication Required; it wants credentials, and it "
            "does not accept those in its address",
        ),
        ("403 Forbidden", "the proxy {} does not let it through: 403 Forbidden"),
        ("502 Bad Gateway", "the proxy {} does not let it through: 502 Bad Gateway"),
        ("", "the connection through the proxy {} was lost (ServerDisconnectedError)"),
        ("silence", "no answer through the proxy {}"),
    ],
)
async def test_a_proxy_that_fails_is_named(
    proxy: ConnectProxy, authority: Authority, tmp_path: Path, answer: str, sentence: str
):
    proxy.answer = answer
    sentence = sentence.format(f"http://127.0.0.1:{proxy.port} (proxy-url in the kubeconfig)")
    async with await Api.connect(through(proxy, authority, tmp_path), timeout=0.5) as api:
        with pytest.raises(ConfigError) as caught:
            await api.check(timeout=0.5)
        assert str(caught.value) == f"the API server at https://api.test:6443 was not reached: {sentence}"
        with pytest.raises(ApiError) as failed:
            await api.request("GET", "/api/v1/nodes")
        assert failed.value.message == f"GET /api/v1/nodes: {sentence}"
        with pytest.raises((ApiError, TimeoutError)) as lost:
            async with asyncio.timeout(0.5), api.stream("/api/v1/nodes", WATCH):
                pass
        assert isinstance(lost.value, TimeoutError) or lost.value.message == f"GET /api/v1/nodes: {sentence}"


async def test_a_proxy_that_is_not_there_is_named(
    proxy: ConnectProxy, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def resolve(*_: object, **__: object) -> None:
        raise OSError(None, "Name or service not known")

    monkeypatch.setattr(aiohttp.DefaultResolver, "resolve", resolve)
    for url, named, why in [
        ("http://u:secret@127.0.0.1:1", "http://127.0.0.1:1", "Connection refused"),
        ("http://u:secret@p.invalid:3128", "http://p.invalid:3128", "Name or service not known"),
    ]:
        async with await Api.connect(through(proxy, authority, tmp_path, **{"proxy-url": url})) as api:
            with pytest.raises(ConfigError) as caught:
                await api.check()
        assert str(caught.value).startswith(
            f"the API server at https://api.test:6443 was not reached: the proxy {named} (proxy-url in the kubeconfig) "
            f"cannot be reached: {why}"
        )
        assert "secret" not in str(caught.value)


async def test_a_proxy_that_puts_its_own_certificate_in_place_is_named(
    proxy: ConnectProxy, authority: Authority, tmp_path: Path
):
    other = Authority(tmp_path / "other", "other-ca")
    async with await Api.connect(through(proxy, other, tmp_path)) as api:
        with pytest.raises(ConfigError) as caught:
            await api.check()
    said = str(caught.value)
    assert f"shows a certificate that {tmp_path}" in said
    assert f"(asked through the proxy http://127.0.0.1:{proxy.port} (proxy-url in the kubeconfig))" in said


async def test_of_answers_only_those_that_are_not_the_api_servers_name_the_proxy(server: ScriptedApi, tmp_path: Path):
    """By http, the proxy answers in the API server's place."""
    cluster = {"server": "http://api.test", "proxy-url": server.url}
    async with await Api.connect(write_kubeconfig(tmp_path / "k", cluster, {"token": "t"})) as api:
        via = f"GET /version through the proxy {server.url} (proxy-url in the kubeconfig): "
        server.on("version", refuse_in_text(407, "who are you"), refuse_in_text(502, "no such host"))
        for text in ("who are you (407", "no such host (502"):
            with pytest.raises(ConfigError) as caught:
                await api.check()
            assert str(caught.value).startswith(f"the API server at http://api.test was not reached: {via}{text}")
        server.on("version", refuse(403, "Forbidden", "not you"))
        with pytest.raises(ConfigError) as caught:
            await api.check()
        assert "proxy" not in str(caught.value)
