"""The command line: `tiered-sessions`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import TieredSessionsError
from .adk import adk_app
from .cache import cache_app
from .demo import demo_command

app = typer.Typer(
    name="tiered-sessions",
    help="Sessions of agents: durable in SQL, hot in a cache.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("demo")(demo_command)
app.add_typer(adk_app)
app.add_typer(cache_app)


@app.command(
    "migrate",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _migrate(context: typer.Context) -> None:
    """Bring a database to the newest schema, and number the rows that stock ADK wrote."""
    # Its module needs SQLAlchemy, a third of a second that nobody else should wait for.
    from .migrate import migrate_command

    migrate = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    migrate.command()(migrate_command)
    migrate(context.args, prog_name=context.command_path)


@app.command(
    "doctor",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _doctor(context: typer.Context) -> None:
    """Say what the database and the cache are like, and how old a read can be."""
    from .doctor import doctor_command

    doctor = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    doctor.command()(doctor_command)
    doctor(context.args, prog_name=context.command_path)


@app.command(
    "verify",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _verify(context: typer.Context) -> None:
    """Compare the cache with SQL, and drop what differs."""
    from .verify import verify_command

    verify = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    verify.command()(verify_command)
    verify(context.args, prog_name=context.command_path)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tiered-sessions {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Holds what every command shares."""


def main() -> None:
    """Runs the command line. An error of the package is one message and status 2, no traceback."""
    # A plain `kill` cleans up just as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except TieredSessionsError as error:
        print(f"tiered-sessions: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
