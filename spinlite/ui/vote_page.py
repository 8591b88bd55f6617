"""Choosing between two pictures of the same caption, by the base and by a round, without knowing which is which."""

import base64
import random
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from nicegui import run, ui
from nicegui.events import KeyEventArguments

from spinlite.errors import SpinliteError
from spinlite.report.pictures import Pair, pairs
from spinlite.runs.names import check_name
from spinlite.runs.votes import METHODS, read_votes, standing, undo, vote, write_preset
from spinlite.ui import commands
from spinlite.ui.look import Look, look
from spinlite.ui.parts import Text, button, frame, tell
from spinlite.ui.pictures import KINDS, rows_of

ENOUGH = 12  # pairs: with fewer, too few are held out to judge by


def register(runs: Path) -> None:
    """Serve the page at /choose/NAME."""

    @ui.page("/choose/{name}")
    async def page(name: str) -> None:
        check_name(name)
        with frame(f"choose · {name}"):
            place = ui.element("div").classes("stack")

        async def show() -> None:
            found = await run.io_bound(look, runs / name)
            with place:
                Choice(runs / name, found or Look(""))

        ui.timer(0, show, once=True)


def pairs_left(folder: Path, k: int) -> list[Pair]:
    """The pairs of a round that nobody chose from yet, shuffled, the same way every time."""
    chosen = Counter((vote.caption, vote.seed) for vote in read_votes(folder) if vote.round == k)
    found = pairs([row for kind in KINDS for row in rows_of(folder, k, kind)], k)
    random.Random(f"{folder.name} {k}").shuffle(found)
    left = []
    for pair in found:
        if chosen[pair.caption, pair.seed]:  # pictures of one caption are asked about in this order
            chosen[pair.caption, pair.seed] -= 1
        else:
            left.append(pair)
    return left


class Choice:
    """The pair that is asked about, and what was chosen so far."""

    def __init__(self, folder: Path, found: Look) -> None:
        self._folder, self._found, self._round = folder, found, found.done
        self._pair: Pair | None = None
        self._swapped = False  # whether the round's picture is on the left
        Text("h1", "Which do you like better?")
        with ui.element("p"):
            ui.link(folder.name, f"/run/{quote(folder.name, safe='')}")
        if found.done > 1:
            rounds = {k: f"round {k}, beside the base" for k in range(found.done, 0, -1)}
            chosen = ui.select(rounds, value=self._round, label="round").props("outlined")
            chosen.on_value_change(lambda e: self._choose_round(e.value))
        self._place = ui.element("div").classes("stack")
        ui.keyboard(on_key=self._key)
        self._next()

    def _choose_round(self, k: int) -> None:
        self._round = k
        self._next()

    def _next(self) -> None:
        """Show the next pair; at the end, how it stands."""
        left = pairs_left(self._folder, self._round)
        self._pair, self._swapped = (left[0] if left else None), random.random() < 0.5
        self._place.clear()
        with self._place:
            if self._pair:
                self._show(self._pair, len(left))
            else:
                self._show_end()
            with ui.element("div").classes("line"):
                if self._pair:
                    button("Skip", lambda: self._vote("skip"))
                if read_votes(self._folder):
                    button("Undo", self._undo)

    def _show(self, pair: Pair, left: int) -> None:
        Text("h2", pair.caption)
        order = [("round", pair.picture), ("base", pair.start)]
        with ui.element("div").classes("two"):
            for number, (who, path) in enumerate(order if self._swapped else order[::-1], 1):
                with ui.element("div").classes("stack"):
                    source = base64.b64encode(path.read_bytes()).decode()  # not its address, which would tell
                    ui.element("img").props(f'src="data:image/png;base64,{source}" alt="picture {number}"')
                    button("This one", lambda who=who: self._vote(who), main=True)
        Text("p", f"{left} left. The arrow keys choose too, and S skips.", "dim small")

    def _show_end(self) -> None:
        words = standing(read_votes(self._folder)).values()
        if not words:
            Text("p", "There are no pairs of pictures: this round draws what the base draws, or an older version made the run.")
        for each in words:
            Text("p", each[0].upper() + each[1:])
        pairs = sum(bool(vote.pair) for vote in read_votes(self._folder))
        if not pairs:
            return
        Text("h2", "Learn from it")
        few = f" {pairs} pairs are few: {ENOUGH} or more are better." if pairs < ENOUGH else ""
        Text("p", f"A new run learns from your {pairs} pairs, from the best round on.{few}", "dim")
        with ui.element("div").classes("line"):
            words = {"dpo": "DPO: by how much more you liked one", "kto": "KTO: a few odd choices do no harm"}
            self._method = ui.select({name: words[name] for name in METHODS}, value="dpo", label="method").props("outlined")
            button("Learn from my choices", self._learn, main=True).set_enabled(not self._found.running)
        self._said = ui.element("div").classes("stack")
        if self._found.running:
            Text("p", "It would share the card with the run: wait until that has ended.", "dim small")

    def _vote(self, who: str) -> None:
        if self._pair:
            pair = self._pair
            vote(self._folder, pair.caption, self._round, who, pair.start, pair.picture, pair.seed)
            self._next()

    def _undo(self) -> None:
        if taken := undo(self._folder):
            self._round = taken.round
        self._next()

    def _learn(self) -> None:
        name = commands.free_name(self._folder.parent, f"{self._folder.name}-choices")
        try:
            commands.start_training([str(write_preset(self._folder, self._method.value))], name, self._folder.parent)
        except (SpinliteError, OSError) as error:
            tell(self._said, str(error))
        else:
            ui.navigate.to(f"/run/{quote(name, safe='')}")

    def _key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or not self._pair:
            return
        left, right = ("round", "base") if self._swapped else ("base", "round")
        if event.key.arrow_left or event.key.arrow_right:
            self._vote(left if event.key.arrow_left else right)
        elif event.key == "s":
            self._vote("skip")
