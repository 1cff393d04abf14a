"""`make conformance` without its cluster; `test_kubelets.py` runs a few of its specs."""

import json
import sys
from typing import Any

import pytest

from netloom_e2e import conformance, specs
from netloom_e2e.fixtures import built
from netloom_e2e.specs import Outcome


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["conformance", *words])
    return conformance.main()


def test_a_line_that_was_being_written_is_left_out() -> None:
    lines = '{"name": "a", "state": "passed", "seconds": 1.5, "why": ""}\n{"name": "b", "sta'
    assert specs.read(lines) == [Outcome("a", "passed", 1.5)]
    assert specs.read("") == []


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (2, 1)])
def test_the_exit_status_is_that_of_the_specs(
    failed: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judged(focus: str, network: str, at_once: int, minutes: float) -> dict[str, Any]:
        return {"focus": focus, "failed": failed}

    monkeypatch.setattr(conformance, "conformance", judged)
    assert run(monkeypatch, "--focus=DNS") == status
    word, _, said = capsys.readouterr().out.partition(" ")
    assert (word, json.loads(said)) == ("RESULT", {"focus": "DNS", "failed": failed})


def test_where_nothing_is_to_be_run_it_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with built():
        specs.prepare()
    assert run(monkeypatch, "--focus=teapot") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no spec to run matches 'teapot'" in said.err
    assert said.err.count("[sig-network]") == 47
    assert "[sig-network] DNS should provide DNS for services [Conformance]" in said.err
