"""A relay in front of a cache that is not the demo's to kill."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ..errors import ConfigurationError
from ..urls import normalise_cache_url

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RelayedCache:
    """Passes bytes between the demo's servers and a cache, until it is cut.

    TLS is spoken by the relay itself, so that the servers' certificate check does not meet a
    loopback address. Cluster and Sentinel URLs cannot be relayed: their servers hand out addresses.

    Raises:
        ConfigurationError: The URL is not one that can be relayed.
    """

    went = "cut off"
    came_back = "reachable again"

    def __init__(self, url: str) -> None:
        parts = urlsplit(normalise_cache_url(url))
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ConfigurationError(
                f"the demo's relay cannot stand in front of {parts.scheme}://, whose nodes name others; "
                "give --cache redis://host:port/db, rediss://host:port/db or unix:///path"
            )
        query = dict(parse_qsl(parts.query))
        self._path = unquote(parts.path) if parts.scheme == "unix" else None
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 6379
        self._tls = _tls_context(query) if parts.scheme == "rediss" else None
        userinfo, at, _ = parts.netloc.rpartition("@")
        database = query.pop("db", "0") if self._path else parts.path.lstrip("/") or "0"
        options = urlencode({name: value for name, value in query.items() if not name.startswith("ssl_")})
        self._form = f"redis://{userinfo}{at}127.0.0.1:{{port}}/{database}{'?' if options else ''}{options}"
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listen_port = 0
        self.url = ""
        self.label = f"{parts.scheme}://{self._path or f'{self._host}:{self._port}'} through a relay"

    async def restore(self) -> None:
        """Listens, on the same port every time. Asks the cache for a connection first.

        Raises:
            ConfigurationError: Nothing answers there.
        """
        try:
            _, writer = await self._connect()
        except OSError as error:
            raise ConfigurationError(f"no cache answers at {self.label}: {error}") from error
        writer.close()
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._listen_port)
        self._listen_port = self._listener.sockets[0].getsockname()[1]
        self.url = self._form.replace("{port}", str(self._listen_port))

    async def kill(self) -> str:
        """Resets every connection and refuses new ones."""
        await self.close()
        return "connections reset"

    async def close(self) -> None:
        """Stops listening and resets what is open."""
        if self._listener is not None:
            self._listener.close()
        for writer in tuple(self._open):
            _reset(writer)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self) -> Stream:
        async with asyncio.timeout(5):
            if self._path:
                return await asyncio.open_unix_connection(self._path)
            return await asyncio.open_connection(self._host, self._port, ssl=self._tls)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await self._connect()
            self._open.add(far)
            await asyncio.gather(_pump(reader, far), _pump(far_reader, writer))
        except OSError:
            _reset(writer)
        finally:
            for end in (writer, far):
                if end is not None:
                    end.close()
                    self._open.discard(end)
            self._tasks.discard(task)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST, as a dead machine's successor would."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _tls_context(query: dict[str, str]) -> ssl.SSLContext:
    """Builds the TLS settings that the URL's own options ask for."""
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
