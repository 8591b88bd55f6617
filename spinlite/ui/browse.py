"""Choosing a folder of this computer by clicks: a browser tells a page no paths, so the server lists them."""

import os
from collections.abc import Callable
from pathlib import Path

from nicegui import run, ui

from spinlite.data.folder import is_picture
from spinlite.ui.parts import Text, button, dialog

MOST = 500  # folders that are listed


def browse(start: str, choose: Callable[[str], object]) -> None:
    """Open a dialog at the folder `start`; `choose` gets the path that was chosen."""
    here = Path(start).expanduser().absolute() if start and start != "demo" else Path.cwd()
    while not here.is_dir() and here != here.parent:
        here = here.parent
    with dialog("Choose a folder") as opened:
        place = ui.element("div").classes("stack")

    async def show(folder: Path) -> None:
        found = await run.io_bound(look_into, folder)
        if found is None or place.is_deleted:
            return
        folders, pictures, problem = found
        place.clear()
        with place:
            Text("p", str(folder), "small")
            Text("p", problem or f"{pictures} pictures here", "bad" if problem else "dim small")
            with ui.element("div").classes("line"):
                button("Take this folder", lambda: (opened.close(), choose(str(folder))), main=True)
                button("Up", lambda: show(folder.parent)).set_enabled(folder != folder.parent)
            with ui.element("div").classes("rows folders"):
                for each in folders:
                    button(each.name, lambda each=each: show(each)).props("flat align=left")

    ui.timer(0, lambda: show(here), once=True)


def look_into(folder: Path) -> tuple[list[Path], int, str]:
    """(its folders, how many pictures it has, what is wrong with it)."""
    folders, pictures = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    folders.append(folder / entry.name)
                pictures += is_picture(Path(entry.name))
    except OSError as error:
        return [], 0, f"can't be opened: {error.strerror}"
    return sorted(folders, key=lambda path: path.name.lower())[:MOST], pictures, ""
