"""Who is who in a control plane: its authority, certificates and keys of its components, and kubeconfigs of users."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import yaml

from netloom_e2e.certificates import Authority, new_key

SERVICE_CIDR = "10.96.0.0/12"
_SERVICE_ADDRESS = "10.96.0.1"
ADMIN = "admin"
ADMIN_GROUPS = ("system:masters",)
_SERVING_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "localhost",
    "127.0.0.1",
    _SERVICE_ADDRESS,
)


class Identities:
    """Files below a state folder. hosts: further addresses and names that the API server's certificate is valid for."""

    def __init__(self, state: Path, hosts: Iterable[str]) -> None:
        folder = state / "certificates"
        self._kubeconfigs = state / "kubeconfigs"
        self._hosts = list(dict.fromkeys([*_SERVING_NAMES, *hosts]))
        self.authority = Authority(folder, "netloom-e2e")
        self.serving = self.authority.issue("serving", "kube-apiserver", hosts=self._hosts)
        self.kubelet_client = self.authority.issue("kubelet-client", "kube-apiserver", groups=ADMIN_GROUPS)
        self.service_account_key = new_key(folder / "service-account.key")
        self.token = secrets.token_hex(16)
        """The admin's, beside the certificate."""
        self.token_file = folder / "tokens.csv"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(f'{self.token},{ADMIN},{ADMIN},"{",".join(ADMIN_GROUPS)}"\n')
        self._writing = threading.Lock()
        """Nodes that start beside each other ask for one kubeconfig: of two keys the certificate is of one."""

    def present(self, authority: Authority) -> None:
        """The API server shows a certificate of this authority; kubeconfigs trust both."""
        pair = authority.issue("serving", "kube-apiserver", hosts=self._hosts)
        with self.authority.certificate.open("ab") as bundle:
            bundle.write(authority.certificate.read_bytes())
        for new, old in ((pair.certificate, self.serving.certificate), (pair.key, self.serving.key)):
            old.write_bytes(new.read_bytes())

    def kubeconfig(self, server: str, user: str, groups: tuple[str, ...], *, host: str) -> Path:
        """Of a user, for a server's URL; host: what tells apart a further URL of the same server."""
        file = "+".join(quote(part, safe="") for part in (user, *groups)) + (f"@{quote(host, safe='')}" if host else "")
        path = self._kubeconfigs / f"{file}.yaml"
        with self._writing:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                pair = self.authority.issue(file, user, groups=groups or (ADMIN_GROUPS if user == ADMIN else ()))
                path.write_text(
                    yaml.safe_dump(_kubeconfig(server, self.authority.certificate, user, pair.certificate, pair.key))
                )
        return path


def _kubeconfig(server: str, authority: Path, user: str, certificate: Path, key: Path) -> dict[str, object]:
    """Refers to files: from data inside it clients make temporary files, which a killed one leaves behind."""
    credentials = {"client-certificate": str(certificate), "client-key": str(key)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "netloom-e2e",
        "contexts": [{"name": "netloom-e2e", "context": {"cluster": "netloom-e2e", "user": user}}],
        "clusters": [{"name": "netloom-e2e", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": user, "user": credentials}],
    }
