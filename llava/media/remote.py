"""Fetching what a URL names, on a stranger's word: public addresses only, within limits of bytes and time.

The address that is connected to is the one that was checked, so a name whose address changes between two look-ups
(DNS rebinding) gains nothing; redirects are followed by hand and checked alike. Proxies from the environment are not
used: they would resolve names themselves.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import anyio
import httpcore

from llava.errors import LlavaError

_REDIRECTS = 5
_LONGEST_URL = 8192  # characters
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last 32 bits
_NEVER = [  # what `ipaddress` of some Python versions takes for the internet's
    ipaddress.ip_network("::/96"),  # IPv4-compatible
    ipaddress.ip_network("64:ff9b:1::/48"),  # a network's own NAT64
    ipaddress.ip_network("fec0::/10"),  # site-local
]
_AS_IT_IS = "%/?:@!$&'()*+,;=~[]"  # of a path and a query; all else that is not a letter or a digit is quoted


@dataclass(frozen=True)
class FetchLimits:
    """Of one fetch: bytes of the body, seconds in all; and whether private addresses may be connected to."""

    bytes: int
    seconds: float = 20.0
    allow_private: bool = False


async def fetch_url(url: str, limits: FetchLimits, on_bytes: Callable[[int], None] = lambda count: None) -> bytes:
    """The body that an http(s) URL gives. Raises LlavaError for a refused address, too many bytes or no answer.

    on_bytes: hears of the bytes of the body as they come, and may raise to end it.
    """
    shown = url if len(url) <= 100 else f"{url[:100]}..."
    try:
        with anyio.fail_after(limits.seconds):
            async with httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(), network_backend=_PublicOnly(limits.allow_private)
            ) as pool:
                return await _follow(pool, url, shown, limits.bytes, on_bytes)
    except TimeoutError:
        raise LlavaError(f"{shown}: no whole answer within {limits.seconds:g} seconds") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError) as error:
        raise LlavaError(f"{shown}: cannot be fetched ({error or type(error).__name__})") from None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, also where it wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if any(ip in network for network in _NEVER):
            return False
    return ip.is_global and not ip.is_multicast


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Resolves a name once, refuses it if any of its addresses is private, and connects to what was checked."""

    def __init__(self, allow_private: bool) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise LlavaError(f"{host}: is a private address; only public ones are fetched from")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise LlavaError("sockets of this machine are not fetched from")


async def _follow(
    pool: httpcore.AsyncConnectionPool, url: str, shown: str, most: int, on_bytes: Callable[[int], None]
) -> bytes:
    headers = [("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "llava")]
    for _ in range(_REDIRECTS + 1):
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or "@" in parts.netloc
            or len(url) > _LONGEST_URL
        ):
            raise LlavaError(f"{shown}: expected a URL that begins with http:// or https://, without a password")
        host = parts.netloc.encode("idna").decode()  # of names in other scripts
        path, query = quote(parts.path, safe=_AS_IT_IS), quote(parts.query, safe=_AS_IT_IS)
        plain = parts._replace(netloc=host, path=path, query=query, fragment="").geturl()
        async with pool.stream("GET", plain, headers=headers) as response:
            if response.status in (301, 302, 303, 307, 308):
                given = {name.lower(): value for name, value in response.headers}.get(b"location", b"")
                url = urljoin(url, given.decode("ascii", "replace"))
                continue
            if response.status != 200:
                raise LlavaError(f"{shown}: the server answers with status {response.status}")
            body = bytearray()
            async for block in response.aiter_stream():
                on_bytes(len(block))
                body += block
                if len(body) > most:
                    raise LlavaError(f"{shown}: over {most >> 20} MB, the limit")
            return bytes(body)
    raise LlavaError(f"{shown}: more than {_REDIRECTS} redirects")
