"""The rule by which replicas agree on CAs, and the certificates themselves, as a TLS client sees them."""

import base64
import dataclasses
import datetime as dt
import ssl
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import is_address
from netloom.webhook import certificates
from netloom.webhook.certificates import (
    CA,
    CA_LIFE,
    OVERLAP,
    RETAINED,
    SERVING_LIFE,
    BadSecret,
    bundle,
    due,
    dump,
    invalidity,
    issue,
    kept,
    living,
    new_ca,
    parse,
    renewal,
    same,
    signer,
)
from netloom.webhook.tls import ServingTLS, refusal
from tests.webhook.conftest import NOW

SECOND, MINUTE, HOUR, DAY = (dt.timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
LAG = 5 * MINUTE


def paper(created: dt.datetime, life: dt.timedelta = CA_LIFE) -> CA:
    """A CA as the rule sees it: no cryptography."""
    pem = f"-----BEGIN CERTIFICATE-----\n{created.isoformat()}\n-----END CERTIFICATE-----\n"
    return CA(pem, "key", created, created + life)


def handshake(presented: ServingTLS, trusted: str, host: str) -> None:
    """A TLS handshake in memory. Raises ssl.SSLError where the client does not believe the server."""
    client_in, client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cadata=trusted).wrap_bio(client_in, client_out, server_hostname=host)
    server = presented.context.wrap_bio(client_out, client_in, server_side=True)
    done = 0
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue
        if done >= 2:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize(
    ("names", "host", "refused"),
    [
        (["127.0.0.1"], "127.0.0.1", ""),
        (["::1"], "::1", ""),
        (["guard.test"], "guard.test", ""),
        (["*.guard.test"], "a.guard.test", ""),
        (["*.test"], "guard.test", ""),
        (["*.test"], "a.guard.test", "is for *.test, and not for a.guard.test"),
        (["guard.test"], "127.0.0.1", "is for guard.test, and not for 127.0.0.1"),
        (["127.0.0.1"], "127.0.0.2", "is for 127.0.0.1, and not for 127.0.0.2"),
        # As Go has it: the common name counts for nothing, and a name that looks like an address is none.
        ([], "own", "is for no name at all, and not for own"),
        (["guard.test"], "own", "is for guard.test, and not for own"),
        (["guard.test"], "fe80::1%25eth0", "is for guard.test, and not for fe80::1%25eth0"),
        (["guard.test"], "a" * 300, f"is for guard.test, and not for {'a' * 300}"),
    ],
)
def test_what_a_client_would_refuse(names: list[str], host: str, refused: str):
    """Also of a certificate that vouches for itself, as people make them with one command."""
    pem, key = own_certificate(names)
    shown = ServingTLS().loaded(pem, key)
    assert refusal(shown, host, pem) == refused
    stranger = refusal(shown, host, new_ca(NOW).certificate)
    assert stranger.startswith("is not by the CA that API servers trust (")
    assert "caBundle is not readable" in refusal(shown, host, "nonsense")


def test_times_are_not_the_business_of_that():
    long_ago = NOW - 800 * DAY
    ca = new_ca(long_ago)
    serving = issue(ca, ["guard.test"], long_ago)
    assert refusal(ServingTLS().loaded(serving.certificate, serving.key), "guard.test", ca.certificate) == ""


def own_certificate(names: list[str]) -> tuple[str, str]:
    """Self-signed, with the common name `own` and these subject alternative names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name.from_rfc4514_string("CN=own")
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    )  # fmt: skip
    if names:
        found = [x509.IPAddress(ip_address(each)) if is_address(each) else x509.DNSName(each) for each in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    return pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def presenting(ca: CA, now: dt.datetime = NOW, **options: object) -> ServingTLS:
    serving = issue(ca, ["netloom-guard.netloom-system.svc"], now, **options)  # type: ignore[arg-type]
    presented = ServingTLS()
    presented.present(serving.certificate, serving.key)
    return presented


class TestTheRule:
    def test_one_ca_signs_from_its_first_moment(self):
        first = paper(NOW)
        assert signer([first], NOW) == first
        assert bundle([first]) == first.certificate
        assert not due([first], NOW)

    def test_without_any_one_is_due(self):
        assert due([], NOW)
        assert signer([], NOW) is None
        assert bundle([]) == ""

    def test_a_second_is_due_after_two_thirds(self):
        first = paper(NOW)
        assert not due([first], NOW + CA_LIFE * 2 / 3 - SECOND)
        assert due([first], NOW + CA_LIFE * 2 / 3)

    def test_a_second_is_trusted_at_once_and_signs_later(self):
        first, second = paper(NOW), paper(NOW + 200 * DAY)
        assert bundle([second, first]) == first.certificate + second.certificate
        assert signer([second, first], second.created + OVERLAP - SECOND) == first
        assert signer([second, first], second.created + OVERLAP) == second

    def test_an_expired_one_signs_no_more_and_is_gone_long_after(self):
        first, second = paper(NOW), paper(NOW + 200 * DAY)
        end = NOW + CA_LIFE
        assert living([first, second], end - SECOND) == (first, second)
        assert living([first, second], end) == (second,)
        assert kept([first, second], end + RETAINED - SECOND) == (first, second)
        assert kept([first, second], end + RETAINED) == (second,)

    def test_one_that_is_not_valid_yet_neither_signs_nor_puts_off_another(self):
        """What a clock that was a year ahead left in the Secret, alone or beside a good one."""
        future, good = paper(NOW + 400 * DAY), paper(NOW - DAY)
        assert signer([future], NOW) is None
        assert due([future], NOW)
        assert signer([future, good], NOW) == good
        assert not due([future, good], NOW)
        assert due([future, good], good.created + CA_LIFE * 2 / 3)
        assert signer([future, good], future.created + OVERLAP) == future

    @pytest.mark.parametrize("jump", [-400 * DAY, -2 * HOUR, 2 * HOUR, 400 * DAY])
    def test_no_jump_of_a_clock_takes_a_ca_from_those_who_trust_it(self, jump: dt.timedelta):
        cas = [paper(NOW - CA_LIFE * 2 / 3 + DAY), paper(NOW)]
        assert kept(cas, NOW + jump) == tuple(cas)

    def test_certificates_are_valid_between_two_moments(self):
        ca = paper(NOW)
        assert invalidity(ca, NOW - HOUR) == invalidity(ca, ca.expires - SECOND) == ""
        assert invalidity(ca, NOW - HOUR - SECOND).startswith("is not valid before ")
        assert invalidity(ca, ca.expires).startswith("has expired at ")

    def test_all_expired_while_nobody_ran(self):
        first = paper(NOW)
        later = NOW + 2 * CA_LIFE
        assert due([first], later)
        assert signer([first], later) is None
        second = paper(later)
        assert signer([first, second], later) == second

    def test_a_serving_certificate_is_renewed_in_time_and_with_its_signer(self):
        ca, other = paper(NOW), paper(NOW + SECOND)
        serving = certificates.ServingCertificate("", "", NOW, NOW + SERVING_LIFE, ca.certificate)
        assert renewal(None, ca, NOW)
        assert not renewal(serving, ca, NOW + SERVING_LIFE * 2 / 3 - SECOND)
        assert renewal(serving, ca, NOW + SERVING_LIFE * 2 / 3)
        assert renewal(serving, other, NOW)

    def test_a_serving_certificate_that_is_not_valid_yet_is_renewed(self):
        """The clock went back by more than such a certificate is backdated."""
        ca = paper(NOW - DAY)
        serving = certificates.ServingCertificate("", "", NOW, NOW + SERVING_LIFE, ca.certificate)
        assert not renewal(serving, ca, NOW - HOUR)
        assert renewal(serving, ca, NOW - 2 * HOUR)

    def test_the_last_certificate_of_a_dying_ca_is_not_renewed_over_and_over(self):
        ca = paper(NOW, life=DAY)
        last = certificates.ServingCertificate("", "", NOW, ca.expires, ca.certificate)
        assert not renewal(last, ca, ca.expires - MINUTE)

    def test_a_bundle_is_the_same_when_nothing_is_missing_and_nothing_too_much(self):
        first, second = paper(NOW), paper(NOW + 200 * DAY)
        both = [first, second]
        assert same(bundle(both), first.certificate + second.certificate)
        assert same(second.certificate + "\n# a comment\n" + first.certificate, bundle(both))
        assert not same("", bundle(both))
        assert not same(first.certificate, bundle(both))
        assert not same(bundle(both) + paper(NOW + DAY).certificate, bundle(both))


@given(st.data())
def test_whatever_is_shown_verifies_against_whatever_was_published(data: st.DataObject):
    """Replicas that look at the Secret at any moments, and never more than LAG late, through CAs of any number of
    rotations, the next of which is made at the last moment at the latest."""
    history: list[tuple[dt.datetime, list[CA]]] = []
    now = NOW
    cas: list[CA] = []
    for _ in range(data.draw(st.integers(1, 5))):
        cas = [*kept(cas, now), paper(now)]
        history.append((now, cas))
        now += data.draw(st.timedeltas(CA_LIFE * 2 / 3, CA_LIFE - OVERLAP))

    def seen(moment: dt.datetime, lag: dt.timedelta) -> list[CA]:
        return [known for since, known in history if since <= moment - lag][-1]

    moment = (
        NOW
        + LAG
        + data.draw(
            st.one_of(
                st.timedeltas(dt.timedelta(), now - NOW),
                st.builds(
                    lambda index, shift: max(dt.timedelta(), history[index][0] - NOW + shift),
                    st.integers(0, len(history) - 1),
                    st.timedeltas(-HOUR, HOUR),
                ),
            )
        )
    )
    lags = st.timedeltas(dt.timedelta(), LAG)
    signed_by = signer(seen(moment, data.draw(lags)), moment)
    if signed_by is None:
        return  # nobody could sign: that is the next test
    published = bundle(seen(moment, data.draw(lags)))
    assert certificates.contains(published, signed_by.certificate)


@given(st.lists(st.timedeltas(dt.timedelta(0), 3 * CA_LIFE), min_size=1, max_size=6), st.timedeltas(-DAY, 4 * CA_LIFE))
def test_the_rule_holds_together(ages: list[dt.timedelta], since: dt.timedelta):
    cas, now = [paper(NOW + age) for age in ages], NOW + since
    chosen = signer(cas, now)
    if chosen:
        assert not invalidity(chosen, now)
        assert certificates.contains(bundle(cas), chosen.certificate)
    else:
        assert due(cas, now)
    assert same(bundle(cas), "".join(ca.certificate for ca in cas))
    assert set(living(cas, now)) <= set(kept(cas, now))
    assert living(reversed(cas), now) == living(cas, now)


class TestCertificates:
    def test_a_client_believes_names_and_addresses(self, ca: CA):
        names, addresses = ["netloom-guard.netloom-system.svc", "guard.example"], ["127.0.0.1", "fd00::1"]
        serving = issue(ca, [*names, *addresses], NOW)
        presented = ServingTLS()
        presented.present(serving.certificate, serving.key)
        for host in (*names, *addresses):
            handshake(presented, ca.certificate, host)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(presented, ca.certificate, "other.example")

    def test_among_several_cas_the_right_one_is_found(self, ca: CA):
        others = [new_ca(NOW - DAY), new_ca(NOW + SECOND)]
        handshake(presenting(ca), bundle([*others, ca]), "netloom-guard.netloom-system.svc")
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(presenting(ca), bundle(others), "netloom-guard.netloom-system.svc")

    def test_a_clock_that_is_an_hour_behind_believes_it(self):
        ahead = NOW + HOUR - MINUTE
        ca = new_ca(ahead)
        handshake(presenting(ca, ahead), ca.certificate, "netloom-guard.netloom-system.svc")

    def test_an_expired_one_is_not_believed(self):
        past = NOW - 40 * DAY
        ca = new_ca(past)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            handshake(presenting(ca, past), ca.certificate, "netloom-guard.netloom-system.svc")

    def test_a_serving_certificate_is_not_older_than_its_ca(self, ca: CA):
        """The clock went back a little: by less than a CA is backdated, so it still signs."""
        serving = issue(ca, ["x"], NOW - HOUR / 2)
        assert serving.begins == ca.begins
        assert certificates.validity(serving.certificate) == (certificates.Validity(serving.begins, serving.expires),)

    def test_a_serving_certificate_does_not_outlive_its_ca_and_signs_nobody(self, ca: CA):
        late = ca.expires - DAY
        serving = issue(ca, ["x"], late)
        assert serving.expires == ca.expires
        forged = dataclasses.replace(ca, certificate=serving.certificate, key=serving.key)
        with pytest.raises(BadSecret, match="may not sign others"):
            parse(dump([forged]), "s")

    def test_secrets_do_not_show_in_logs(self, ca: CA):
        assert "PRIVATE" not in f"{ca!r} {issue(ca, ['x'], NOW)!r}"


class TestTheSecret:
    def test_goes_there_and_back(self, ca: CA):
        later = new_ca(NOW + DAY)
        data = dump([later, ca])
        assert sorted(data) == sorted(f"{each.name}{end}" for each in (ca, later) for end in (".crt", ".key"))
        assert parse(data, "ns/s") == (ca, later)
        assert parse({}, "ns/s") == ()

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"tls.crt": "eA=="}, r"data\['tls.crt'\] stands there without tls.key"),
            ({"password": "eA=="}, r"data\['password'\] is nothing that the guard put there"),
            ({"x.crt": "!", "x.key": "!"}, r"data\['x.crt'\] is not readable"),
            ({"x.crt": "/w==", "x.key": "/w=="}, r"data\['x.crt'\] is not readable"),
            ({"x.crt": "eA==", "x.key": "eA=="}, r"data\['x.crt'\] is no CA of the guard: not a certificate in PEM"),
        ],
    )
    def test_foreign_content_is_named_with_the_way_out(self, ca: CA, change: dict[str, str], sentence: str):
        with pytest.raises(BadSecret, match=f"^Secret ns/s: {sentence}.*; delete the Secret, and the guard makes it"):
            parse(dump([ca]) | change, "ns/s")

    def test_a_key_that_is_not_its_own(self, ca: CA):
        mixed = dataclasses.replace(ca, key=new_ca(NOW).key)
        with pytest.raises(BadSecret, match="the key beside it is not its own"):
            parse(dump([mixed]), "ns/s")

    def test_a_key_that_is_none(self, ca: CA):
        data = dump([ca])
        data[f"{ca.name}.key"] = base64.b64encode(b"half a k").decode()
        with pytest.raises(BadSecret, match="not a private key in PEM"):
            parse(data, "ns/s")
