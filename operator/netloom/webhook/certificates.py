"""CAs and serving certificates, as values: every function is told the time, none keeps state.

The replicas of the guard share a Secret with one or more CAs, and each issues a serving certificate of its own. Which
CA signs is a rule over the Secret's content and the clock, so that replicas agree without talking to each other:

- The **bundle** that API servers are to trust is every CA that has not expired.
- The **signer** is the newest CA that is at least OVERLAP old; before, everybody has to have seen it and the bundle
  with it. Where none is, it is the oldest.
- A new CA is **due** when the newest has used up two thirds of its life. Expired ones go when it is added.

So a serving certificate verifies against the bundle of any replica that lags behind by less than OVERLAP. Serving
certificates live much shorter than what is left of their CA when the next one takes over.

`cryptography` is imported where it is used: it costs 10 MiB, which who only asks for a rule, or for TLS, need not pay.
The guard has what needs it done in another process (`netloom.webhook.mint`).
"""

import base64
import binascii
import datetime as dt
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_LIFE = dt.timedelta(days=365)
SERVING_LIFE = dt.timedelta(days=30)
OVERLAP = dt.timedelta(minutes=10)
BACKDATE = dt.timedelta(hours=1)
"""So much earlier a certificate begins than it was made: the clock of an API server may be behind."""
SKEW = dt.timedelta(hours=1)
"""Within so much of its end a CA may be in a published bundle or not: clocks differ, and replicas must not fight."""

CERTIFICATE_SUFFIX = ".crt"
KEY_SUFFIX = ".key"
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class BadSecret(Exception):
    """The Secret holds something else than CAs. The text is a sentence that names it, the key and the way out."""


class BadCertificate(Exception):
    """Something is no certificate, or no key to it. The text says what."""


@dataclass(frozen=True, slots=True)
class CA:
    """A CA with its key. `created` is when it was made, BACKDATE after its notBefore."""

    certificate: str
    key: str
    created: dt.datetime
    expires: dt.datetime

    def __repr__(self) -> str:
        return f"CA(created={self.created:%Y-%m-%dT%H:%M:%SZ}, expires={self.expires:%Y-%m-%dT%H:%M:%SZ})"

    @property
    def name(self) -> str:
        """Of its keys in the Secret."""
        return f"ca-{self.created:%Y%m%dT%H%M%SZ}"


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving certificate with its key; `signer` is the certificate of the CA that signed it."""

    certificate: str
    key: str
    created: dt.datetime
    expires: dt.datetime
    signer: str

    def __repr__(self) -> str:
        return f"Serving(created={self.created:%Y-%m-%dT%H:%M:%SZ}, expires={self.expires:%Y-%m-%dT%H:%M:%SZ})"


# The rule


def living(cas: Iterable[CA], now: dt.datetime) -> tuple[CA, ...]:
    """Those that have not expired, the oldest first."""
    return tuple(sorted((ca for ca in cas if ca.expires > now), key=_age))


def bundle(cas: Iterable[CA], now: dt.datetime) -> str:
    """The certificates that API servers are to trust, as PEM; "" if none is left."""
    return "".join(ca.certificate for ca in living(cas, now))


def signer(cas: Iterable[CA], now: dt.datetime) -> CA | None:
    """The CA that signs now; None if none is left."""
    alive = living(cas, now)
    seen = [ca for ca in alive if now - ca.created >= OVERLAP]
    return seen[-1] if seen else alive[0] if alive else None


def due(cas: Iterable[CA], now: dt.datetime) -> bool:
    """Whether a new CA is to be made."""
    alive = living(cas, now)
    return not alive or _used_up(alive[-1].created, alive[-1].expires, now)


def renewal(serving: Serving | None, signed_by: CA, now: dt.datetime) -> bool:
    """Whether a new serving certificate is to be issued, given the CA that signs now."""
    if serving is None or serving.signer != signed_by.certificate:
        return True
    # A CA near its end can only give short certificates; to renew the last one over and over would help nobody.
    return _used_up(serving.created, serving.expires, now) and serving.expires < signed_by.expires


def settled(published: str, cas: Iterable[CA], now: dt.datetime) -> bool:
    """Whether a published bundle is as good as `bundle`: it lacks nothing and holds nothing else, but for CAs that
    are within SKEW of their end."""
    shown = frozenset(certificates_of(published))
    allowed = {_one(ca.certificate): ca.expires for ca in cas}
    needed = {certificate for certificate, expires in allowed.items() if expires - SKEW > now}
    return needed <= shown and all(one in allowed and allowed[one] + SKEW > now for one in shown)


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
        partner = {"crt": KEY_SUFFIX, "key": CERTIFICATE_SUFFIX}.get(suffix)
        if not dot or partner is None:
            raise _bad(secret, key, "is nothing that the guard put there")
        if stem + partner not in data:
            raise _bad(secret, key, f"stands there without {stem + partner}")
        if suffix == "crt":
            certificate, private = _text(data, key, secret), _text(data, stem + partner, secret)
            try:
                cas.append(_ca(certificate, private))
            except BadCertificate as error:
                raise _bad(secret, key, f"is no CA of the guard: {error}") from error
    return tuple(sorted(cas, key=_age))


def dump(cas: Iterable[CA]) -> dict[str, str]:
    """Data of a Secret, in base64."""
    pairs = [(ca.name + suffix, text) for ca in cas for suffix, text in (
        (CERTIFICATE_SUFFIX, ca.certificate), (KEY_SUFFIX, ca.key))]  # fmt: skip
    return {name: base64.b64encode(text.encode()).decode() for name, text in pairs}


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


# Making and reading


def new_ca(now: dt.datetime, life: dt.timedelta = CA_LIFE) -> CA:
    """A CA that can sign serving certificates and nothing else that would be trusted: path length 0."""
    from cryptography import x509

    now = now.replace(microsecond=0)
    key = _new_key()
    name = _name(f"netloom-guard-ca {now:%Y-%m-%dT%H:%M:%SZ}")
    certificate = (
        _builder(now, now + life, name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_others=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return CA(_signed(certificate, key), _key_pem(key), now, now + life)


def issue(
    ca: CA,
    names: Sequence[str],
    now: dt.datetime,
    *,
    addresses: Sequence[str] = (),
    life: dt.timedelta = SERVING_LIFE,
) -> Serving:
    """A serving certificate for DNS names and IP addresses; it does not outlive its CA."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = now.replace(microsecond=0)
    parent, parent_key = _load(ca.certificate), _load_key(ca.key)
    key = _new_key()
    expires = min(now + life, ca.expires)
    hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    hosts += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    if not hosts:
        raise ValueError("a serving certificate needs a name or an address")
    certificate = (
        _builder(now, expires, _name("netloom-guard"), parent.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_others=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False)
    )
    return Serving(_signed(certificate, parent_key), _key_pem(key), now, expires, ca.certificate)


def certificates_of(pem: str) -> list[str]:
    """The certificates of a PEM text, one by one, in a form that can be compared."""
    found = []
    rest = pem
    while (start := rest.find(_BEGIN)) >= 0 and (end := rest.find(_END, start)) >= 0:
        end += len(_END)
        found.append(_one(rest[start:end]))
        rest = rest[end:]
    return found


def contains(bundle: str, certificate: str) -> bool:
    """Whether a bundle holds the certificate (both PEM)."""
    return _one(certificate) in certificates_of(bundle)


def expiry(pem: str) -> dt.datetime:
    """End of the first certificate of a PEM text. Raises BadCertificate."""
    return _load(pem).not_valid_after_utc


def _one(pem: str) -> str:
    return "".join(pem.split())


def _ca(certificate: str, key: str) -> CA:
    """Checked: it is a CA, and the key is its own."""
    from cryptography import x509

    loaded, private = _load(certificate), _load_key(key)
    try:
        constraints = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise BadCertificate("it may not sign others") from None
    if not constraints.ca:
        raise BadCertificate("it may not sign others")
    if loaded.public_key() != private.public_key():
        raise BadCertificate("the key beside it is not its own")
    created = loaded.not_valid_before_utc + BACKDATE
    return CA(certificate, key, created, loaded.not_valid_after_utc)


def _load(pem: str) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem.encode())
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


def _new_key() -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: "ec.EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _signed(builder: "x509.CertificateBuilder", key: "ec.EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def _name(text: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_others: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_others,
        key_cert_sign=signs_others,
        crl_sign=signs_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    now: dt.datetime,
    expires: dt.datetime,
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "ec.EllipticCurvePublicKey",
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(expires)
    )
