"""How commands that show objects of the cluster read them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netloom.api.errors import UserError
from netloom.cli.options import Cluster
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, unreadable


@asynccontextmanager
async def reading(cluster: Cluster, command: str) -> AsyncIterator[Api]:
    """The API server, for the command of this name. Raises UserError where it is not reached, or refuses a request."""
    async with await Api.connect(cluster.kubeconfig, cluster.context, user_agent=f"netloom-{command}") as api:
        await api.check()
        try:
            yield api
        except ApiError as error:
            raise UserError(unreadable(error)) from error
