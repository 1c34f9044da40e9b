"""The `tiered+...` addresses of ADK's command line: what each means, and how ADK comes to know them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from .errors import ConfigurationError
from .urls import database_schemes, redact

if TYPE_CHECKING:
    from .adk import TieredSessionService

# ADK looks a scheme up as the standard library's parser reads it, and that knows no underscore.
SCHEMES: Final = (
    "tiered",
    *(f"tiered+{scheme}" for scheme in database_schemes() if "_" not in scheme),
)
FACTORY: Final = "tiered_sessions.adk.create_session_service"

_SPELLING: Final = (
    "tiered+postgresql://user:password@host/database?cache=redis%3A%2F%2Fhost%3A6379%2F0, or tiered:// with "
    "TIERED_SESSIONS_DB_URL and TIERED_SESSIONS_REDIS_URL in the environment"
)
_VARIABLES: Final = ("TIERED_SESSIONS_DB_URL", "DATABASE_URL")
_CACHE: Final = re.compile(r"[?&]cache=(?P<value>[^&]*)")
_SERVICES_FILES: Final = ("services.yaml", "services.yml", "services.py")
_AGENT_FILES: Final = ("agent.py", "root_agent.yaml", "__init__.py")


# --- from a URI to a service -------------------------------------------------------------------


def split_uri(uri: str) -> tuple[str | None, str | EllipsisType | None]:
    """Returns the `db_url` and the `cache` that a `tiered` URI stands for, as the service takes them.

    Raises:
        ConfigurationError: It is no such URI, or it can be read in two ways; the message has no secret.
    """
    scheme, separator, rest = uri.strip().partition("://")
    head, _, database = scheme.partition("+")
    if not separator or head.lower() != "tiered":
        raise ConfigurationError(f"{redact(uri)} is not a URI of this package; write {_SPELLING}")
    cache, rest = _take_cache(rest)
    if database:
        return f"{database}://{rest}", cache
    if rest.strip("/"):
        raise ConfigurationError(f"{redact(uri)} does not say which database it names; write {_SPELLING}")
    return None, cache


def _take_cache(rest: str) -> tuple[str | EllipsisType | None, str]:
    found = list(_CACHE.finditer(rest))
    if not found:
        return ..., rest
    if len(found) > 1:
        raise ConfigurationError("The URI names a cache twice")
    value = found[0]["value"]
    before, after = rest[: found[0].start()], rest[found[0].end() :]
    if "://" in value and "?" in value and after:
        raise ConfigurationError(
            "The cache URL in the URI has a query of its own: percent-encode it, "
            "as urllib.parse.quote(cache_url, safe='') does"
        )
    # A plus sign is no blank here (redis+cluster://), and a URL that was not encoded is left alone.
    address = value if "://" in value else unquote(value)
    if found[0][0].startswith("?"):
        after = after.replace("&", "?", 1)
    return (None if address in ("", "none") else address), before + after


def create_session_service(uri: str, **kwargs: Any) -> TieredSessionService:
    """Makes a session service from a URI, as the registry of ADK's command line calls it.

    Args:
        uri: `tiered+<database URL>?cache=<percent-encoded cache URL>`; without `cache`, the environment's
            or "memory"; `cache=none` for none. `tiered://` takes the database from the environment, too.
        **kwargs: `agents_dir` is ignored; everything else (ADK's `session_db_kwargs`) goes to
            `TieredSessionService`: its own arguments, and options of the engine.

    Raises:
        ConfigurationError: The URI cannot be used.
    """
    from .adk import TieredSessionService

    kwargs.pop("agents_dir", None)
    db_url, cache = split_uri(uri)
    if db_url is None:
        db_url = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)
        if db_url is None:
            raise ConfigurationError(f"{redact(uri)} needs one of {', '.join(_VARIABLES)} in the environment")
    if cache is not ...:
        if "cache" in kwargs:
            raise ConfigurationError("The cache is given both in the URI and as an argument")
        kwargs["cache"] = cache
    return TieredSessionService(db_url, **kwargs)


def register() -> None:
    """Makes ADK's command line and `get_fast_api_app` in this process know every `tiered` URI.

    Call it in the `services.py` of the agents folder. Safe to repeat.
    """
    from google.adk.cli.service_registry import get_service_registry

    registry = get_service_registry()
    for scheme in SCHEMES:
        registry.register_session_service(scheme, create_session_service)


# --- why a URI does or does not resolve --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolution:
    """What ADK makes of a URI.

    Attributes:
        uri: Without secrets.
        scheme: As ADK looks it up.
        folder: Where the services files were looked for.
        adk: The release of google-adk.
        resolves: Whether a tiered service comes out.
        service: The class that was made.
        reasons: Why it does not resolve; empty if it does.
        notes: Which commands find what was found.
    """

    uri: str
    scheme: str
    folder: str
    adk: str
    resolves: bool
    service: str | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


class _Warnings(logging.Handler):
    """Keeps what ADK logs where it goes on without a file that it could not load."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(redact(record.getMessage()))


def resolve(uri: str, folder: Path) -> Resolution:
    """Does what ADK does with `--session_service_uri`, and says why the outcome is what it is.

    Loads the folder's services files as ADK would, `services.py` included. Connects to nothing.

    Raises:
        ConfigurationError: google-adk is not installed, or the folder does not exist.
    """
    from importlib.metadata import version

    folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}")
    try:
        from google.adk.cli.service_registry import get_service_registry, load_services_module
    except ImportError as error:
        raise ConfigurationError(
            f"google-adk cannot be imported ({error}): pip install 'tiered-sessions[adk]'"
        ) from error
    logger = logging.getLogger("google_adk")
    warnings = _Warnings()
    logger.addHandler(warnings)
    try:
        load_services_module(str(folder))
    finally:
        logger.removeHandler(warnings)
    scheme = urlparse(uri).scheme
    reasons, service = _refusals(uri, scheme), None
    if not reasons:
        try:
            made: Any = get_service_registry().create_session_service(uri, agents_dir=str(folder))
        except Exception as error:
            reasons.append(redact(f"{type(error).__name__}: {error}"))
        else:
            if made is None:
                reasons += _absences(scheme, folder, warnings.lines)
            else:
                service = f"{type(made).__module__}.{type(made).__qualname__}"
                reasons += _not_ours(made, service)
                if hasattr(made, "close"):
                    asyncio.run(made.close())
    return Resolution(
        uri=redact(uri),
        scheme=scheme,
        folder=str(folder),
        adk=version("google-adk"),
        resolves=not reasons,
        service=service,
        reasons=tuple(reasons),
        notes=tuple(_notes(folder)),
    )


def _refusals(uri: str, scheme: str) -> list[str]:
    """Says what is wrong with the URI whatever is registered."""
    written = uri.partition(":")[0]
    if not scheme:
        underscore = "_" in written
        return [
            f"{written}:// has an underscore, which a URI scheme may not have: ADK sees no scheme at all"
            if underscore
            else f"The URI has no scheme; write {_SPELLING}"
        ]
    if scheme.partition("+")[0] != "tiered":
        spelling = f"tiered+{scheme}"
        hint = f"write {spelling}://..." if spelling in SCHEMES else f"write {_SPELLING}"
        return [f"ADK has {scheme}:// served by another service, or by none; {hint}"]
    try:
        split_uri(uri)
    except ConfigurationError as error:
        return [str(error)]
    return []


def _absences(scheme: str, folder: Path, warnings: list[str]) -> list[str]:
    """Says why nobody registered the scheme."""
    reasons = [
        f"Nothing registers {scheme}: ADK takes the URI for an SQLAlchemy URL of its own "
        "DatabaseSessionService, which reports an invalid database URL",
        *(f"ADK: {line}" for line in warnings),
    ]
    if scheme not in SCHEMES:
        import difflib

        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        reasons.append(f"{scheme} is not a known spelling" + (f"; did you mean {near[0]}?" if near else ""))
    files = [name for name in _SERVICES_FILES if (folder / name).exists()]
    if files:
        reasons.append(f"{folder} has {', '.join(files)}, without this scheme")
    else:
        reasons.append(f"{folder} has no {', '.join(_SERVICES_FILES[:-1])} or {_SERVICES_FILES[-1]}")
    services = getattr(sys.modules.get("services"), "__file__", None)
    if "services.py" in files and services is not None and Path(services).resolve().parent != folder:
        reasons.append(f"The module called services that Python imports is {services}, not the folder's")
    if scheme in SCHEMES:
        reasons.append(f"Write the file: tiered-sessions adk init {folder}")
    return reasons


def _not_ours(made: object, service: str) -> list[str]:
    from .adk import TieredSessionService

    if isinstance(made, TieredSessionService):
        return []
    return [f"The scheme is registered, for {service}"]


def is_agent(folder: Path) -> bool:
    """Tells whether the folder is one agent, and not a folder of agents."""
    return any((folder / name).exists() for name in _AGENT_FILES)


def _notes(folder: Path) -> list[str]:
    if is_agent(folder):
        return [
            f"{folder} is one agent: its services files are read by `adk run {folder}`, "
            f"and by `adk web {folder}` where the release serves a single agent"
        ]
    notes = [f"Services files of {folder} are read by `adk web {folder}` and `adk api_server {folder}`"]
    for agent in sorted(path for path in folder.iterdir() if path.is_dir() and is_agent(path)):
        if not any((agent / name).exists() for name in _SERVICES_FILES):
            notes.append(f"`adk run {agent}` looks in {agent}, which has none")
    return notes
