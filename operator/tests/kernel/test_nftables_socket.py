"""The transaction socket against the real kernel: all or nothing, and every refusal with its place."""

import errno
import subprocess
import sys

from netloom.kernel.netlink import expressions, nftables
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from tests.kernel.netns import Namespace
from tests.kernel.nft import ruleset

UNPRIVILEGED = """
from netloom.kernel.netlink import expressions, nftables
from netloom.kernel.netlink.nftables_socket import WHOLE, NftablesSocket

socket = NftablesSocket()
for _ in range(2):
    refusals = socket.execute([nftables.request(nftables.NEWTABLE, name=name) for name in ("one", "two")])
    print([(place == WHOLE, refusal.name) for place, refusal in refusals.items()])
"""


def test_one_refused_request_undoes_all_and_each_is_named(node: Namespace) -> None:
    sock, masquerade = NftablesSocket(), expressions.masquerade()
    requests = [
        nftables.request(nftables.NEWTABLE, name="one"),
        nftables.request(nftables.DELTABLE, name="none"),
        nftables.request(nftables.NEWSET, table="one", name="addresses", key_type=7, key_len=4, id=1),
        nftables.request(nftables.NEWRULE, table="one", chain="none", expressions=masquerade),
    ]
    refusals = sock.execute(requests)
    assert {place: refusal.errno for place, refusal in refusals.items()} == {1: errno.ENOENT, 3: errno.ENOENT}
    assert ruleset(node) == ""
    assert sock.execute(requests[::2]) == {}
    assert "set addresses" in ruleset(node)
    assert sock.execute([]) == {}
    assert sock.written == {nftables.NEWTABLE: 2, nftables.DELTABLE: 1, nftables.NEWSET: 2, nftables.NEWRULE: 1}
    sock.close()


def test_a_transaction_that_is_refused_as_a_whole(node: Namespace) -> None:
    """What a process without NET_ADMIN is told; and the next answer is not taken for a late one."""
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    command = ["ip", "netns", "exec", node.name, *drop, sys.executable, "-c", UNPRIVILEGED]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[(True, 'EPERM')]\n" * 2, done.stderr
    assert ruleset(node) == ""
