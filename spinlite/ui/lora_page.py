"""Any LoRA file: what it is, which programs load it, a smaller one made of it, and two side by side."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nicegui import run, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from spinlite.progress import describe_size
from spinlite.runs.names import FORBIDDEN
from spinlite.ui import commands
from spinlite.ui.parts import Text, busy, button, entered, frame, tell

SEND = """async (event) => {
  const file = event.target.files[0];
  if (!file) return;
  const answer = await fetch("/dropped/" + encodeURIComponent(file.name), {method: "POST", body: file});
  event.target.value = "";
  emit(await answer.text());
}"""


def register(runs: Path) -> None:
    """Serve the page at /lora."""

    @ui.page("/lora")
    async def page() -> None:
        with frame("LoRA files", "/lora"):
            Text("h1", "LoRA files")
            Text(
                "p", "What a LoRA or a checkpoint is, and which programs load it. A second file is put beside the first.", "dim"
            )
            LoraFiles(runs / "cache" / "ui" / "files")


def routes(runs: Path) -> list[Route]:
    """The address that a dropped file is sent to: /dropped/NAME. It answers with the name that the file got."""

    async def dropped(request: Request) -> Response:
        name = "".join(c for c in request.path_params["name"] if c.isprintable() and c not in FORBIDDEN).strip(". ")
        path = _free(runs / "cache" / "ui" / "files" / (name or "file.safetensors"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            async for part in request.stream():
                await run.io_bound(file.write, part)
        return PlainTextResponse(path.name)

    return [Route("/dropped/{name}", dropped, methods=["POST"])]


class LoraFiles:
    """The one or two files that are shown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reports: list[tuple[Path, dict[str, Any]]] = []
        with ui.element("label").classes("drop"):
            Text("span", "Drop a .safetensors file here, or click to choose one")
            file = ui.element("input").props('type=file accept=".safetensors"')
            file.on("change", lambda event: self._dropped(event.args), js_handler=SEND)
        with ui.element("div").classes("line"):
            self._path = ui.input("or its path on this computer").props("outlined dense").classes("grow")
            button("Look", lambda: self._look(Path(entered(self._path)).expanduser()), main=True)
        self._said, self._place = ui.element("div").classes("stack"), ui.element("div").classes("stack")

    async def _dropped(self, name: str) -> None:
        await self._look(self._folder / name)

    async def _look(self, path: Path) -> None:
        with busy(self._said, "reading the file"):
            ended = await commands.run("inspect", str(path), "--json")
        if self._said.is_deleted:
            return
        if ended.code:
            return tell(self._said, ended.problem)
        self._reports = [*self._reports[-1:], (path, json.loads(ended.out))]
        self._show()

    def _show(self) -> None:
        self._place.clear()
        with self._place:
            rows, heads = [_facts(report) for _, report in self._reports], [report["file"] for _, report in self._reports]
            _table(heads, rows)
            if len(rows) > 1:
                with ui.element("div").classes("line"):
                    button("Only the last", self._only_last)
            for path, report in self._reports:
                self._show_one(path, report, len(rows) > 1)

    def _only_last(self) -> None:
        self._reports = self._reports[-1:]
        self._show()

    def _show_one(self, path: Path, report: dict[str, Any], named: bool) -> None:
        if named:
            Text("h2", report["file"])
        for note in report.get("notes", []):
            Text("p", note, "bad")
        if report.get("programs"):
            Text("h3" if named else "h2", "Programs")
            verdicts = report["programs"]
            loads, why = ({v["program"]: told(v) for v in verdicts} for told in (_loads, lambda v: v["why"]))
            _table(["loads", "why"][: 1 + any(why.values())], [loads, why], mark=False)
        if report.get("blocks"):
            Text("h3" if named else "h2", "Change, by block")
            _bars({f"{block['name']} ({block['modules']})": block["norm"] for block in report["blocks"]})
        if report.get("blocks") and report.get("rank"):
            self._show_resize(path, report)
        with ui.element("details"):
            Text("summary", "Metadata")
            words = [f"{name}: {value}" for name, value in report["metadata"].items()]
            Text("div", "\n".join(words) or "none", "log").props('tabindex=0 role=region aria-label="metadata"')

    def _show_resize(self, path: Path, report: dict[str, Any]) -> None:
        Text("h3", "Lower its rank")
        with ui.element("div").classes("line"):
            rank = ui.number("rank", value=8, min=1, max=1024, format="%d").props("outlined dense").classes("short")
            button("Write a smaller file", lambda: write())
        said = ui.element("div").classes("stack")

        async def write() -> None:
            made = _free(path.with_name(f"{path.stem}-r{int(rank.value or 8)}.safetensors"))
            with busy(said, "lowering the rank"):
                ended = await commands.run("resize", str(path), "--rank", f"{rank.value or 8:g}", "-o", str(made), "--json")
            if said.is_deleted:
                return
            if ended.code:
                return tell(said, ended.problem)
            done = json.loads(ended.out)
            file = Path(done["file"])
            with said:
                sizes = f"{describe_size(report['size'])} to {describe_size(file.stat().st_size)}"
                Text("p", f"{file}: {sizes}, {done['total']:.1%} of the change is lost")
                with ui.element("div").classes("line"):
                    button("Download", lambda: ui.download(file))


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What is worth comparing, in words."""
    facts = {"is": report["what"], "size": describe_size(report["size"]), "predicts": report["prediction"]}
    if "base" in report:
        modules = ", ".join(f"{count} of the {part}" for part, count in report["modules"].items())
        rank = f"{report['rank']}, alpha {report['alpha']}" if report["rank"] else ""
        facts |= {"for": report["base"], "layout": report["layout"], "rank": rank, "modules": modules,
                  "precision": report["precision"]}  # fmt: skip
    for part in report.get("parts", []):
        facts[part["name"]] = f"{part['tensors']} tensors, {part['parameters'] / 1e6:,.1f} M parameters, {part['precision']}"
    if "use" in report:
        facts["spinlite"] = report["use"]
    return facts | {"hash": report["hash"][:12]}


def _table(heads: list[str], columns: list[dict[str, str]], mark: bool = True) -> None:
    """A column for each of `heads`; with `mark`, rows in which they differ stand out."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    with ui.element("div").classes("wide").props("tabindex=0"), ui.element("table"):
        with ui.element("tr"):
            for head in ("", *heads):
                Text("th" if head else "td", head)
        for name in names:
            values = [column.get(name, "") for column in columns[: len(heads)]]
            with ui.element("tr") as row:
                Text("th", name)
                for value in values:
                    Text("td", value)
            if mark and len(set(values)) > 1:
                row.classes("differs")


def _bars(values: Mapping[str, float]) -> None:
    largest = max(values.values(), default=0.0) or 1.0
    with ui.element("dl").classes("facts"):
        for name, value in values.items():
            Text("dt", name)
            with ui.element("dd").classes("line"):
                with ui.element("div").classes("bar short"):
                    ui.element("div").style(f"width: {100 * value / largest:.0f}%")
                Text("span", f"{value:.3g}", "small dim")


def _loads(verdict: Mapping[str, Any]) -> str:
    right, of = verdict["right"], verdict["of"]
    return "all" if right == of else "nothing" if not right else f"{right} of {of}"


def _free(path: Path) -> Path:
    """A name that is not taken."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], numbered) if not free.exists())
