"""`tiered-sessions adk`: makes ADK's own command line find the service, and says why it does not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..adk_registry import SCHEMES, Resolution, is_agent, resolve
from .adk_services import ServicesFileError, add_services

adk_app = typer.Typer(
    name="adk",
    help="Serve the sessions of `adk web`, `adk api_server` and `adk run`.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@adk_app.command("init")
def init_command(
    folder: Annotated[
        Path,
        typer.Argument(help="The agents folder of `adk web` and `adk api_server`, or `adk run`'s agent."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the `services.yaml` that makes ADK know `tiered+postgresql://` and its like.

    A file that exists keeps everything it has; one that cannot be added to safely is left alone, and what
    to add is printed. Exit status: 0 all schemes are in the file, 1 nothing could be written.
    """
    try:
        file, added = add_services(folder)
    except ServicesFileError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error), "add": error.snippet}))
        else:
            typer.echo(f"{error}\nAdd this to it:\n\n{error.snippet}", err=True, nl=False)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"file": str(file), "added": list(added)}))
        return
    typer.echo(f"{file}: {len(added)} of {len(SCHEMES)} schemes added" if added else f"{file} has them all")
    command = f"adk run {folder}" if is_agent(folder) else f"adk web {folder}"
    typer.echo(f"{command} --session_service_uri 'tiered+postgresql://...' will find it.")


@adk_app.command("check")
def check_command(
    uri: Annotated[str, typer.Argument(help="What is given to ADK as --session_service_uri.")],
    agents_dir: Annotated[
        Path, typer.Option(help="The agents folder of `adk web` and `adk api_server`, or `adk run`'s agent.")
    ] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether ADK would make a tiered service of a URI, and if not, why.

    Runs ADK's own registry over the folder's services files; connects to no database. Exit status: 0 it
    would, 1 it would not, 2 there is no google-adk or no such folder.
    """
    resolution = resolve(uri, agents_dir)
    if as_json:
        typer.echo(json.dumps(asdict(resolution)))
    else:
        _print_resolution(resolution)
    raise typer.Exit(0 if resolution.resolves else 1)


def _print_resolution(resolution: Resolution) -> None:
    verdict = "resolves to" if resolution.resolves else "does not resolve to a tiered service"
    typer.echo(f"{resolution.uri} {verdict}{f' {resolution.service}' if resolution.resolves else ''}")
    for line in (*resolution.reasons, *resolution.notes):
        typer.echo(f"- {line}")
    typer.echo(f"google-adk {resolution.adk}, folder {resolution.folder}")
