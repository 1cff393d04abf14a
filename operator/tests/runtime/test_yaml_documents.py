import pytest
import yaml

from netloom.runtime.yaml_documents import MOST_DEPTH, documents


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_what_is_nested_without_end_is_refused_and_ends_no_process(opening: str) -> None:
    """libyaml's composer would run out of stack, which no exception tells."""
    for text in (opening * 200_000, (opening * 200_000).encode()):
        with pytest.raises(yaml.YAMLError, match="nested more than 200 levels"):
            documents(text)


def test_what_is_long_and_flat_is_read() -> None:
    inner = "[" * (MOST_DEPTH - 1) + "]" * (MOST_DEPTH - 1)
    assert len(documents("\n".join(f"---\n- {{a: {number}}}" for number in range(10 * MOST_DEPTH)))) == 10 * MOST_DEPTH
    assert documents(f"- {inner}") == [yaml.load(f"- {inner}", yaml.CSafeLoader)]
