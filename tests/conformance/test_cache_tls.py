"""RedisSessionCache over TLS: `rediss://` against a real server with a certificate of our own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import OwnServer, free_port, missing, start_redis
from tiered_sessions.cache.base import FillReply, Granted, Hit, Unavailable
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Content, SessionKey, Tag

_MAKE = (
    "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 "
    "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
)
KEY = SessionKey("app", "user", "session").session


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, its key beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("redis", "no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, *_MAKE.split()],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    port = free_port()
    own: OwnServer = start_redis(
        tls_port=port,
        tls_cert_file=certificate,
        tls_key_file=certificate.with_name("key.pem"),
        tls_ca_cert_file=certificate,
        tls_auth_clients="no",
    )
    yield port
    own.close()


async def test_a_trusted_certificate_carries_the_cache(tls_port: int, certificate: Path) -> None:
    cache = RedisSessionCache(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}", namespace="n")
    lease = await cache.lease(KEY, "t")
    assert isinstance(lease, Granted)
    content = Content(Tag(1, 1, 1, 1), b"{}")
    assert await cache.fill(KEY, "t", lease.granted_at, lease.stamp, content) is FillReply.STORED
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Hit)
    assert found.content == content
    await cache.close()


async def test_an_untrusted_certificate_is_unavailable(tls_port: int) -> None:
    """I7: a cache that cannot be trusted is one that does not answer."""
    cache = RedisSessionCache(f"rediss://127.0.0.1:{tls_port}/0", namespace="n")
    assert isinstance((await cache.lookup((KEY,)))[0], Unavailable)
    await cache.close()
