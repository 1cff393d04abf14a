"""Certificates from files that somebody else renews: a Secret of cert-manager that is mounted, or one's own PKI.

The files are read every ten seconds and compared, which finds every way of replacing them (the kubelet swaps a symlink,
people copy) and costs less than being told of some of them. A pair that does not fit, half-written perhaps, or that is
not valid yet (or any more) by the API server's clock, or that API servers would not accept for the address by which
they call, is not taken: the one before it stays, as long as they accept that.
"""

import asyncio
import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from netloom.runtime.backoff import Backoff
from netloom.runtime.clock import wall
from netloom.runtime.errors import ApiError, ConfigError
from netloom.runtime.waking import wait
from netloom.webhook import certificates, metrics
from netloom.webhook.authority import Clock
from netloom.webhook.certificates import Validity
from netloom.webhook.configuration import Contested, WebhookConfiguration
from netloom.webhook.mint import Mint, MintFailed
from netloom.webhook.tls import ServingTLS

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 10.0


class _Content(NamedTuple):
    certificate: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class _Pair:
    """Files that fit. `ca`: the CA file, `cas`: of its certificates; where there is one."""

    ca: str
    context: ssl.SSLContext
    certificate: Validity
    cas: tuple[Validity, ...]


class CertificateFiles:
    """Serves with the certificate in `certificate` (chain) and `key`; `tls` is the context to serve with.

    configuration: the webhooks; by it the certificate is judged. With `ca`, their caBundle is kept equal to the CA
    file; else it is the business of whoever issues the certificates (cert-manager's cainjector).
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        *,
        ca: Path | None = None,
        configuration: WebhookConfiguration | None = None,
        now: Clock = wall,
        period: float = PERIOD_SECONDS,
        mint: Mint | None = None,
    ) -> None:
        self._paths = (certificate, key, ca)
        self._certificate = certificate
        self._key = key
        self._ca = ca
        self._configuration = configuration
        self._now = now
        self._period = period
        self._mint = mint or Mint()
        self._presented = ServingTLS(lambda: self._shown is not None and not self._invalidity(self._shown))
        self.tls = self._presented.context
        self._tried: _Content | None = None
        self._found: _Pair | None = None
        """The last files that fit, if they are not shown yet."""
        self._shown: _Pair | None = None
        self.failure = ""
        """What is wrong with the files now, even if the ones before them still serve; "" if nothing is."""
        self._unpublished = ""
        self._backoff = Backoff(0.25, period)
        self._woken = asyncio.Event()
        if self._configuration:
            self._configuration.store.subscribe(lambda key, old, new: self._woken.set())

    @property
    def fault(self) -> str:
        """Why API servers cannot believe this replica, "" if they do: a check of readiness.

        New files that cannot be used are none as long as the old ones serve: they would make all replicas unready at
        once. They are in `failure`, in the log and counted.
        """
        if self._shown is None:
            return self.failure or "the certificate is not read yet"
        wrong = self._invalidity(self._shown) or self._unpublished
        configuration = self._configuration
        if wrong or configuration is None:
            return wrong
        if not configuration.store.synced.is_set():
            why = configuration.watch.fault
            return f"whether API servers accept the certificate is not known: {configuration} is not read yet: {why}"
        return configuration.refusal(self._shown.context, f"the certificate in {self._certificate}")

    @property
    def expires(self) -> dt.datetime | None:
        return self._shown.certificate.expires if self._shown else None

    async def load(self) -> None:
        """Reads the files for the first time. Raises ConfigError, as a wrong path is not going to mend itself."""
        await self.look()
        if self._shown is None:
            raise ConfigError(self.failure)

    async def run(self) -> None:
        """Follows the files for ever. Raises ConfigError if they cannot be used at the start."""
        if self._shown is None:
            await self.load()
        async with asyncio.TaskGroup() as group:
            if self._configuration:
                group.create_task(self._configuration.watch.run(), name="watch of the webhooks")
            while True:
                self._woken.clear()
                await self._publish()
                await wait(self._woken, self._period)
                await self.look()

    async def look(self) -> None:
        """Takes over what the files say, if it is new and good."""
        try:
            found = _Content(*(path.read_text(errors="replace") if path else "" for path in self._paths))
        except OSError as error:
            self._tried = None  # what is there again counts as new, even if it is the same
            self._complain(f"{error.filename} cannot be read: {error.strerror}")
            return
        try:
            if found != self._tried:
                self._tried = found
                self._found = None
                self._found = await self._fitting(found)
            if self._found:
                self._take(self._found)
        except (certificates.BadCertificate, MintFailed) as error:
            if isinstance(error, MintFailed):
                self._tried = None  # that is no fault of the files
            self._complain(str(error))

    async def _fitting(self, found: _Content) -> _Pair:
        """Raises BadCertificate, MintFailed."""
        if self._ca and not certificates.certificates_of(found.ca):
            raise certificates.BadCertificate(f"{self._ca} has no certificate in PEM")
        certificate, *_ = await self._validity(self._certificate, found.certificate)
        cas = await self._validity(self._ca, found.ca) if self._ca else ()
        try:
            context = self._presented.loaded(found.certificate, found.key)
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            raise certificates.BadCertificate(
                f"{self._key} is not the key of the certificate in {self._certificate} ({reason})"
            ) from error
        return _Pair(found.ca, context, certificate, cas)

    def _take(self, found: _Pair) -> None:
        """Shows the pair. Raises BadCertificate if API servers do not accept it now, while they do the one before."""
        wrong = self._wrong(found)
        if wrong and self._shown and not self._wrong(self._shown):
            raise certificates.BadCertificate(wrong)
        self._presented.current = found.context
        self._shown, self._found = found, None
        self.failure = ""
        expires = found.certificate.expires
        metrics.CERTIFICATE_EXPIRY.set(expires.timestamp())
        metrics.CA_EXPIRY.set(found.cas[0].expires.timestamp() if found.cas else 0)
        log.info("certificate read", file=str(self._certificate), expires=f"{expires:%Y-%m-%dT%H:%M:%SZ}")

    def _wrong(self, pair: _Pair) -> str:
        """Why API servers do not accept the pair, once its CA is published; "" if they do."""
        if (wrong := self._invalidity(pair)) or self._configuration is None:
            return wrong
        return self._configuration.refusal(pair.context, f"the certificate in {self._certificate}", pair.ca)

    def _invalidity(self, pair: _Pair) -> str:
        """Why API servers do not take the pair for valid now; "" if they do."""
        now = self._now()
        if wrong := certificates.invalidity(pair.certificate, now):
            return f"the certificate in {self._certificate} {wrong}"
        # Of several CAs in a file one is enough: old ones stand beside new ones.
        wrongs = [certificates.invalidity(ca, now) for ca in pair.cas]
        return f"the CA in {self._ca} {wrongs[0]}" if wrongs and all(wrongs) else ""

    async def _validity(self, file: Path, pem: str) -> tuple[Validity, ...]:
        try:
            return await self._mint.call("a certificate was not read", certificates.validity, pem)
        except certificates.BadCertificate as error:
            raise certificates.BadCertificate(f"{file} cannot be used: {error}") from error

    def _complain(self, wrong: str) -> None:
        failure = f"{wrong}; the certificate before it is kept" if self._shown else wrong
        metrics.ERRORS.labels("certificates").inc()
        if self.failure != failure:
            log.error("certificate not read", error=failure)
        self.failure = failure

    async def _publish(self) -> None:
        configuration, shown = self._configuration, self._shown
        try:
            if configuration and self._ca and shown and not configuration.holds(shown.ca):
                await configuration.publish(shown.ca)
        except (ApiError, Contested) as error:
            self._unpublished = f"the caBundle of {configuration} is not written: {error}"
            metrics.ERRORS.labels("certificates").inc()
            log.error("caBundle not written", error=str(error))
            await asyncio.sleep(self._backoff.next())
            self._woken.set()
        else:
            self._unpublished = ""
            self._backoff.reset()
