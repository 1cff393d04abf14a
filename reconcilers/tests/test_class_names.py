"""One name, one meaning: no two of the product's classes are called the same."""

import re
from collections import defaultdict
from pathlib import Path

import netloom
import netloom_reconcilers


def test_no_two_classes_have_one_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for package in (netloom, netloom_reconcilers):
        folder = Path(package.__path__[0])
        for file in folder.rglob("*.py"):
            for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE):
                found[name].append(str(file.relative_to(folder.parent)))
    assert len(found) > 500
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
