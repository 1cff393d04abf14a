"""`netloom crds`: what it takes for a folder of CustomResourceDefinitions. Applying them is a test of the chart's."""

from pathlib import Path

import pytest

from netloom.api.errors import UserError
from netloom.api.extensions import DEFINITIONS
from netloom.cli.crds import read
from netloom.runtime.wire import decode

CRDS = Path(__file__).resolve().parents[3] / "crds"


def test_all_of_the_tree_are_found() -> None:
    found = {each["metadata"]["name"] for each in read(CRDS)}
    assert found == {f"{file.stem}.netloom.dev" for file in CRDS.glob("*.yaml")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no CustomResourceDefinition in"),
        ("kind: Secret", "holds something that is no CustomResourceDefinition; only these may be in there"),
        ("[", "cannot be read: while parsing"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        read(tmp_path)
    assert said in str(refusal.value)


def test_one_that_was_just_made_is_not_served_yet() -> None:
    """The API server says null where none of its controllers has looked yet, as no other object does."""
    said = b'{"metadata": {"name": "a"}, "status": {"conditions": null, "acceptedNames": {}, "storedVersions": ["v1"]}}'
    assert decode(DEFINITIONS, said).established is False
