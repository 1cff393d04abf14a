"""CAs and serving certificates, as values: every function is told the time, none keeps state.

The replicas of the guard share a Secret with one or more CAs, and each issues a serving certificate of its own. Which
CA signs is a rule over the Secret's content and the clock, so that replicas agree without talking to each other:

- The **bundle** that API servers are to trust is every CA of the Secret. A clock decides nothing here: one that is
  wrong for a moment must not take from others what they still trust, and a CA that is not valid does no harm.
- Those **living** are valid now, neither past their end nor before their beginning. No other signs.
- The **signer** is the newest of them that is at least OVERLAP old; before, everybody has to have seen it and the
  bundle with it. Where none is, it is the oldest.
- A new CA is **due** when none is living, or the newest has used up two thirds of its life. The others stay beside it,
  until they are RETAINED past their end.

So a serving certificate verifies against the bundle of any replica that lags behind by less than OVERLAP. Serving
certificates live much shorter than what is left of their CA when the next one takes over.

`cryptography` is imported where it is used: it costs 11 MiB, which who only asks for a rule, or for TLS, need not pay.
The guard has what needs it done in another process (`netloom.webhook.mint`).
"""

import base64
import binascii
import datetime as dt
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netloom.cidr import is_address

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_LIFE = dt.timedelta(days=365)
SERVING_LIFE = dt.timedelta(days=30)
OVERLAP = dt.timedelta(minutes=10)
BACKDATE = dt.timedelta(hours=1)
"""So much earlier a certificate begins than it was made: the clock of an API server may be behind."""
RETAINED = CA_LIFE
"""So long past its end a CA stays. By a clock that is wrong, a good CA has expired: all that a clock costs that is a
year ahead for a moment is one CA more in the Secret."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class BadSecret(Exception):
    """The Secret holds something else than CAs. The text is a sentence that names it, the key and the way out."""


class BadCertificate(Exception):
    """Something is no certificate, or no key to it. The text says what."""


@dataclass(frozen=True, slots=True)
class _Issued:
    """A certificate of the guard's own making, with its key. `created` is BACKDATE after its notBefore."""

    certificate: str = field(repr=False)
    key: str = field(repr=False)
    created: dt.datetime
    expires: dt.datetime

    @property
    def begins(self) -> dt.datetime:
        """Its notBefore."""
        return self.created - BACKDATE


class CA(_Issued):
    """A CA."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Of its keys in the Secret."""
        return f"ca-{self.created:%Y%m%dT%H%M%SZ}"


@dataclass(frozen=True, slots=True)
class ServingCertificate(_Issued):
    """Valid only while its CA is; `signer` is the certificate of that. `hosts`: what it is for."""

    signer: str = field(repr=False)
    hosts: tuple[str, ...] = ()

    def covers(self, hosts: Collection[str]) -> bool:
        """Whether it is for all of these."""
        return set(hosts) <= set(self.hosts)


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate of whatever origin is valid."""

    begins: dt.datetime
    expires: dt.datetime


# The rule


def invalidity(one: _Issued | Validity, now: dt.datetime) -> str:
    """Why an API server whose clock says `now` does not take it for valid, to be said after its name; "" if it does."""
    if now < one.begins:
        return f"is not valid before {one.begins:{_TIME}} by the API server's clock"
    return "" if now < one.expires else f"has expired at {one.expires:{_TIME}} by the API server's clock"


def living(cas: Iterable[CA], now: dt.datetime) -> tuple[CA, ...]:
    """Those that are valid, the oldest first."""
    return tuple(sorted((ca for ca in cas if not invalidity(ca, now)), key=_age))


def kept(cas: Iterable[CA], now: dt.datetime) -> tuple[CA, ...]:
    """Those that stay when one is added, the oldest first."""
    return tuple(sorted((ca for ca in cas if ca.expires + RETAINED > now), key=_age))


def bundle(cas: Iterable[CA]) -> str:
    """The certificates that API servers are to trust, as PEM; "" if there are none."""
    return "".join(ca.certificate for ca in sorted(cas, key=_age))


def signer(cas: Iterable[CA], now: dt.datetime) -> CA | None:
    """The CA that signs now; None if none may."""
    alive = living(cas, now)
    seen = [ca for ca in alive if now - ca.created >= OVERLAP]
    return seen[-1] if seen else alive[0] if alive else None


def due(cas: Iterable[CA], now: dt.datetime) -> bool:
    """Whether a new CA is to be made."""
    alive = living(cas, now)
    return not alive or _used_up(alive[-1].created, alive[-1].expires, now)


def renewal(serving: ServingCertificate | None, signed_by: CA, now: dt.datetime, hosts: Collection[str] = ()) -> bool:
    """Whether a new serving certificate is to be issued, given the CA that signs now and what it has to be for."""
    if (
        serving is None
        or not serving.covers(hosts)
        or serving.signer != signed_by.certificate
        or invalidity(serving, now)
    ):
        return True
    # A CA near its end can only give short certificates; to renew the last one over and over would help nobody.
    return _used_up(serving.created, serving.expires, now) and serving.expires < signed_by.expires


def _age(ca: CA) -> tuple[dt.datetime, str]:
    return ca.created, ca.certificate


def _used_up(created: dt.datetime, expires: dt.datetime, now: dt.datetime) -> bool:
    return now >= created + (expires - created) * 2 / 3


# The Secret


def parse(data: Mapping[str, str], secret: str) -> tuple[CA, ...]:
    """The CAs in the data of a Secret (base64), the oldest first. `secret` is its name, for the error.

    Raises BadSecret for anything else that is in there: to write over it, or to guess, could undo what somebody meant.
    """
    cas = []
    for key in sorted(data):
        stem, dot, suffix = key.rpartition(".")
        if not dot or suffix not in ("crt", "key"):
            raise _bad(secret, key, "is nothing that the guard put there")
        partner = f"{stem}.{'key' if suffix == 'crt' else 'crt'}"
        if partner not in data:
            raise _bad(secret, key, f"stands there without {partner}")
        if suffix == "key":
            continue
        try:
            cas.append(_ca(_text(data, key, secret), _text(data, partner, secret)))
        except BadCertificate as error:
            raise _bad(secret, key, f"is no CA of the guard: {error}") from error
    return tuple(sorted(cas, key=_age))


def dump(cas: Iterable[CA]) -> dict[str, str]:
    """Data of a Secret, in base64."""
    texts = {f"{ca.name}.{suffix}": text for ca in cas for suffix, text in (("crt", ca.certificate), ("key", ca.key))}
    return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}


def _text(data: Mapping[str, str], key: str, secret: str) -> str:
    try:
        return base64.b64decode(data[key], validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _bad(secret, key, f"is not readable: {error}") from error


def _bad(secret: str, key: str, what: str) -> BadSecret:
    return BadSecret(
        f"Secret {secret}: data[{key!r}] {what}; delete the Secret, and the guard makes it anew within a second, or "
        "give the guard another name for it"
    )


# PEM


def certificates_of(pem: str) -> frozenset[str]:
    """The certificates of a PEM text, in a form that can be compared."""
    return frozenset("".join(one.split()) for one in _PEM.findall(pem))


def same(one: str, other: str) -> bool:
    """Whether two PEM texts hold the same certificates."""
    return certificates_of(one) == certificates_of(other)


def contains(bundle: str, certificate: str) -> bool:
    """Whether a bundle holds the certificate (both PEM)."""
    return certificates_of(certificate) <= certificates_of(bundle)


# Making and reading, by `cryptography`


def new_ca(now: dt.datetime, life: dt.timedelta = CA_LIFE) -> CA:
    """A CA that can sign serving certificates and nothing else that would be trusted: path length 0."""
    from cryptography import x509

    now = now.replace(microsecond=0)
    key, key_pem = _new_key()
    name = x509.Name.from_rfc4514_string(f"CN=netloom-guard-ca {now:{_TIME}}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = _sign(x509.BasicConstraints(True, 0), now, now + life, name, key.public_key(), name, key, identifier)
    return CA(certificate, key_pem, now, now + life)


def issue(ca: CA, hosts: Iterable[str], now: dt.datetime, *, life: dt.timedelta = SERVING_LIFE) -> ServingCertificate:
    """A serving certificate for DNS names and IP addresses; it does not outlive its CA."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = now.replace(microsecond=0)
    hosts = tuple(hosts)
    parent, parent_key = _load(ca.certificate)[0], _load_key(ca.key)
    created, expires = max(now, ca.created), min(now + life, ca.expires)
    names = [x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host) for host in hosts]
    if not names:
        raise ValueError("a serving certificate needs a name or an address")
    key, key_pem = _new_key()
    extensions = (
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName(names),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()),
    )
    subject, end = x509.Name.from_rfc4514_string("CN=netloom-guard"), x509.BasicConstraints(False, None)
    certificate = _sign(end, created, expires, subject, key.public_key(), parent.subject, parent_key, *extensions)
    return ServingCertificate(certificate, key_pem, created, expires, ca.certificate, hosts)


def validity(pem: str) -> tuple[Validity, ...]:
    """Of each certificate of a PEM text, at least one. Raises BadCertificate."""
    return tuple(Validity(one.not_valid_before_utc, one.not_valid_after_utc) for one in _load(pem))


def _ca(certificate: str, key: str) -> CA:
    from cryptography import x509

    loaded, private = _load(certificate)[0], _load_key(key)
    values = [extension.value for extension in loaded.extensions]
    if not any(isinstance(value, x509.BasicConstraints) and value.ca for value in values):
        raise BadCertificate("it may not sign others")
    if loaded.public_key() != private.public_key():
        raise BadCertificate("the key beside it is not its own")
    return CA(certificate, key, loaded.not_valid_before_utc + BACKDATE, loaded.not_valid_after_utc)


def _load(pem: str) -> "list[x509.Certificate]":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise BadCertificate(f"not a certificate in PEM ({error})") from error


def _load_key(pem: str) -> "ec.EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadCertificate(f"not a private key in PEM ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadCertificate("the key is none of an elliptic curve")
    return key


def _new_key() -> "tuple[ec.EllipticCurvePrivateKey, str]":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _sign(
    constraints: "x509.BasicConstraints",
    created: dt.datetime,
    expires: dt.datetime,
    subject: "x509.Name",
    key: "ec.EllipticCurvePublicKey",
    issuer: "x509.Name",
    issuer_key: "ec.EllipticCurvePrivateKey",
    *extensions: "x509.ExtensionType",
) -> str:
    """A certificate in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    usage = dict.fromkeys((*rest, "decipher_only"), False)
    usage |= dict.fromkeys(("key_cert_sign", "crl_sign"), constraints.ca) | {"digital_signature": not constraints.ca}
    builder = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(created - BACKDATE)
        .not_valid_after(expires)
        .add_extension(constraints, critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM).decode()
