"""What a kubeconfig says, read again whenever it is asked: the API server, how to trust it, who we are.

kubernetes-asyncio reads a kubeconfig once, and makes files in /tmp of the certificates and keys that are in it. Here
all that it names is read into memory each time, so that what changes on disk is found by comparing. Its credential
plugins and auth providers (OIDC, GCP) are used as they are.
"""

import asyncio
import base64
import binascii
import datetime as dt
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import yaml
from yarl import URL

from netloom.runtime import slim, tls
from netloom.runtime.errors import ConfigError
from netloom.runtime.tls import ApiEndpoint, Pem
from netloom.runtime.yaml_documents import documents

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 60.0
"""How often a credential plugin is run for credentials that end soon, and an auth provider is asked."""
PLUGIN_SECONDS = 30.0
"""How long a credential plugin may take."""
REFUSED_SECONDS = 10.0
"""After a 401, or after it failed, a plugin is run again, but not more often than this."""
EXPIRY_MARGIN = dt.timedelta(minutes=2)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to connect to, and what to send there."""

    endpoint: ApiEndpoint
    authorization: str = ""
    """The header's value; "" if there is none."""
    missing: str = ""
    """Why there are no credentials (yet): a sentence. Waiting may mend it."""

    def __repr__(self) -> str:
        return f"ClientConfig({self.endpoint.host})"


class AuthInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are, as a plugin, an auth provider or the user's section says."""

    authorization: str = ""
    certificate: Pem | None = None
    key: Pem | None = None
    expires: dt.datetime | None = None
    missing: str = ""

    def __repr__(self) -> str:
        return "AuthInfo(...)"


class KubeContext(msgspec.Struct, frozen=True):
    """What one context means: its cluster and user, each with the file that it is from."""

    context: str
    cluster: Mapping[str, Any]
    cluster_file: Path
    user: Mapping[str, Any]
    user_file: Path


class _NoCredentials(ConfigError):
    pass


class Kubeconfig:
    """One or several files (as $KUBECONFIG lists them), and one context: where none is given, the current one of
    the first reading, as long as it exists."""

    def __init__(self, paths: str, context: str | None, clock: Callable[[], float]) -> None:
        self._paths = paths
        self._asked = context
        self._context = context
        self._clock = clock
        self._content: dict[Path, bytes] = {}
        self._section: KubeContext | None = None
        self._login: AuthInfo | None = None
        self._login_by: Any = None
        self._error: _NoCredentials | None = None
        self._error_by: Any = None
        self._loader: tuple[dict[Path, bytes], Any] | None = None
        self._refresh_at = self._again_at = clock()

    async def read(self, *, renew: bool = False) -> ClientConfig:
        """All of it as it is now. Raises ConfigError. renew: the credentials were refused."""
        section = self._choose()
        where = f"kubeconfig {self._paths}, context {section.context!r}"
        server = _server(section, where)
        ca = certificate = key = None
        try:
            login = await self._log_in(section, where, renew)
            if server.startswith("https"):
                ca = _pem(section.cluster, "certificate-authority", section.cluster_file)
                certificate, key = login.certificate, login.key
                if certificate is None:
                    certificate = _pem(section.user, "client-certificate", section.user_file)
                    key = _pem(section.user, "client-key", section.user_file)
        except _NoCredentials:
            raise
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        endpoint = ApiEndpoint(
            host=server,
            ca=ca,
            certificate=certificate,
            key=key,
            verify=not section.cluster.get("insecure-skip-tls-verify"),
            tls_server_name=str(section.cluster.get("tls-server-name") or ""),
            proxy=str(section.cluster.get("proxy-url") or ""),
        )
        return ClientConfig(endpoint=endpoint, authorization=login.authorization, missing=login.missing)

    def _choose(self) -> KubeContext:
        files = [_expanded(path) for path in self._paths.split(os.pathsep) if path]
        present = [path for path in files if is_there(path)]
        if not present:
            raise ConfigError(f"kubeconfig {self._paths} does not exist")
        content = {path: _read(path, "kubeconfig") for path in present}
        if self._section is None or content != self._content:
            parsed = {path: _mapping(path, text) for path, text in content.items()}
            try:
                self._section = choose(self._paths, self._context, parsed)
            except ConfigError:
                if self._asked or not self._context:
                    raise
                self._section = choose(self._paths, None, parsed)
            self._content = content
            self._context = self._section.context
        return self._section

    async def _log_in(self, section: KubeContext, where: str, renew: bool) -> AuthInfo:
        """The credentials: those from before, while what they come from is the same and they are good."""
        user = section.user
        if not user.get("exec") and not user.get("auth-provider"):
            self._login = None
            return _fixed(section)
        by = {key: user.get(key) for key in ("exec", "auth-provider")}
        old = self._login if self._login_by == by else None
        if old is not None and not self._due(old, renew, bool(user.get("auth-provider"))):
            return old
        now = self._clock()
        if old is None and self._error is not None and self._error_by == by and now < self._again_at:
            raise self._error
        self._refresh_at = now + REFRESH_SECONDS
        if renew:
            self._again_at = now + REFUSED_SECONDS
        try:
            found = await self._ask(user, where)
        except _NoCredentials as error:
            self._again_at = now + REFUSED_SECONDS
            self._error, self._error_by = error, by
            found = self._failed(old, error)
        self._login, self._login_by = found, by
        return found

    async def _ask(self, user: Mapping[str, Any], where: str) -> AuthInfo:
        try:
            async with asyncio.timeout(PLUGIN_SECONDS):
                return await (self._ask_provider() if user.get("auth-provider") else _ask_plugin(user["exec"]))
        except TimeoutError as error:
            raise _NoCredentials(
                f"{where}: the credential plugin did not answer within {PLUGIN_SECONDS:g} s"
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and not error.filename:  # uvloop does not say which program cannot be run
                error.filename = (user.get("exec") or {}).get("command")
            said = " ".join(str(error).split()) or type(error).__name__
            raise _NoCredentials(f"{where}: {said}") from error

    def _due(self, old: AuthInfo, renew: bool, provider: bool) -> bool:
        now = self._clock()
        if renew or old.missing:
            return now >= self._again_at
        ends = old.expires is not None and old.expires - EXPIRY_MARGIN <= dt.datetime.now(dt.UTC)
        return (provider or ends) and now >= self._refresh_at

    def _failed(self, old: AuthInfo | None, error: _NoCredentials) -> AuthInfo:
        if old is not None and not old.missing:
            # They may still be good, and the next request says so if not.
            log.warning("credentials not renewed", error=str(error))
            return old
        no_such_program = isinstance(error.__cause__, FileNotFoundError | PermissionError | NotADirectoryError)
        if no_such_program or (self._login is not None and not self._login.missing):
            raise error
        return AuthInfo(missing=str(error))

    async def _ask_provider(self) -> AuthInfo:
        """OIDC or GCP. What is renewed is written back where that is allowed, as kubectl does, for the next process."""
        if self._loader is None or self._loader[0] != self._content:
            merger = slim.KubeConfigMerger(self._paths)
            persist = merger.save_changes if all(os.access(path, os.W_OK) for path in self._content) else None
            loader = slim.KubeConfigLoader(
                merger.config, active_context=self._context, config_base_path=None, config_persister=persist
            )
            self._loader = (self._content, loader)
        loader = self._loader[1]
        await loader._load_authentication()
        return AuthInfo(authorization=getattr(loader, "token", "").strip())


class _PluginStatus(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: str | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    status: _PluginStatus


async def _ask_plugin(plugin: Mapping[str, Any]) -> AuthInfo:
    """An ExecCredential (client.authentication.k8s.io/v1): a token, a client certificate, or both.

    A plugin that takes too long is killed: kubernetes-asyncio's runner lets it hang.
    """
    origin = f"the credential plugin {plugin['command']}"
    provider = slim.ExecProvider(slim.ConfigNode("exec", plugin))
    info = {"apiVersion": provider.api_version, "kind": "ExecCredential", "spec": {"interactive": sys.stdout.isatty()}}
    process = await asyncio.create_subprocess_exec(
        *provider.args,
        env=provider.env | {"KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        process._transport.close()  # type: ignore[attr-defined]  # kills it, and closes what a child of it may hold
        await process.wait()
    if process.returncode:
        raise ConfigError(f"{origin} ended with status {process.returncode}. {errors.decode(errors='replace').strip()}")
    try:
        said = msgspec.json.decode(output, type=_ExecCredential)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{origin} gives no ExecCredential: {error}") from error
    if said.api_version != provider.api_version:
        raise ConfigError(f"{origin} answers in {said.api_version}, not in {provider.api_version}")
    status = said.status
    if not status.token and not status.client_certificate_data:
        raise ConfigError(f"{origin} gives neither a token nor a client certificate")
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise ConfigError(f"{origin} gives a client certificate without a key, or a key without a certificate")
    certificate = key = None
    ends: list[dt.datetime] = []
    if status.client_certificate_data and status.client_key_data:
        certificate = Pem(status.client_certificate_data.encode(), origin)
        key = Pem(status.client_key_data.encode(), origin)
        ends += filter(None, [tls.not_after(certificate.content)])
    if status.expiration_timestamp:
        ends.append(dt.datetime.fromisoformat(status.expiration_timestamp).astimezone(dt.UTC))
    authorization = f"Bearer {status.token}".strip() if status.token else ""
    return AuthInfo(authorization=authorization, certificate=certificate, key=key, expires=min(ends, default=None))


def _fixed(section: KubeContext) -> AuthInfo:
    """A token, a file that holds one, or a password. The file wins, as with client-go, while it can be read."""
    user = section.user
    if user.get("tokenFile"):
        path = section.user_file.parent / str(user["tokenFile"])
        try:
            return AuthInfo(authorization=token(path))
        except ConfigError:
            if not user.get("token"):
                raise
    if user.get("token"):
        return AuthInfo(authorization=f"Bearer {user['token']}".strip())
    if "username" in user and "password" in user:
        basic = base64.b64encode(f"{user['username']}:{user['password']}".encode()).decode()
        return AuthInfo(authorization=f"Basic {basic}")
    return AuthInfo()


def token(path: Path) -> str:
    """The Authorization header's value for the bearer token in a file. Raises ConfigError."""
    text = _read(path, "the token file").decode(errors="replace")
    if not text.strip():
        raise ConfigError(f"the token file {path} is empty")
    return f"Bearer {text}".strip()  # it usually ends in a newline, which has no place in a header


def pem(path: Path, what: str) -> Pem:
    """The content of a file of certificates or of a key. Raises ConfigError."""
    return Pem(_read(path, what), str(path))


def _pem(section: Mapping[str, Any], field: str, file: Path) -> Pem | None:
    """Of a field that holds base64 (FIELD-data, which wins) or names a file, relative to the kubeconfig's folder."""
    if data := section.get(f"{field}-data"):
        try:
            return Pem(base64.b64decode(data), f"{field}-data in {file}")
        except (binascii.Error, ValueError, TypeError) as error:
            raise ConfigError(f"{field}-data in {file} is not base64") from error
    return pem(file.parent / str(section[field]), field) if section.get(field) else None


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"kubeconfig {path}: whose home directory that is, is not known") from error


def is_there(path: Path) -> bool:
    """Whether there is a kubeconfig. Raises ConfigError where that is not to be known, as in a folder of somebody else:
    to go on without it would mean to go on with another cluster."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"kubeconfig {path} cannot be read: {why}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"kubeconfig {path} is no file")
    return True


def _server(section: KubeContext, where: str) -> str:
    """The API server's URL, without a slash at its end."""
    server = str(section.cluster["server"]).rstrip("/")
    try:
        url = URL(server)
        right = url.scheme in ("https", "http") and url.host and not any(map(str.isspace, server))
        wrong = "" if right else "it is not of the form https://HOST:PORT"
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ConfigError(f"{where}: the server address {server!r} cannot be used: {wrong}")
    return server


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error


def choose(paths: str, context: str | None, content: Mapping[Path, Any]) -> KubeContext:
    """One context of the parsed files; of several the first that says something counts, as with kubectl.

    Finds what is wrong with a kubeconfig before anything is made of it. Raises ConfigError.
    """
    merged: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"contexts": {}, "clusters": {}, "users": {}}
    current = ""
    for path, mapping in content.items():
        current = current or str(mapping.get("current-context") or "")
        for kind, entries in merged.items():
            listed = mapping.get(kind) or []
            for entry in listed if isinstance(listed, list) else []:
                if isinstance(entry, dict) and "name" in entry:
                    inner = entry.get(kind[:-1])
                    found = inner if isinstance(inner, dict) else {}
                    entries.setdefault(str(entry["name"]), (found, path))
    chosen = context or current
    known = ", ".join(sorted(merged["contexts"])) or "none"
    if not chosen:
        raise ConfigError(f"kubeconfig {paths} sets no current-context, and no context was given; it has: {known}")
    if chosen not in merged["contexts"]:
        raise ConfigError(f"kubeconfig {paths} has no context {chosen!r}; it has: {known}")
    section, file = merged["contexts"][chosen]
    cluster = str(section.get("cluster") or "")
    if not merged["clusters"].get(cluster, ({}, file))[0].get("server"):
        raise ConfigError(f"kubeconfig {paths}, context {chosen!r}: its cluster {cluster!r} has no server address")
    name = str(section.get("user") or "")
    if name and name not in merged["users"]:
        raise ConfigError(f"kubeconfig {paths}, context {chosen!r}: its user {name!r} does not exist")
    return KubeContext(chosen, *merged["clusters"][cluster], *merged["users"].get(name, ({}, file)))


def _mapping(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = documents(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"kubeconfig {path} is not YAML: {' '.join(str(error).split())}") from error
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ConfigError(f"kubeconfig {path} is empty or not a mapping")
    return found[0]
