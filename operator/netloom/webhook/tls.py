"""The TLS context of the admission server, whose certificate changes while it serves."""

import ssl
from collections.abc import Callable

from netloom.runtime.tls import Pem
from netloom.runtime.tls import files as in_memory


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


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A session that is resumed sees no certificate: it would live on with one that is long replaced.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context
