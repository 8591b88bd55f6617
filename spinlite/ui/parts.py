"""The parts that every page is made of. What users wrote becomes text, never markup."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from spinlite.data.records import printable

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
MENUS = """<script>
// Quasar wraps the options of a menu in an element that can be focused: screen readers then find a list without options
new MutationObserver(() => document.querySelectorAll("[role=listbox] .q-virtual-scroll__content[tabindex]").forEach(
  (wrap) => wrap.removeAttribute("tabindex"))).observe(document, {childList: true, subtree: true});
</script>"""
PAGES = {"/": "Runs", "/new": "New run", "/lora": "LoRA files"}


class Text(TextElement):
    """A tag with text in it."""

    def __init__(self, tag: str, text: str, classes: str = "") -> None:
        super().__init__(tag=tag, text=_plain(text))
        self.classes(classes)

    def show(self, text: str) -> None:
        """Another text, if it is another."""
        if self.text != (plain := _plain(text)):
            self.text = plain


@contextlib.contextmanager
def frame(title: str, here: str = "") -> Iterator[None]:
    """A page with its head; the block fills it. `here` is the address in the head that is marked."""
    ui.page_title(f"{printable(title)} · spinlite")
    ui.colors(primary="#0067a3")
    ui.add_css(STYLE)
    ui.add_head_html(MENUS)
    with ui.element("header").classes("top"):
        ui.link("spinlite", "/").classes("name")
        with ui.element("nav").props('aria-label="pages"'):
            for place, name in PAGES.items():
                link = ui.link(name, place)
                if place == here:
                    link.classes("here").props("aria-current=page")
    with ui.element("div").classes("page"):
        yield


def button(text: str, act: Callable[..., Any], main: bool = False) -> ui.button:
    """A button; the `main` one of a page has the accent."""
    return ui.button(text, on_click=act, color=None).props("unelevated no-caps").classes("main" if main else "plain")


def entered(field: ui.input | ui.textarea) -> str:
    """What was typed into a field."""
    return (field.value or "").strip()


def facts(found: Mapping[str, str]) -> None:
    """A line for each fact, after its heading."""
    with ui.element("dl").classes("facts"):
        for name, fact in found.items():
            Text("dt", name)
            Text("dd", fact)


@contextlib.contextmanager
def dialog(title: str) -> Iterator[ui.dialog]:
    """A dialog that opens at once, and is removed when it closes."""
    with ui.dialog().props(f'aria-label="{title}"') as opened, ui.element("div").classes("dialog"):
        Text("h2", title)
        yield opened
    opened.on("hide", opened.delete)
    opened.open()


@contextlib.contextmanager
def busy(place: ui.element, text: str) -> Iterator[None]:
    """Shows in `place`, while the block runs, that something is done."""
    place.clear()
    with place, ui.element("div").classes("line dim").props("role=status"):
        ui.spinner(size="1.2em").props("color=grey")
        Text("span", text)
    try:
        yield
    finally:
        if not place.is_deleted:
            place.clear()


def rest(took: float, least: float) -> float:
    """Seconds until something is done again that took so long, so that it takes 1 % of the time; `least` of them at least."""
    return max(least, 100 * took)


def tell(place: ui.element, problem: str) -> None:
    """Show in `place` what went wrong."""
    place.clear()
    with place:
        for line in problem.splitlines():
            Text("p", line, "bad").props("role=alert")


def _plain(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
