"""One name, one meaning: no two of the product's classes are called the same."""

import ast
from collections import defaultdict
from pathlib import Path

import netloom
import netloom_reconcilers


def test_no_two_classes_have_one_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for package in (netloom, netloom_reconcilers):
        folder = Path(package.__path__[0])
        for file in folder.rglob("*.py"):
            for each in ast.parse(file.read_text()).body:
                if isinstance(each, ast.ClassDef):
                    found[each.name].append(str(file.relative_to(folder.parent)))
    assert len(found) > 500
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
