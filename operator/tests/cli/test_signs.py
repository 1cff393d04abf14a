"""When a Lease was renewed: by whose clock, and who wrote it."""

import datetime as dt
from typing import Any

import msgspec
import pytest

from netloom.cli.signs import DatedLease, sign_of

NOW = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
RENEWED = {"f:spec": {"f:renewTime": {}, "f:holderIdentity": {}}}


def lease(*managed: tuple[str, dict[str, Any]], seconds: int = 40, holder: str = "a", renewed: str = "") -> DatedLease:
    fields = [{"manager": "m", "time": time, "fieldsV1": fields} for time, fields in managed]
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "acquireTime": "2026-01-01T10:00:00.000000Z"}
    spec |= {"renewTime": renewed} if renewed else {}
    return msgspec.convert({"metadata": {"name": "l", "managedFields": fields}, "spec": spec}, DatedLease)


def test_the_api_servers_clock_counts_and_not_the_holders() -> None:
    fast = lease(("2026-01-01T11:59:00Z", RENEWED), renewed="2030-01-01T00:00:00.000000Z")
    sign = sign_of(fast, NOW)
    assert (sign.heard, sign.alive, sign.life) == ("2026-01-01T11:59:00Z", False, "silent")
    slow = lease(("2026-01-01T11:59:55Z", RENEWED), renewed="2001-01-01T00:00:00.000000Z")
    assert sign_of(slow, NOW).alive
    assert sign_of(slow, NOW).since == "2026-01-01T10:00:00Z"


def test_who_edits_something_else_of_it_gives_no_sign_of_life() -> None:
    labelled = lease(
        ("2026-01-01T11:00:00Z", RENEWED),
        ("2026-01-01T11:59:59Z", {"f:metadata": {"f:labels": {}}}),
        ("2026-01-01T11:59:58Z", {"f:spec": {"f:leaseDurationSeconds": {}}}),
    )
    assert sign_of(labelled, NOW).heard == "2026-01-01T11:00:00Z"
    assert not sign_of(labelled, NOW).alive


@pytest.mark.parametrize(("second", "alive"), [(20, True), (21, False)])
def test_the_last_second_counts(second: int, alive: bool) -> None:
    at = dt.datetime(2026, 1, 1, 12, 0, second, tzinfo=dt.UTC)
    assert sign_of(lease(("2026-01-01T11:59:40Z", RENEWED)), at).alive is alive


def test_without_such_a_record_the_holder_is_believed() -> None:
    assert sign_of(lease(renewed="2026-01-01T11:59:59.999999Z"), NOW).alive
    assert not sign_of(lease(renewed="2026-01-01T11:00:00.000000Z"), NOW).alive


@pytest.mark.parametrize("renewed", ["", "yesterday"])
def test_a_lease_that_was_never_renewed(renewed: str) -> None:
    sign = sign_of(lease(renewed=renewed), NOW)
    assert (sign.heard, sign.alive) == ("", False)


def test_a_lease_that_was_given_back() -> None:
    assert sign_of(lease(("2026-01-01T12:00:00Z", RENEWED), holder="", seconds=1), NOW).life == "released"
