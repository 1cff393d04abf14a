"""Of all unit tests below."""

from tests.economy import pytest_configure

__all__ = ["pytest_configure"]
