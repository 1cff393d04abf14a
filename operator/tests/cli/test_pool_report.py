"""What `netloom pools` says where it may not read what it needs."""

import pytest
from aiohttp import web

from netloom.api.errors import UserError
from netloom.cli.pool_report import holders_of, pools
from tests.runtime.scripted import Call, ScriptedApi, refuse


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (404, "NotFound")])
async def test_a_missing_right_or_crd_is_no_fault_of_netloom(
    server: ScriptedApi, kubeconfig: str, status: int, reason: str
) -> None:
    async def refused(call: Call) -> web.StreamResponse:
        return await (call.ordinary() if call.request.path == "/version" else refuse(status, reason)(call))

    server.faulty = refused
    with pytest.raises(UserError, match=f"the objects cannot be read: .*{reason}"):
        await pools(kubeconfig, None)
    with pytest.raises(UserError, match=f"the objects cannot be read: .*{reason}"):
        await holders_of(kubeconfig, None, "default")
