"""The loops that tests run on."""

import pytest
from pytest_asyncio.plugin import LoopFactory

from tests.collection import pytest_collection
from tests.economy import pytest_configure
from tests.kernel.conftest import lab, node
from tests.loops import BOTH, pytest_collection_modifyitems

__all__ = ["lab", "node", "pytest_collection", "pytest_collection_modifyitems", "pytest_configure"]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The roles run on uvloop; nothing here may depend on that."""
    return BOTH
