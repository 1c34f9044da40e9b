"""`tiered-sessions migrate` on google-adk's V0 layout, and taking away again what was added."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from ..errors import ConfigurationError
from ..store.migrations.adopt import Progress
from ..store.migrations.connect import database
from ..store.migrations.remove import drop_v0, plan_drop_v0, plan_removal, remove
from ..store.migrations.v0_copy import Verified
from ..store.migrations.v0_events import Reading
from ..store.migrations.v0_upgrade import Options, Survey, survey, upgrade


def options(timezone: str | None, unknown_as_text: bool, force: bool) -> Options:
    """Reads the options of an upgrade.

    Raises:
        ConfigurationError: The time zone is not known.
    """
    return Options(Reading(zone=_zone(timezone), unknown_as_text=unknown_as_text), force=force)


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigurationError(
            f"--timezone {name!r} is not known; say for example Europe/Berlin"
        ) from error


async def look_for_v0(url: str) -> Survey | None:
    """Surveys a V0 database; None where there is none."""
    async with database(url) as engine:
        return await survey(engine)


async def upgrade_v0(url: str, to: str | None, how: Options, progress: Progress) -> list[Verified]:
    """Upgrades in place, or into another database."""
    async with database(url) as engine:
        if to is None:
            return await upgrade(engine, how, progress=progress)
        async with database(to) as target:
            return await upgrade(engine, how, target=target, progress=progress)


def survey_lines(found: Survey, how: Options) -> list[str]:
    """Says what an upgrade would find."""
    lines = ["google-adk's V0 layout: " + ", ".join(f"{count} {name}" for name, count in found.rows.items())]
    zone = how.reading.zone or f"{datetime.now().astimezone().tzname()}, as on this machine"
    lines.append(f"their local times are read as {zone}; --timezone says otherwise")
    if found.orphans:
        lines.append(f"{found.orphans} events belong to deleted sessions and would be left behind")
    lines += [
        f"{count} events name the unknown class {name}" for name, count in sorted(found.unknown.items())
    ]
    if found.damaged:
        lines.append(f"{found.damaged} events hold a damaged pickle")
    return lines


def verified_lines(verified: list[dict[str, Any]]) -> list[str]:
    """Says what was counted after an upgrade."""
    return [
        f"{row['table']}: {row['old']} before, {row['new']} after"
        + (f", {row['orphans']} of deleted sessions left behind" if row["orphans"] else "")
        for row in verified
    ]


def survey_report(found: Survey) -> dict[str, Any]:
    """The same for a program."""
    return asdict(found)


async def taken_away(url: str, *, kept_tables: bool, dry_run: bool, force: bool = False) -> list[str]:
    """Removes what the migrations have added, or the old tables of an upgrade; returns the statements."""
    async with database(url) as engine:
        if kept_tables:
            return await (plan_drop_v0(engine) if dry_run else drop_v0(engine))
        return await (plan_removal(engine) if dry_run else remove(engine, force=force))


def ask(statements: list[str], question: str) -> None:
    """Shows the statements and asks; ends the command unless the answer is yes."""
    for statement in statements:
        typer.echo(statement)
    typer.confirm(question, abort=True)
