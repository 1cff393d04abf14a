"""Certificates that somebody else renews in files."""

import asyncio
import base64
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netloom.api.admissionregistration import (
    ValidatingWebhook,
    ValidatingWebhookConfiguration,
    WebhookClientConfig,
)
from netloom.api.meta import ObjectMeta
from netloom.runtime.errors import ConfigError
from netloom.webhook import certificates
from netloom.webhook.certificates import CA, ServingCertificate
from netloom.webhook.configuration import PACE, WebhookConfiguration
from netloom.webhook.files import CertificateFiles
from tests.runtime.scripted import until
from tests.webhook.conftest import NOW, InProcess
from tests.webhook.test_certificates import DAY, handshake


class Tls:
    """For `handshake`: what a CertificateFiles listens with."""

    def __init__(self, files: CertificateFiles) -> None:
        self.context = files.tls


def shows(files: CertificateFiles, ca: CA) -> bool:
    try:
        handshake(Tls(files), ca.certificate, "guard.test")  # type: ignore[arg-type]
    except ssl.SSLCertVerificationError:
        return False
    return True


def write(folder: Path, serving: ServingCertificate) -> None:
    (folder / "tls.crt").write_text(serving.certificate)
    (folder / "tls.key").write_text(serving.key)


def mount(folder: Path, serving: ServingCertificate, number: int) -> None:
    """As the kubelet does it: a new directory, and a symlink that is swapped."""
    (folder / f"..{number}").mkdir()
    write(folder / f"..{number}", serving)
    (folder / "..data_tmp").symlink_to(f"..{number}")
    (folder / "..data_tmp").rename(folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"..data/{name}")


def files_in(folder: Path, **options: Any) -> CertificateFiles:
    return CertificateFiles(folder / "tls.crt", folder / "tls.key", **{"mint": InProcess(), **options})


@pytest.fixture
def other() -> CA:
    return certificates.new_ca(NOW)


def issued(ca: CA, **options: Any) -> ServingCertificate:
    return certificates.issue(ca, ["guard.test"], NOW, **options)


async def test_a_pair_is_served_with(tmp_path: Path, ca: CA):
    write(tmp_path, issued(ca))
    files = files_in(tmp_path)
    await files.load()
    assert files.fault == ""
    assert files.expires == NOW + certificates.SERVING_LIFE
    assert shows(files, ca)


async def test_a_mounted_secret_that_changes(tmp_path: Path, ca: CA, other: CA):
    mount(tmp_path, issued(ca), 1)
    files = files_in(tmp_path)
    await files.load()
    mount(tmp_path, issued(other), 2)
    await files.look()
    assert files.failure == ""
    assert shows(files, other)
    assert not shows(files, ca)


async def test_a_half_written_pair_keeps_the_old_one_and_says_so(tmp_path: Path, ca: CA, other: CA):
    write(tmp_path, issued(ca))
    files = files_in(tmp_path)
    await files.load()
    new = issued(other)
    (tmp_path / "tls.crt").write_text(new.certificate)
    await files.look()
    assert "tls.key is not the key of the certificate in " in files.failure
    assert files.failure.endswith("; the certificate before it is kept")
    assert files.fault == "", "it serves as well as before"
    assert shows(files, ca)
    (tmp_path / "tls.key").write_text(new.key)
    await files.look()
    assert files.failure == ""
    assert shows(files, other)


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_what_is_no_certificate_keeps_the_old_one(tmp_path: Path, ca: CA, content: str):
    write(tmp_path, issued(ca))
    files = files_in(tmp_path)
    await files.load()
    (tmp_path / "tls.crt").write_text(content)
    await files.look()
    assert "tls.crt cannot be used: not a certificate in PEM" in files.failure
    assert shows(files, ca)


async def test_a_file_that_is_gone_keeps_the_old_one_until_it_is_back(tmp_path: Path, ca: CA):
    serving = issued(ca)
    write(tmp_path, serving)
    files = files_in(tmp_path)
    await files.load()
    (tmp_path / "tls.key").unlink()
    await files.look()
    assert "tls.key cannot be read: No such file or directory" in files.failure
    assert shows(files, ca)
    write(tmp_path, serving)
    await files.look()
    assert files.failure == ""


async def test_a_key_of_another_type_replaces_the_first(tmp_path: Path, ca: CA, other: CA):
    """A client that would take either must not get the old one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    own = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("guard.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    write(tmp_path, issued(ca))
    files = files_in(tmp_path)
    await files.load()
    pem = own.public_bytes(encoding).decode()
    write(tmp_path, ServingCertificate(pem, secret, NOW, NOW + DAY, pem))
    await files.look()
    assert files.fault == ""
    assert not shows(files, ca)
    write(tmp_path, issued(other))
    await files.look()
    assert shows(files, other)


async def test_expiry_is_said(tmp_path: Path, ca: CA):
    write(tmp_path, issued(ca))
    now = NOW
    files = files_in(tmp_path, now=lambda: now)
    await files.load()
    assert files.fault == ""
    now = NOW + 31 * DAY
    assert "tls.crt has expired at " in files.fault


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
async def test_a_pair_that_is_not_valid_now_waits_while_the_one_before_it_is(tmp_path: Path, ca: CA, jump: Any):
    """As a renewal by an issuer whose clock is wrong would leave it."""
    write(tmp_path, issued(ca))
    now = NOW
    files = files_in(tmp_path, now=lambda: now)
    await files.load()
    other = certificates.new_ca(NOW + jump)
    write(tmp_path, certificates.issue(other, ["guard.test"], NOW + jump))
    await files.look()
    assert f"the certificate in {tmp_path}/tls.crt " in files.failure
    assert ("is not valid before" if jump > 0 * DAY else "has expired at") in files.failure
    assert files.failure.endswith("; the certificate before it is kept")
    assert files.fault == "", "it serves as well as before"
    assert shows(files, ca)
    now = NOW + jump
    await files.look()
    assert files.failure == files.fault == ""
    assert files.expires == now + certificates.SERVING_LIFE


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
async def test_a_pair_that_is_not_valid_now_is_not_shown_and_said(tmp_path: Path, jump: Any):
    other = certificates.new_ca(NOW + jump)
    write(tmp_path, certificates.issue(other, ["guard.test"], NOW + jump))
    now = NOW
    files = files_in(tmp_path, now=lambda: now)
    await files.load()
    assert f"the certificate in {tmp_path}/tls.crt " in files.fault
    with pytest.raises(ssl.SSLError, match="callback failed"):
        handshake(Tls(files), other.certificate, "guard.test")  # type: ignore[arg-type]
    now = NOW + jump
    assert files.fault == ""


async def test_a_ca_file_without_a_valid_ca_is_said(tmp_path: Path, ca: CA):
    write(tmp_path, issued(ca))
    future, past = (certificates.new_ca(NOW + days * DAY) for days in (400, -400))
    (tmp_path / "ca.crt").write_text(future.certificate + past.certificate)
    files = files_in(tmp_path, ca=tmp_path / "ca.crt")
    await files.load()
    assert f"the CA in {tmp_path}/ca.crt is not valid before " in files.fault
    (tmp_path / "ca.crt").write_text(future.certificate + ca.certificate)
    await files.look()
    assert files.fault == ""


async def test_a_wrong_path_ends_it_with_a_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"tls.crt cannot be read: No such file or directory$"):
        await files_in(tmp_path).run()


async def test_files_are_followed(tmp_path: Path, ca: CA, other: CA):
    write(tmp_path, issued(ca))
    files = files_in(tmp_path, period=0.01)
    task = asyncio.create_task(files.run())
    await until(lambda: files.expires is not None, "read")
    write(tmp_path, issued(other))
    await until(lambda: shows(files, other), "followed")
    task.cancel()
    await asyncio.wait([task])


async def test_a_bundle_that_somebody_else_keeps_too_is_not_written_for_ever(tmp_path: Path, ca: CA, other: CA):
    write(tmp_path, issued(ca))
    (tmp_path / "ca.crt").write_text(ca.certificate)
    configured, writes = Configured(), list[str]()
    seen = configured.put(other, "https://guard.test/")

    async def patch(*_: object, **__: object) -> ValidatingWebhookConfiguration:
        writes.append("ours")
        configured.put(other, "https://guard.test/")
        assert seen.object
        return seen.object

    seen._api = SimpleNamespace(patch=patch)  # type: ignore[assignment]
    files = files_in(tmp_path, ca=tmp_path / "ca.crt", configuration=seen, period=0.01)
    seen.watch.run = asyncio.Event().wait  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(files.run())
    await until(lambda: "again and again" in files.fault, "said")
    assert len(writes) == PACE.most
    task.cancel()
    await asyncio.wait([task])


class Configured:
    """A WebhookConfiguration as its watch would have seen it."""

    def __init__(self) -> None:
        self.seen = WebhookConfiguration(None, "netloom-guard")  # type: ignore[arg-type]  # it is never asked

    def put(self, ca: CA | None, *urls: str) -> WebhookConfiguration:
        bundle = base64.b64encode(ca.certificate.encode()).decode() if ca else ""
        hooks = tuple(ValidatingWebhook(f"hook-{n}", WebhookClientConfig(bundle, url)) for n, url in enumerate(urls))
        self._version = getattr(self, "_version", 0) + 1
        meta = ObjectMeta(name="netloom-guard", uid="1", resource_version=str(self._version))
        self.seen.store.put(ValidatingWebhookConfiguration(meta, hooks))
        self.seen.store.synced.set()
        return self.seen


WHERE = "where API servers call (ValidatingWebhookConfiguration netloom-guard, webhook"


async def test_ready_is_what_api_servers_would_accept(tmp_path: Path, ca: CA, other: CA):
    """The name or address, and the CA; whatever of these is wrong is said, and it follows the configuration."""
    write(tmp_path, certificates.issue(ca, ["guard.test", "10.0.0.1"], NOW))
    configured = Configured()
    files = files_in(tmp_path, configuration=configured.seen)
    await files.load()
    assert "whether API servers accept the certificate is not known" in files.fault
    mine = f"the certificate in {tmp_path}/tls.crt"
    configured.put(ca, "https://10.0.0.1:9443/validate", "https://guard.test/validate")
    assert files.fault == ""
    configured.put(ca, "https://10.0.0.1:9443/", "https://127.0.0.1:9443/", "https://127.0.0.1:9443/")
    assert files.fault == f"{mine} is for guard.test, 10.0.0.1, and not for 127.0.0.1, {WHERE}s hook-1, hook-2)"
    configured.put(other, "https://10.0.0.1:9443/")
    untrusted = f"{mine} is not by the CA that API servers trust (unable to get local issuer certificate), for 10.0.0.1"
    assert files.fault == f"{untrusted}, {WHERE} hook-0)"
    configured.put(None, "https://10.0.0.1:9443/")
    assert "is not by a CA of this machine, and the caBundle is empty (unable to get" in files.fault
    configured.put(ca, "https://guard.test:9443/")
    assert files.fault == ""


async def test_a_renewed_pair_that_api_servers_would_not_accept_waits(tmp_path: Path, ca: CA, other: CA):
    write(tmp_path, issued(ca))
    configured = Configured()
    files = files_in(tmp_path, configuration=configured.put(ca, "https://guard.test/"))
    await files.load()
    write(tmp_path, issued(other))  # as cert-manager does it: the caBundle follows later
    await files.look()
    assert "is not by the CA that API servers trust" in files.failure
    assert files.fault == "", "it serves as well as before"
    assert shows(files, ca)
    configured.put(other, "https://guard.test/")
    await files.look()
    assert files.failure == files.fault == ""
    assert shows(files, other)
    write(tmp_path, certificates.issue(other, ["guard.tset"], NOW))
    await files.look()
    assert f"is for guard.tset, and not for guard.test, {WHERE} hook-0)" in files.failure
    assert shows(files, other)


async def test_a_new_ca_file_is_judged_by_itself(tmp_path: Path, ca: CA, other: CA):
    """It is about to be the caBundle."""
    write(tmp_path, issued(ca))
    (tmp_path / "ca.crt").write_text(ca.certificate)
    configured = Configured()
    files = files_in(tmp_path, ca=tmp_path / "ca.crt", configuration=configured.put(ca, "https://guard.test/"))
    await files.load()
    write(tmp_path, issued(other))
    await files.look()
    assert "is not by the CA that API servers trust" in files.failure
    (tmp_path / "ca.crt").write_text(other.certificate)
    await files.look()
    assert files.failure == ""
    assert shows(files, other)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_private_key_is_left_behind(tmp_path: Path, ca: CA):
    """Keys reach OpenSSL through memory; what was opened for it is closed."""
    write(tmp_path, issued(ca))
    await files_in(tmp_path).load()  # with the first child, the event loop opens a descriptor of its own
    before = open_files()
    files = files_in(tmp_path)
    await files.load()
    assert open_files() == before
