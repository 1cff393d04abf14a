"""What `netloom pools` says where it may not read what it needs."""

import pytest
from aiohttp import web

from netloom.api.errors import UserError
from netloom.cli.options import Cluster
from netloom.cli.pool_report import holders_of, pools
from tests.runtime.scripted import Call, ScriptedApi, refuse


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [(403, "Forbidden", "may not be read: .*Forbidden"), (404, "NotFound", "install the CRDs")],
)
async def test_a_missing_right_or_crd_is_no_fault_of_netloom(
    server: ScriptedApi, kubeconfig: str, status: int, reason: str, said: str
) -> None:
    async def refused(call: Call) -> web.StreamResponse:
        return await (call.ordinary() if call.request.path == "/version" else refuse(status, reason)(call))

    server.faulty = refused
    cluster = Cluster(kubeconfig=kubeconfig)
    with pytest.raises(UserError, match=said):
        await pools(cluster)
    with pytest.raises(UserError, match=said):
        await holders_of(cluster, "default")
