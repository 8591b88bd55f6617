"""Which pairs are still to be asked about."""

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("nicegui")

from spinlite.config.prompts import Prompt
from spinlite.runs.votes import undo, vote
from spinlite.training.cells import write_cells
from spinlite.ui.vote_page import pairs_left


def test_every_pair_is_asked_once_also_those_of_one_caption(tmp_path: Path):
    prompts = [Prompt(text="a cat"), Prompt(text="a cat"), Prompt(text="a cat", seed=1), Prompt(text="a cat", seed=2)]
    for k in (0, 1):
        drawn = [(prompt, "", Image.new("RGB", (8, 8), (i, 9 * k, 0))) for i, prompt in enumerate(prompts)]
        write_cells(tmp_path / "samples" / f"round-{k}", "heldout", drawn)
    asked = []
    while left := pairs_left(tmp_path, 1):
        asked.append(left[0].picture)
        vote(tmp_path, left[0].caption, 1, "skip" if len(asked) == 2 else "round", left[0].start, left[0].picture, left[0].seed)
    assert len(asked) == len({*asked}) == 4
    undo(tmp_path)
    assert [pair.picture for pair in pairs_left(tmp_path, 1)] == asked[-1:]
