"""Which proxy a connection to the API server takes, by the rules that kubectl's users know (docs/runtime.md).

They are those of Go's golang.org/x/net/http/httpproxy, which client-go follows; Python's own (urllib, and so aiohttp's
`trust_env`) know no networks and no ports. A message names the proxy, and never the password in its address.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from yarl import URL

from netloom.cidr import Address, Cidr, CidrError, MappedAddressError, is_loopback, parse_address
from netloom.runtime.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy to be used. `url` may hold a password; `str()` does not."""

    url: URL
    source: str
    """Who asked for it: `$HTTPS_PROXY`, or the kubeconfig's field."""

    @classmethod
    def of(cls, server: str, proxy_url: str, environ: Mapping[str, str]) -> Self | None:
        """The one on the way to `server` (an http or https URL), if any. `proxy_url`: the kubeconfig's. ConfigError for
        one that cannot be used."""
        if proxy_url:
            return cls(_parse(proxy_url, "proxy-url in the kubeconfig"), "proxy-url in the kubeconfig")
        target = URL(server)
        names = (f"{target.scheme}_proxy", f"{target.scheme.upper()}_PROXY")
        name = next(filter(environ.get, names), "")
        port = target.port or _DEFAULT_PORTS.get(target.scheme, 0)
        no_proxy = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        if not name or exempt(target.raw_host or "", port, no_proxy):
            return None
        return cls(_parse(environ[name], f"${name}"), f"${name}")

    def __str__(self) -> str:
        return str(_without_password(self.url))

    @property
    def name(self) -> str:
        """It in words for people."""
        return f"the proxy {self} ({self.source})"


def exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether $NO_PROXY, or its being this machine, keeps a host (a name or an address) from the proxy."""
    host = host.lower().strip("[]")
    address = _address(host.partition("%")[0])
    if host == "localhost" or (address is not None and is_loopback(address)):
        return True
    entries = [entry.strip().lower() for entry in no_proxy.split(",")]
    return "*" in entries or any(_covers(entry, host, address, port) for entry in entries if entry)


def _covers(entry: str, host: str, address: Address | None, port: int) -> bool:
    if (network := Cidr.masked(entry)) is not None:
        return address is not None and network.holds(address)
    name, only = _split_port(entry)
    if not name or only not in ("", str(port)):
        return False
    if (wanted := _address(name)) is not None:
        return wanted == address
    if address is not None:
        return False
    name = _ascii(name.removeprefix("*") if name.startswith("*.") else name)
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _address(text: str) -> Address | None:
    """The address; of an IPv4 address written as IPv6, the former."""
    try:
        return parse_address(text)
    except MappedAddressError as error:
        return error.address
    except CidrError:
        return None


def _split_port(entry: str) -> tuple[str, str]:
    """Name or address, and port, "" where none is given."""
    if entry.startswith("[") and "]:" in entry:
        name, _, port = entry[1:].partition("]:")
        return name, port
    name, colon, port = entry.partition(":")
    return (name, port) if colon and ":" not in port else (entry, "")


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name


def _parse(text: str, source: str) -> URL:
    """Raises ConfigError. Of what is no address nothing is shown: it may hold a password."""
    try:
        url = URL(text if "://" in text else f"http://{text}")
        usable = bool(url.host) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{source} is not the address of a proxy, such as http://proxy.example.org:3128")
    if url.scheme == "https":
        # aiohttp would speak to it by the API server's TLS context: trust the cluster's CA alone, and show it the
        # client certificate that is meant for the API server.
        raise ConfigError(
            f"{source} asks for {_without_password(url)}: a proxy that is spoken to by TLS is not supported. "
            "Use its http:// address: what goes through it to an https:// API server is encrypted all the same."
        )
    if url.scheme != "http":
        raise ConfigError(
            f"{source} asks for {_without_password(url)}: proxies of the kind {url.scheme} are not supported, "
            "only http:// ones."
        )
    return url


def _without_password(url: URL) -> URL:
    return URL.build(scheme=url.scheme, host=url.host or "", port=url.explicit_port)
