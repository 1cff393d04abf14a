"""Whatever is wrong with a certificate or a key is a sentence that names the file, whoever says it."""

import asyncio
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from netloom.api.core import NODES
from netloom.runtime import tls
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError, Unavailable
from netloom.runtime.store import Store
from netloom.runtime.tls import ApiEndpoint, Pem
from netloom.runtime.watch import ListWatch, WatchTiming
from netloom_e2e.certificates import Authority, KeyPair
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import serving, until

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours", "our-ca")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "other", "other-ca")


def server_side(authority: Authority, lifetime: dt.timedelta = HOUR, hosts: tuple[str, ...] = ("127.0.0.1",)):
    pair = authority.issue("server", "kube-apiserver", hosts=hosts, lifetime=lifetime)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def user(pair: KeyPair) -> dict[str, object]:
    return {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}


async def said(url: str, ca: Path, login: dict[str, object], folder: Path) -> set[str]:
    """What the first request, any other, a watch and the watch's `fault` say, without the request's name."""
    sentences = []
    kubeconfig = write_kubeconfig(folder / "k", {"server": url, "certificate-authority": str(ca)}, login)
    async with await Api.connect(kubeconfig) as api:
        with pytest.raises(ConfigError) as first:
            await api.check()
        sentences.append(str(first.value))
        for request in (api.request("GET", "/a"), stream(api)):
            with pytest.raises(Unavailable) as caught:
                await request
            sentences.append(caught.value.message.removeprefix("GET /a: "))
        watch = ListWatch(api, Store(NODES), timing=WatchTiming(base=0.01, cap=0.02))
        task = asyncio.create_task(watch.run())
        await until(lambda: watch.fault != "not listed yet")
        sentences.append(watch.fault.removeprefix("GET /api/v1/nodes: ").removesuffix(" (TLS)"))
        task.cancel()
        await asyncio.wait([task])
    assert all("\n" not in sentence and "not permitted" not in sentence for sentence in sentences)
    return set(sentences)


async def stream(api: Api) -> None:
    async with api.stream("/a", {}):
        pass


async def test_a_ca_that_does_not_trust_the_server_is_named(ours: Authority, other: Authority, tmp_path: Path):
    async with serving(ssl_context=server_side(other)) as server:
        (sentence,) = await said(server.url, ours.certificate, {"token": "t"}, tmp_path)
    shows = f"the API server at {server.url} shows a certificate that {ours.certificate} does not trust: "
    assert sentence.startswith(shows)


async def test_a_certificate_for_another_name_is_named(ours: Authority, tmp_path: Path):
    async with serving(ssl_context=server_side(ours, hosts=("api.example.org",))) as server:
        assert await said(server.url, ours.certificate, {"token": "t"}, tmp_path) == {
            f"the API server at {server.url} shows a certificate that is not trusted: IP address mismatch, certificate "
            f"is not valid for '127.0.0.1'; it was checked with {ours.certificate}"
        }


async def test_a_servers_certificate_that_has_ended_is_named_with_our_time(ours: Authority, tmp_path: Path):
    async with serving(ssl_context=server_side(ours, lifetime=-dt.timedelta(minutes=1))) as server:
        sentences = await said(server.url, ours.certificate, {"token": "t"}, tmp_path)
    for sentence in sentences:
        assert "shows a certificate that is not trusted: certificate has expired (it is 20" in sentence
        assert sentence.endswith(f" here); it was checked with {ours.certificate}")


async def test_a_port_that_speaks_no_tls_is_named(ours: Authority, tmp_path: Path):
    async with serving() as server:
        url = server.url.replace("http:", "https:")
        assert await said(url, ours.certificate, {"token": "t"}, tmp_path) == {
            f"no TLS connection to the API server at {url}: wrong version number"
        }


@contextmanager
def strict(context: ssl.SSLContext) -> Iterator[str]:
    """A server that asks for a client certificate, and says why it refuses one, as asyncio's own does not."""
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as ours:
                ours.settimeout(5)
                try:
                    ours.do_handshake()
                except OSError:
                    ours.shutdown(socket.SHUT_WR)  # and then reads: a reset would overtake the reason
                    with suppress(OSError):
                        while socket.socket.recv(ours, 4096):
                            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_that_has_ended_is_named(
    ours: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    client = ours.issue("client", "me", lifetime=-dt.timedelta(minutes=1))
    context = server_side(ours)
    context.maximum_version = version
    with strict(context) as url:
        sentences = await said(url, ours.certificate, user(client), tmp_path)
    for sentence in sentences:
        assert f"the API server at {url} does not accept the client certificate of {client.certificate}" in sentence
        assert ", which ended 20" in sentence
        assert sentence.endswith("certificate expired")


async def test_a_client_certificate_of_another_ca_is_named(ours: Authority, other: Authority, tmp_path: Path) -> None:
    client = other.issue("client", "me")
    with strict(server_side(ours)) as url:
        (sentence,) = await said(url, ours.certificate, user(client), tmp_path)
    assert f"does not accept the client certificate of {client.certificate}, which is good until 20" in sentence
    assert sentence.endswith("unknown ca")


async def test_a_server_that_just_hangs_up_on_a_certificate_that_has_ended(ours: Authority, tmp_path: Path) -> None:
    client = ours.issue("client", "me", lifetime=-dt.timedelta(minutes=1))
    context = server_side(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    async with serving(ssl_context=context) as server:
        for sentence in await said(server.url, ours.certificate, user(client), tmp_path):
            assert f"shown was the client certificate of {client.certificate}, which ended 20" in sentence


def test_what_cannot_be_used_is_named_with_its_file(ours: Authority, other: Authority) -> None:
    one, two = ours.issue("one", "me"), ours.issue("two", "me")

    def pem(path: Path, length: int | None = None) -> Pem:
        return Pem(path.read_bytes()[:length], str(path))

    def complaint(**given: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            tls.check(ApiEndpoint(host="https://x", **given))
        return str(caught.value).removeprefix("a certificate or key for https://x cannot be used: ")

    good = pem(one.certificate)
    both = Pem(ours.certificate.read_bytes() + other.certificate.read_bytes()[:200], "both")
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    tls.check(ApiEndpoint(host="https://x", ca=pem(ours.certificate), certificate=good, key=pem(one.key)))
    assert complaint(ca=Pem(b"", "/ca")) == "there is no certificate (PEM) in /ca"
    assert complaint(ca=pem(ours.certificate, 300)) == f"there is no certificate (PEM) in {ours.certificate}"
    assert complaint(ca=both) == "both is damaged: it is cut off, or no PEM"
    assert complaint(certificate=good, key=pem(two.key)) == (
        f"the key in {two.key} is not the key of the certificate in {one.certificate}"
    )
    assert complaint(certificate=good, key=pem(one.key, 100)).startswith(
        f"there is no usable private key in {one.key}: "
    )
    assert complaint(certificate=good).startswith(f"there is no usable private key in {one.certificate}: ")
    assert complaint(certificate=good, key=Pem(encrypted, "/key")).startswith(
        "there is no usable private key in /key: "
    )


def test_when_a_certificate_ends_is_read_as_openssl_reads_it(ours: Authority) -> None:
    for days in (1, 400, 365 * 40):  # beyond 2049 it is another kind of time
        pair = ours.issue("some", "me", groups=["a" * 200], hosts=["x.example"], lifetime=dt.timedelta(days=days))
        content = pair.certificate.read_bytes()
        assert tls.not_after(content) == x509.load_pem_x509_certificate(content).not_valid_after_utc
        assert tls.not_after(b"# a comment\n" + content + ours.certificate.read_bytes()) == tls.not_after(content)
    assert tls.not_after(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----") is None
    assert tls.not_after(b"") is None


def test_a_key_shows_in_no_log(ours: Authority) -> None:
    pair = ours.issue("some", "me")
    endpoint = ApiEndpoint(host="https://x", key=Pem(pair.key.read_bytes(), "/key"))
    assert "PRIVATE" not in repr(endpoint)
