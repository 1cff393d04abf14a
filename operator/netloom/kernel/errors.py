"""Reasons why there can be no data path at all, each one sentence for the person who runs the cluster."""

from netloom.api.errors import UserError


class DataplaneError(UserError):
    """Base of the errors that no retry mends."""


class KernelUnsupported(DataplaneError):
    """This kernel lacks what the data path is made of."""


class NotPermitted(DataplaneError):
    """This process may not change the network configuration."""
