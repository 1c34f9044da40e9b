"""From a cache URL to connections with the package's own settings."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import BlockingConnectionPool, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from ..errors import ConfigurationError
from .connections import ClusterConnections, Connections, PoolConnections, own

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)


def connect(url: str, timeout: float, max_connections: int) -> Connections:
    """Returns the way to the server, or servers, that `url` names. Opens nothing yet.

    Raises:
        ConfigurationError: The URL cannot be read. The message does not quote it: it may hold
            a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError(f"a cache URL begins with one of {', '.join(s + '://' for s in SCHEMES)}")
    base, _, kind = scheme.partition("+")
    try:
        if kind == "cluster":
            return _cluster(base, rest, timeout, max_connections)
        if kind == "sentinel":
            return _sentinel(base, rest, timeout, max_connections)
        # It makes connections and never holds one; of this class it takes all options it ever did.
        pool = BlockingConnectionPool.from_url(url, **_settings(timeout))
        return PoolConnections(own(pool.make_connection, timeout), max_connections, ())
    except (ValueError, TypeError, RedisError, RedisClusterException) as error:
        raise ConfigurationError(f"the cache URL of scheme {scheme}:// cannot be read") from error


def _settings(timeout: float) -> dict[str, Any]:
    return {
        # A repeated command may have run already: components.md 0.4.
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout,
        # A call has a time-out of its own, which costs one timer for all instead of one a reply.
        "socket_timeout": None,
        # Each would cost a round trip of every new connection.
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _cluster(base: str, rest: str, timeout: float, max_connections: int) -> Connections:
    hosts, login, path, query = _parts(rest, 6379)
    options = _options(f"{base}://{login}{_netloc(hosts[0])}{path}{_tail(query)}")
    nodes = [ClusterNode(host, port) for host, port in hosts]
    client = RedisCluster(
        startup_nodes=nodes,
        ssl=base == "rediss",
        **{**_settings(timeout), **options},
    )
    return ClusterConnections(client, timeout, max_connections, owned=True)


def _sentinel(base: str, rest: str, timeout: float, max_connections: int) -> Connections:
    hosts, login, path, query = _parts(rest, 26379)
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ValueError("the path names the service")
    logins = {"sentinel_username": "username", "sentinel_password": "password"}
    guard = {name: query.pop(option) for option, name in logins.items() if option in query}
    options = _options(f"{base}://{login}{_netloc(hosts[0])}/{db or 0}{_tail(query)}")
    tls = {"ssl": True} if base == "rediss" else {}
    settings = {**_settings(timeout), **options}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        hosts, sentinel_kwargs={**_settings(timeout), "socket_timeout": timeout, **tls, **guard}, **tls
    )
    client = sentinel.master_for(unquote(service), **settings)
    make = own(client.connection_pool.make_connection, timeout)
    closers = [client.aclose, *(each.aclose for each in sentinel.sentinels)]
    return PoolConnections(make, max_connections, closers)


def _options(url: str) -> dict[str, Any]:
    """Returns what an URL says about each connection, but for the address."""
    address = ("host", "port", "connection_class")
    return {name: value for name, value in parse_url(url).items() if name not in address}


def _parts(rest: str, port: int) -> tuple[list[tuple[str, int]], str, str, dict[str, str]]:
    """Returns hosts with ports, the login with its `@`, the path, the query."""
    parts = urlsplit(f"//{rest}")
    login, at, places = parts.netloc.rpartition("@")
    hosts = []
    for place in places.split(","):
        one = urlsplit(f"//{place}")
        hosts.append((one.hostname or "localhost", one.port or port))
    return hosts, login + at, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))


def _netloc(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _tail(query: dict[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""
