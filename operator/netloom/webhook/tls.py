"""The TLS context of the admission server, whose certificate changes while it serves; and whether a client would accept
what a context shows."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from netloom.cidr import is_address
from netloom.runtime.tls import Pem
from netloom.runtime.tls import files as in_memory

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h), for which Python has no name."""
_FLIGHTS = 10
"""Of a handshake; TLS 1.3 has three."""


class ServingTLS:
    """`context` is what a server listens with; `present` gives it another certificate.

    The certificate is kept in a context of its own that a handshake is moved to. Loaded into the listening context,
    a pair that does not fit would leave it with neither the old nor the new one, and one with a key of another type
    (RSA after ECDSA) would stand beside the old one instead of replacing it.

    valid: whether what is presented is valid at the moment of a handshake; where it is not, nothing is shown.
    """

    def __init__(self, valid: Callable[[], bool] = lambda: True) -> None:
        self._valid = valid
        self.current: ssl.SSLContext | None = None
        """In which handshakes go on: one that was `loaded`."""
        self.context = _context()
        self.context.sni_callback = self._choose

    def present(self, certificate: str, key: str) -> None:
        """From now on handshakes show this certificate (PEM, its own first, then the chain).

        Raises ssl.SSLError if they are no certificate and its key; all stays as it was then. Open connections live on.
        """
        self.current = self.loaded(certificate, key)

    def loaded(self, certificate: str, key: str) -> ssl.SSLContext:
        """A context with this certificate, to be shown now or later. Raises ssl.SSLError as `present` does."""
        context = _context()
        with in_memory(Pem(certificate.encode(), ""), Pem(key.encode(), "")) as (chain, secret):
            assert chain
            # Without a password of "" OpenSSL would ask for one at the terminal where the key is encrypted.
            context.load_cert_chain(chain, secret, password="")
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if self.current is None or not self._valid():
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self.current
        return None


def refusal(shown: ssl.SSLContext, host: str, trusted: str) -> str:
    """Why a client that calls `host` and trusts `trusted` would not accept the certificate of a context, to be said
    after its name; "" if it would.

    A handshake in memory, 2 ms: names, chain and purposes are judged by OpenSSL, as strictly as Go's TLS, which API
    servers have, and not by rules of our own. Times are not: the clock of this machine is not the API server's.

    trusted: PEM; "" for what this machine trusts, in want of what the API server's machine does.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.hostname_checks_common_name = False
    client.check_hostname = False
    if trusted:
        try:
            client.load_verify_locations(cadata=trusted)
        except (ssl.SSLError, ValueError) as error:
            return f"cannot be verified: the caBundle is not readable ({_reason(error)})"
    else:
        client.load_default_certs()
    try:
        names = [name for _, name in _handshake(client, shown).get("subjectAltName", ())]
    except ssl.SSLError as error:
        by = "the CA that API servers trust" if trusted else "a CA of this machine, and the caBundle is empty"
        return f"is not by {by} ({_reason(error)}), for {host}"
    if not is_address(host) and f"*.{host.partition('.')[2]}" in names:
        return ""  # OpenSSL takes no wildcard right below a top level, such as *.local; Go does
    client.check_hostname = True
    try:
        _handshake(client, shown, host)
    except (ssl.SSLError, ValueError):
        return f"is for {', '.join(names) or 'no name at all'}, and not for {host}"
    return ""


def _handshake(client: ssl.SSLContext, shown: ssl.SSLContext, host: str | None = None) -> Any:
    """The certificate that a client accepts. Raises ssl.SSLError if it does not, ValueError for a nonsensical host."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = shown.wrap_bio(to_server, to_client, server_side=True)
    caller = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(_FLIGHTS):
        try:
            caller.do_handshake()
            return caller.getpeercert()
        except ssl.SSLWantReadError:
            with suppress(ssl.SSLWantReadError):
                server.do_handshake()
    raise ssl.SSLError(f"the handshake does not end after {_FLIGHTS} flights")


def _reason(error: ssl.SSLError | ValueError) -> str:
    return str(getattr(error, "verify_message", "") or getattr(error, "reason", "") or error)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A session that is resumed sees no certificate: it would live on with one that is long replaced.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context
