"""The command that looks settings up. Nothing here imports torch before it is needed."""

from typing import Annotated

import typer

from spinlite.errors import SpinliteError


def settings(
    words: Annotated[list[str] | None, typer.Argument(help="words to look for, also other trainers' names; none: all")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the page docs/settings.md")] = False,
) -> None:
    """List every setting. With its type, range, default and meaning; words narrow the list down."""
    from rich.text import Text

    from spinlite.cli.console import Console
    from spinlite.config import reference

    if markdown:
        typer.echo(reference.markdown(), nl=False)
        return
    found = reference.find(words or [])
    if not found:
        raise SpinliteError(f"no setting has {' '.join(words or [])!r}", fix="type fewer words, or `spinlite settings` for all")
    console = Console()
    for entry in found:
        name = f"{entry.place} = {entry.default}"
        whose = f"  ({entry.method})" if entry.method else ""
        option = f"  or {entry.option}" if entry.option else ""
        console.screen.print(Text.assemble((name, "bold"), option, whose))
        console.say(f"    {entry.text}")
        console.screen.print(Text(f"    takes {entry.takes}", style="dim"))
    console.say(f"\nTo change one, type --set {found[0].place}=VALUE, or write it into a preset.")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(settings)
