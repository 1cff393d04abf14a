"""What stands for modules that are not imported yet, until they are asked for something."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.shells import imported_later

NAME = "imported_by_test_shells"
SOURCE = """
class Parser:
    kind = "real"

    def __init__(self, text):
        self.text = text

def double(number, *, again=False):
    return number * (4 if again else 2)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(NAME, None)


def test_what_is_taken_out_imports_the_module_when_it_is_used() -> None:
    with imported_later({NAME: ("Pars*", "double")}):
        taken = importlib.import_module(NAME)
        parser, double = taken.Parser, taken.double
    assert NAME not in sys.modules
    assert double(3, again=True) == 12
    assert NAME in sys.modules
    assert parser("a text").text == "a text"
    assert parser.kind == "real"


def test_a_class_may_inherit_from_what_is_not_imported() -> None:
    with imported_later({NAME: ("Parser",)}):
        base = importlib.import_module(NAME).Parser

    class Heir(base):  # type: ignore[misc,valid-type]
        pass

    assert Heir.__mro__ == (Heir, object)
    assert NAME not in sys.modules


@pytest.mark.parametrize("within", [True, False])
def test_any_other_name_imports_the_module_at_once(within: bool) -> None:
    with imported_later({NAME: ("double",)}):
        taken = importlib.import_module(NAME)
        if within:
            assert taken.Parser.kind == "real"
    assert taken.Parser.kind == "real"
    assert sys.modules[NAME] is not taken


def test_a_module_that_is_there_stays() -> None:
    there = importlib.import_module(NAME)
    with imported_later({NAME: ("double",)}):
        assert importlib.import_module(NAME) is there
