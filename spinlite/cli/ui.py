"""The command that serves the page. Nothing here imports the page's library before the command needs it."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from spinlite.cli.options import Runs
from spinlite.errors import SpinliteError


def ui(
    runs: Runs = Path("runs"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port of the page; default: the first free one")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="print the address alone")] = False,
) -> None:
    """Open a page in your browser. Shows runs as they go on, starts new ones, and looks at LoRA files. This computer only."""
    if importlib.util.find_spec("nicegui") is None:
        raise SpinliteError("the page needs the package nicegui", fix="type: pip install nicegui")
    from spinlite.cli.console import Console
    from spinlite.plan.plan import cache_folder
    from spinlite.ui.guard import HOST, token_in
    from spinlite.ui.server import free_port, serve

    port, token = free_port(port), token_in(cache_folder().parent)
    Console().say(f"http://{HOST}:{port}/?token={token}\nCtrl-C ends the page; runs go on.")
    serve(runs, port, token, show=not no_browser)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(ui)
