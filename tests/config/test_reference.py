"""Settings as they are looked up: none without a text, the page is the code's, and a preset written out is the preset."""

import dataclasses
from pathlib import Path

import pytest

from spinlite.cli.preset_page import preset_page
from spinlite.config.fields import every_setting
from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.reference import entries, find, markdown
from spinlite.methods.registry import METHODS
from tests.toy import TOY

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.mark.parametrize("entry", [*entries()], ids=lambda entry: f"{entry.place} {entry.method}".strip())
def test_a_setting_says_what_it_does_and_takes(entry):
    assert len(entry.text) > 5 and entry.takes and entry.default


def test_every_setting_is_listed():
    places = {entry.place for entry in entries()}
    assert {place for place, _ in every_setting()} <= places
    of_methods = {(name, f"method.{f.name}") for name, method in METHODS.items() for f in dataclasses.fields(method)}
    assert {(entry.method, entry.place) for entry in entries() if entry.method} == of_methods


def test_the_page_is_what_the_command_writes():
    """If not: spinlite settings --markdown > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


FOUND = {
    "network_dim": "model.rank", "--network-dim": "model.rank", "min_snr_gamma": "draw.weight", "caption dropout":
    "learn.caption_dropout", "leash seppo": "", "sppo": "", "CFG": "play.guidance", "--lr": "learn.lr", "VRAM": "memory.vram",
    "learn.batch": "learn.batch", "guidance low": "play.guidance_low", "num_repeats": "data.weight",
}  # fmt: skip


@pytest.mark.parametrize("words", FOUND)
def test_settings_are_found_by_words_also_those_of_other_trainers(words: str):
    found = [entry.place for entry in find(words.split())]
    assert FOUND[words] in found if FOUND[words] else not found


@pytest.mark.parametrize("name", [*shipped_presets(), TOY], ids=lambda name: Path(name).stem)
def test_a_preset_written_out_is_the_same_preset_with_its_comments(name: str, tmp_path: Path):
    page = preset_page(name)
    (tmp_path / "shown.toml").write_text(page, encoding="utf-8")
    assert load_settings(str(tmp_path / "shown.toml")) == load_settings(name)
    for place, _ in every_setting():
        assert place.startswith(("method.", "data.sources")) or f"{place.partition('.')[2]} = " in page
    own = Path(shipped_presets().get(name, name)).read_text(encoding="utf-8")
    above_keys = own.partition("\n[")[2]
    assert all(line in page for line in above_keys.splitlines() if line.startswith("#") and "SPIN-Diffusion" not in line)


def test_sources_and_their_comments_are_written_out_too(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[data]\n# Mine.\nflip = true\n\n[[data.sources]]\nfolder = "a"\n[[data.sources]]\nfolder = "b"\nweight = 2.0\n'
    )
    shown = tmp_path / "shown.toml"
    shown.write_text(page := preset_page(str(path)), encoding="utf-8")
    assert load_settings(str(shown)) == load_settings(str(path)) and "# Mine.\nflip = true" in page
