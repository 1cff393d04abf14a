"""What every process of a role carries with it, because it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e.certificates import Authority

NEEDLESS = {
    "aiohttp.tracing",
    "attr.validators",
    "bz2",
    "cryptography",
    "dateutil",
    "difflib",
    "email.policy",
    "frozenlist._frozenlist",
    "html",
    "http.client",
    "http.server",
    "kubernetes_asyncio.client.models",
    "lzma",
    "multiprocessing",
    "pickle",
    "pydantic",
    "rich",
    "socketserver",
    "urllib.request",
    "urllib3",
    "wsgiref",
}
TELL = """
import netloom.cli
netloom.cli._app()
from netloom.cli.options import Logging
Logging().begin()
import netloom.roles.{role}, netloom.runtime.loop, json, ssl, sys
brought = list(sys.modules)
import aiohttp.connector
from netloom.runtime.metrics import REGISTRY
contexts = (aiohttp.connector._SSL_CONTEXT_VERIFIED, ssl.create_default_context())
authorities = [each.cert_store_stats()["x509_ca"] for each in contexts]
print(json.dumps([brought, [family.name for family in REGISTRY.collect()], authorities]))
"""


def told(tmp_path: Path) -> dict[str, Any]:
    """By role: the modules, the metrics, and how many authorities are trusted, by aiohttp and by who asks."""
    trusted = Authority(tmp_path, "ca").certificate
    environment = {**os.environ, "SSL_CERT_FILE": str(trusted)}
    children = {
        role: subprocess.Popen(
            [sys.executable, "-c", TELL.format(role=role)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for role in ("agent", "operator", "webhook")
    }
    outputs = {role: child.communicate(timeout=60)[0] for role, child in children.items()}
    assert {role: child.returncode for role, child in children.items()} == dict.fromkeys(children, 0)
    return {role: json.loads(output) for role, output in outputs.items()}


@pytest.mark.slow
def test_what_a_role_carries(tmp_path: Path) -> None:
    """One test for all of it: a role takes the better part of a second to import."""
    roles = told(tmp_path)
    for role, (_, _, authorities) in roles.items():
        assert authorities == [0, 1], f"the {role} reads no certificates of the system for a library that it imports"
        # ... and a context that somebody makes trusts whom the system trusts

    modules = set(roles["agent"][0])
    assert {"aiohttp", "netloom.roles.agent"} <= modules
    assert modules & NEEDLESS == set(), "an agent imports nothing that it never needs"

    # They are registered by whoever imports them.
    exported = set(roles["operator"][1])
    own = {name for name in exported if "ledger" in name or "allocation" in name or "ipam" in name}
    own |= {"netloom_nodes_waiting", "netloom_network_problems", "netloom_nodes_address_kept"}
    assert own <= exported
    assert len(own) >= 7
    assert own & set(roles["agent"][1]) == set(), "an agent does not export the operator's metrics"
