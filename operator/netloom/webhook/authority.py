"""Certificates that the guard makes for itself: the CAs that all replicas share, this replica's own certificate, and
the caBundle of the webhooks.

Level-triggered: at every turn the Secret and the configuration, as the watches last saw them, and the clock say what
is to be done, and most turns nothing is. Turns come with every change of the two, and every few seconds: a clock may be
set. The clock is the API server's, which is the one that judges certificates.

The order matters when the signer changes. A new CA is first in the Secret, then in the caBundle, and OVERLAP later it
signs; a certificate by a CA that the caBundle lacks is not shown while the one before it still is good.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence

import msgspec
import structlog

from netloom.api.core import SECRETS, Secret
from netloom.api.meta import ObjectMeta
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict
from netloom.runtime.store import Store
from netloom.runtime.waking import wait
from netloom.runtime.watch import ListWatch, WatchTiming
from netloom.webhook import certificates, metrics
from netloom.webhook.certificates import CA, ServingCertificate
from netloom.webhook.configuration import Contested, WebhookConfiguration
from netloom.webhook.mint import Mint, MintFailed
from netloom.webhook.names import CA_SECRET, NAME
from netloom.webhook.tls import ServingTLS

log = structlog.get_logger(__name__)

Clock = Callable[[], dt.datetime]


class AuthorityTiming(msgspec.Struct, frozen=True):
    """Seconds."""

    period: float = 5.0
    """Longest distance of two looks at the clock."""
    base: float = 0.25
    cap: float = 30.0
    """Of the delay after an attempt that failed."""
    watch: WatchTiming = WatchTiming()


class Authority:
    """Keeps the certificates; `tls` is the context to serve with. `run` is a component of a Manager.

    The serving certificate is for the names and addresses by which the webhooks are called, as their configuration
    says: `netloom-guard.netloom-system.svc`, or the host of a URL. Where that changes, another is issued, which is for
    those of before as well: not all API servers learn of a change at once.

    hosts: what it is for besides.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        hosts: Sequence[str] = (),
        secret: str = CA_SECRET,
        configuration: str = NAME,
        now: Clock | None = None,
        timing: AuthorityTiming | None = None,
        mint: Mint | None = None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._hosts = tuple(hosts)
        self._called: tuple[str, ...] = ()
        """What the serving certificate had to be for when it was issued."""
        self._secret = secret
        self._key = f"{namespace}/{secret}"
        self._now = now or api.clock.now
        self._mint = mint or Mint()
        self._timing = timing or AuthorityTiming()
        self._backoff = Backoff(self._timing.base, self._timing.cap)
        self._presented = ServingTLS(lambda: not self._invalidity())
        self.tls = self._presented.context
        self.secrets = Store(SECRETS)
        chosen = f"metadata.name={secret}"
        self._secret_watch = ListWatch(
            api, self.secrets, namespace=namespace, field_selector=chosen, timing=self._timing.watch
        )
        self.configuration = WebhookConfiguration(api, configuration, timing=self._timing.watch)
        self.serving: ServingCertificate | None = None
        """What is shown now."""
        self.cas: tuple[CA, ...] = ()
        """The CAs of the Secret, as it was read last."""
        self._read_data: dict[str, str] = {}
        self._bad = ""
        """The content that was read last, and what is wrong with it."""
        self.failure = ""
        """Why the last attempt to keep the certificates failed; "" if it did not."""
        self._woken = asyncio.Event()
        self.secrets.subscribe(lambda key, old, new: self._woken.set())
        self.configuration.store.subscribe(lambda key, old, new: self._woken.set())

    @property
    def fault(self) -> str:
        """Why API servers cannot believe this replica; "" if they do: a check of readiness.

        A failure that does no harm yet is none: an API server that stumbles in the hour of a renewal would make all
        replicas unready, and so cause what it only announces. It is in `failure`, in the log and counted.
        """
        if self.serving is None:
            unseen = self._secret_watch.fault or self.configuration.watch.fault
            return f"no certificate to serve with yet: {self.failure or unseen or 'about to be made'}"
        if invalidity := self._invalidity():
            return f"the certificate {invalidity}: {self.failure or 'another is about to be issued'}"
        if not self._is_trusted(self.serving.signer):
            why = self.failure or "about to be written"
            return f"the caBundle of {self.configuration} does not have the CA of this replica: {why}"
        assert self._presented.current
        refusal = self.configuration.refusal(self._presented.current, "the certificate of this replica")
        late = not self.serving.covers(self.configuration.hosts())
        why = self.failure or ("another is about to be issued" if late else "")
        return f"{refusal}: {why}" if refusal and why else refusal

    async def run(self) -> None:
        """Keeps all of it until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._secret_watch.run(), name="watch of the CA's Secret")
            group.create_task(self.configuration.watch.run(), name="watch of the webhooks")
            await self._keep()

    async def _keep(self) -> None:
        await self.secrets.wait_synced()
        await self.configuration.store.wait_synced()
        while True:
            self._woken.clear()
            try:
                await self._turn()
            except (ApiError, Contested, certificates.BadSecret, MintFailed) as error:
                self._fail(str(error))
                # What was woken meanwhile has to wait, too: others may write what fails here over and over.
                await asyncio.sleep(self._backoff.next())
                continue
            self.failure = ""
            self._backoff.reset()
            await wait(self._woken, self._timing.period)

    def _fail(self, failure: str) -> None:
        metrics.ERRORS.labels("certificates").inc()
        if failure != self.failure:
            log.error("certificates not kept", error=failure)
        self.failure = failure

    async def _turn(self) -> None:
        """Does what is to be done now; what needs the API server least comes first, so that it is done without it.

        Raises ApiError, Contested, BadSecret, MintFailed.
        """
        now = self._now()
        await self._read(self.secrets.get(self._key))
        await self._serve(now)
        if certificates.living(self.cas, now) and not self.configuration.holds(certificates.bundle(self.cas)):
            # The watch may lag behind, and replicas that write what each last saw would take turns for ever.
            await self._read(await self._fresh())
            bundle = certificates.bundle(self.cas)
            if self.cas and not self.configuration.holds(bundle):
                await self.configuration.publish(bundle)
            await self._serve(now)
        if certificates.due(self.cas, now):
            await self._add_ca(now)
            self._woken.set()  # the next turn issues and publishes

    async def _read(self, secret: Secret | None) -> None:
        """Takes over the CAs in the Secret; what was read already is not read again. Raises BadSecret, MintFailed."""
        data = secret.data if secret else {}
        if data != self._read_data:
            what = f"Secret {self._key} was not read"
            try:
                self.cas = await self._mint.call(what, certificates.parse, data, self._key) if data else ()
                self._bad = ""
            except certificates.BadSecret as error:
                self._bad = str(error)
            self._read_data = data
        if self._bad:
            raise certificates.BadSecret(self._bad)

    async def _fresh(self) -> Secret:
        secret = await self._api.get(SECRETS, self._secret, self._namespace)
        self.secrets.put(secret)
        return secret

    async def _add_ca(self, now: dt.datetime) -> None:
        """What all replicas agree on: the first to write wins, the others take over what it wrote.

        Raises ApiError, BadSecret, MintFailed.
        """
        seen = self.secrets.get(self._key)
        await self._read(seen)
        new = await self._mint.call("a CA was not made", certificates.new_ca, now)
        kept = certificates.kept(self.cas, now)
        data = certificates.dump((*kept, new))
        try:
            if seen is None:
                meta = ObjectMeta(name=self._secret, namespace=self._namespace)
                written = await self._api.create(SECRETS, Secret(metadata=meta, data=data))
            else:
                written = await self._api.replace(SECRETS, msgspec.structs.replace(seen, data=data))
            self.secrets.put(written)
            self.cas, self._read_data = (*kept, new), data
            log.info("CA made", secret=self._key, expires=f"{new.expires:%Y-%m-%dT%H:%M:%SZ}", beside=len(kept))
        except (AlreadyExists, Conflict) as error:
            log.debug("another replica was faster", error=str(error))
            await self._fresh()

    async def _serve(self, now: dt.datetime) -> None:
        """Issues and shows a certificate where it is time to. Raises MintFailed."""
        ca = certificates.signer(self.cas, now)
        hosts = tuple(dict.fromkeys((*self._hosts, *self.configuration.hosts())))
        if ca is None or not certificates.renewal(self.serving, ca, now, hosts):
            return
        serving = self.serving
        if (
            serving
            and serving.covers(hosts)
            and not certificates.invalidity(serving, now)
            and self._is_trusted(serving.signer)
            and not self._is_trusted(ca.certificate)
        ):
            return
        what = "a serving certificate was not issued"
        every = tuple(dict.fromkeys((*hosts, *self._called)))
        serving = await self._mint.call(what, certificates.issue, ca, every, now)
        self._presented.present(serving.certificate, serving.key)
        self.serving, self._called = serving, hosts
        metrics.CERTIFICATE_EXPIRY.set(serving.expires.timestamp())
        metrics.CA_EXPIRY.set(ca.expires.timestamp())
        expires = f"{serving.expires:%Y-%m-%dT%H:%M:%SZ}"
        log.info("serving certificate issued", expires=expires, ca=ca.name, hosts=serving.hosts)

    def _invalidity(self) -> str:
        return certificates.invalidity(self.serving, self._now()) if self.serving else ""

    def _is_trusted(self, ca: str) -> bool:
        """Whether all webhooks trust it. Where there are none (yet), nobody is there to mistrust."""
        return all(certificates.contains(bundle, ca) for bundle in self.configuration.bundles())
