"""Of all unit tests below."""

from tests.collection import pytest_collection
from tests.economy import pytest_configure

__all__ = ["pytest_collection", "pytest_configure"]
