"""The pictures of a run that the page shows: sheets, thumbnails, the cells of its sheets, and what was drawn on request."""

import io
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from spinlite.report.pictures import Row, read_rows
from spinlite.runs.names import JOURNAL
from spinlite.training.cells import Kind
from spinlite.training.sheet import read_current

SIDE = 160  # px of a thumbnail
FOLDERS = ("samples", "tries")  # of a run, that pictures are shown from
SHOWN = (".png", ".webp")
KINDS: dict[Kind, str] = {"heldout": "Captions of unseen pictures", "prompt": "Your prompts"}  # of cells


def sheet_of(folder: Path, k: int) -> Path:
    """The sheet of a round."""
    return folder / "samples" / f"round-{k}.png"


def playing(sheet: Path) -> Path:
    """The sheet of clips that play, if it has some; else the sheet itself."""
    clips = sheet.with_suffix(".webp")
    return clips if clips.is_file() else sheet


def last_sheet(folder: Path, rounds: int) -> Path | None:
    """The newest sheet of a run of so many finished rounds."""
    return next((path for k in range(rounds, 0, -1) if (path := sheet_of(folder, k)).is_file()), None)


def rows_of(folder: Path, rounds: int, kind: Kind) -> list[Row]:
    """The pictures of so many rounds and of the start, at the model's own size, by prompt."""
    return read_rows([folder / "samples" / f"round-{k}" for k in range(rounds + 1)], kind)


def address(folder: Path, path: Path) -> str:
    """The address of a picture in a run's folder. It changes with the file."""
    try:
        version = path.stat().st_mtime_ns
    except OSError:
        version = 0
    return f"/picture/{quote(folder.name, safe='')}/{quote(path.relative_to(folder).as_posix())}?{version}"


def routes(runs: Path) -> list[Route]:
    """The addresses of pictures: /thumbnail/RUN/ROUND and /picture/RUN/PATH."""

    def thumbnail(request: Request) -> Response:
        folder = _run(runs, request)
        image = read_current(sheet_of(folder, request.path_params["k"])) if folder else None
        if image is None:
            return Response(status_code=404)
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=85)
        return Response(file.getvalue(), media_type="image/jpeg")

    def picture(request: Request) -> Response:
        folder = _run(runs, request)
        if folder is None:
            return Response(status_code=404)
        path = (folder / request.path_params["path"]).resolve()
        inside = any(path.is_relative_to((folder / name).resolve()) for name in FOLDERS)
        if not (inside and path.suffix in SHOWN and path.is_file()):
            return Response(status_code=404)
        return FileResponse(path, media_type=f"image/{path.suffix[1:]}")

    return [Route("/thumbnail/{run}/{k:int}", thumbnail), Route("/picture/{run}/{path:path}", picture)]


def _run(runs: Path, request: Request) -> Path | None:
    """The folder of the run that is asked for; None if there is none of this name."""
    name = request.path_params["run"]
    folder = runs / name
    return folder if Path(name).name == name and (folder / JOURNAL).is_file() else None
