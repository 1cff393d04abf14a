"""What TLS to one API server is made from, and what is wrong with it, by the name of the file at fault.

Certificates and keys are read into memory and used from there, so that what was checked is what is used even while a
file is being replaced. OpenSSL takes a client's key from files only; it gets one that lives in memory
(memfd_create(2)), so that a process that is killed leaves no key behind on a disk.
"""

import datetime as dt
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from netloom.runtime.clock import timestamp, wall
from netloom.runtime.errors import ConfigError
from netloom.runtime.http import aiohttp

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VALIDITY = re.compile(rb"(?:\x17\x0d\d{12}|\x18\x0f\d{14})Z(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))")
"""Two times in DER, each a UTCTime (with two digits of the year) or a GeneralizedTime."""
ISSUER_UNKNOWN = frozenset({2, 18, 19, 20, 21})
"""X509_V_ERR_* codes (openssl/x509_vfy.h) that say: no way from this certificate to a CA that is trusted."""
OUT_OF_TIME = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class Pem(msgspec.Struct, frozen=True):
    """Certificates or a key, and where they are from, in words for people ("/etc/kubernetes/ca.crt")."""

    content: bytes
    origin: str

    def __repr__(self) -> str:
        return f"Pem({self.origin})"


class ApiEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An API server, and what a connection to it is made from. Connections are made anew when any of it changes."""

    host: str
    """Base URL, without a slash at the end."""
    ca: Pem | None = None
    """Whom the server's certificate must come from; None: from whom the system trusts."""
    certificate: Pem | None = None
    key: Pem | None = None
    verify: bool = True
    tls_server_name: str = ""
    proxy: str = ""


@contextmanager
def files(*pems: Pem | None) -> Iterator[list[str | None]]:
    """Names under which each can be opened while the context lasts."""
    with ExitStack() as stack:
        names: list[str | None] = []
        for pem in pems:
            if pem is None:
                names.append(None)
                continue
            number = os.memfd_create("netloom", os.MFD_CLOEXEC)
            stack.callback(os.close, number)
            with open(number, "wb", closefd=False) as file:
                file.write(pem.content)
            names.append(f"/proc/self/fd/{number}")
        yield names


def check(endpoint: ApiEndpoint) -> None:
    """Whether TLS can be spoken with these at all. Raises ConfigError, which names the file."""
    problem = _problem(endpoint)
    if problem:
        raise ConfigError(f"a certificate or key for {endpoint.host} cannot be used: {problem}")


def _problem(endpoint: ApiEndpoint) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with files(endpoint.ca, endpoint.certificate, endpoint.key) as (ca, certificate, key):
        for pem, name in ((endpoint.ca, ca), (endpoint.certificate, certificate)):
            if pem is None:
                continue
            if not CERTIFICATE.search(pem.content):
                return f"there is no certificate (PEM) in {pem.origin}"
            try:
                context.load_verify_locations(cafile=name)
            except ssl.SSLError as error:
                return f"{pem.origin} is damaged: {_reason(error)}"
        if endpoint.certificate is None or certificate is None:
            return ""
        holder = endpoint.key or endpoint.certificate
        try:
            context.load_cert_chain(certificate, key, password=_encrypted)
        except _Encrypted:
            return f"the key in {holder.origin} is encrypted"
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                return f"the key in {holder.origin} is not the key of the certificate in {endpoint.certificate.origin}"
            return f"there is no usable private key in {holder.origin}: {_reason(error)}"
    return ""


class _Encrypted(Exception):
    pass


def _encrypted() -> str:
    """Instead of OpenSSL's own way, which asks on the terminal."""
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    return error.reason.replace("_", " ").lower() if error.reason else "it is cut off, or no PEM"


def fault(endpoint: ApiEndpoint, error: BaseException) -> str:
    """What is wrong with certificates, as a sentence that names the file; "" if the error is about something else."""
    host = endpoint.host
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(endpoint, error.certificate_error)
    reason = alert(error)
    if "alert" in reason:
        if endpoint.certificate is not None:
            return f"the API server at {host} does not accept {client_certificate(endpoint)}: {reason}"
        return f"the API server at {host} ends TLS: {reason} (no client certificate is given)"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"no TLS connection to the API server at {host}: {reason or error.os_error}"
    return ""


def alert(error: BaseException) -> str:
    """OpenSSL's reason ("tlsv13 alert certificate required"), also out of the errors that aiohttp makes of it."""
    known = re.search(r"\[SSL(?:: (\w+))?\] ?([\w ]*)", str(error.args[-1]) if error.args else "")
    return (known[2].strip() or (known[1] or "").replace("_", " ").lower()) if known else ""


def _untrusted(endpoint: ApiEndpoint, error: Exception) -> str:
    code = getattr(error, "verify_code", 0)
    why = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
    shows = f"the API server at {endpoint.host} shows a certificate that"
    trusted = endpoint.ca.origin if endpoint.ca else "the system"
    if code in ISSUER_UNKNOWN:
        return f"{shows} {trusted} does not trust: {why}"
    if code in OUT_OF_TIME:
        why += f" (it is {timestamp(wall())} here)"
    return f"{shows} is not trusted: {why}; it was checked with {trusted}"


def ended(endpoint: ApiEndpoint) -> str:
    """That our certificate is out of date, to be appended to whatever failed: servers often just hang up on it."""
    end = not_after(endpoint.certificate.content) if endpoint.certificate else None
    return f"; shown was {client_certificate(endpoint)}" if end and end <= wall() else ""


def client_certificate(endpoint: ApiEndpoint) -> str:
    """The client's certificate in words: where it is from, and until when it is good."""
    if endpoint.certificate is None:
        return "no client certificate"
    words = f"the client certificate of {endpoint.certificate.origin}"
    end = not_after(endpoint.certificate.content)
    if end is None:
        return words
    return f"{words}, which {'is good until' if end > wall() else 'ended'} {timestamp(end)}"


def not_after(pem: bytes) -> dt.datetime | None:
    """When the first certificate in a PEM ends (RFC 5280, 4.1.2.5); None where that cannot be told.

    Its validity is the one place where two times follow each other. The library that reads certificates would cost
    every agent 7 MiB for this one field.
    """
    found = CERTIFICATE.search(pem)
    try:
        times = found and _VALIDITY.search(ssl.PEM_cert_to_DER_cert(found[0].decode()))
        if not times:
            return None
        short, long = times.groups()
        form = "%y%m%d%H%M%S%z" if short else "%Y%m%d%H%M%S%z"
        return dt.datetime.strptime((short or long).decode(), form).astimezone(dt.UTC)
    except ValueError:
        return None
