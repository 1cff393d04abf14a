"""Reviews as bytes: nothing that comes in makes more than a refusal, and what goes out is not cut on its way."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.api.admission import AdmissionRequest, GroupVersionResource
from netloom.api.problem import Problem
from netloom.guard.verdict import Ruling
from netloom.webhook import review
from netloom.webhook.review import BadReview, answer, decode, object_of, warnings
from tests.webhook.conftest import review as sent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


def resource(group: str, plural: str) -> GroupVersionResource:
    return GroupVersionResource(group=group, version="v1", resource=plural)


def decoded(body: bytes) -> AdmissionRequest | None:
    try:
        return decode(body)
    except BadReview:
        return None


@given(st.binary())
def test_any_bytes_are_a_review_or_a_sentence(body: bytes):
    assert decoded(body) is None


@given(st.dictionaries(st.sampled_from(sorted(sent()["request"])), JSON), st.binary(max_size=4), st.integers(0, 400))
def test_any_change_of_a_review_is_one_or_a_sentence(changes: dict[str, Any], splice: bytes, place: int):
    body = json.dumps(sent() | {"request": sent()["request"] | changes}).encode()
    for altered in (body, body[:place] + splice + body[place:], body[:place]):
        if request := decoded(altered):
            assert request.uid
            told = json.loads(answer(request, Ruling(unseen=("x",))))
            assert (told["response"]["uid"], told["response"]["allowed"]) == (request.uid, False)


def problem(message: str) -> Problem:
    return Problem("NetloomIPPool a", "spec", "", "Wide", message, "Be careful.", severity="warning")


@given(st.lists(st.text(max_size=1500), max_size=8))
def test_warnings_reach_the_user_whole_or_say_that_there_are_more(texts: list[str]):
    pieces = warnings(texts)
    assert all(0 < len(piece) <= review.WARNING_RUNES for piece in pieces)
    assert sum(map(len, pieces)) <= review.WARNINGS_RUNES
    assert all(piece.split() == piece.split(" ") for piece in pieces)
    if not (pieces and pieces[-1].endswith("lines in all")):
        told = "".join("".join(pieces).replace(" ... ... ", "").replace(" ...", "").replace("... ", "").split())
        assert told.replace(".", "") == "".join("".join(texts).split()).replace(".", "")


def test_a_long_warning_is_split_between_sentences():
    first, second = "a" * 150 + " is long.", "b" * 100 + " is long, too."
    assert warnings([f"{first} {second}"]) == (f"{first} ...", f"... {second}")


def test_warnings_come_with_whatever_verdict():
    request = AdmissionRequest(uid="1", operation="UPDATE")
    for verdict in (
        Ruling(warnings=(problem("it is wide."),)),
        Ruling(warnings=(problem("it is wide."),), refusals=(problem("no."),)),
    ):
        told = json.loads(answer(request, verdict))["response"]
        assert told["warnings"] == ["NetloomIPPool a: spec: it is wide. Be careful."]
        assert told["allowed"] is verdict.allowed


def test_what_is_certain_is_said_before_what_is_not_ready():
    verdict = Ruling(refusals=(problem("no."),), unseen=("NetloomNode: not listed yet",))
    told = json.loads(answer(AdmissionRequest(uid="1", operation="UPDATE"), verdict))["response"]
    assert told["status"]["code"] == 403


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"name": "a", "resource": resource("netloom.dev", "netloomnodes")},
         "netloomnodes.netloom.dev a"),
        ({"name": "a", "namespace": "b", "resource": resource("", "configmaps")}, "configmaps b/a"),
        ({"name": "a", "sub_resource": "status", "resource": resource("x", "y")}, "y.x/status a"),
        ({}, "an unknown resource"),
    ],
)  # fmt: skip
def test_objects_are_named_as_kubectl_does(request_: dict[str, Any], name: str):
    assert object_of(AdmissionRequest(uid="1", operation="DELETE", **request_)) == name
