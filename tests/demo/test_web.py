"""The mixed web of the demo's base: shares as its tables say, ways that do what they are called, nothing forbidden."""

import pytest
import torch
from torch import Tensor

from spinlite.demo import variety, web
from spinlite.demo.materials import Concept


def concept(name: str) -> Concept:
    return Concept((name,), name, (), "Objects", "tool", True)


def disc(count: int, colour: tuple[int, int, int] = (200, 80, 40)) -> Tensor:
    """A disc of one colour in the middle of transparency: (count, 4, 64, 64) uint8."""
    at = torch.linspace(-1, 1, 64)
    inside = (at[None, :] ** 2 + at[:, None] ** 2 < 0.5).float()
    rgba = torch.cat([torch.tensor(colour).view(3, 1, 1) * inside, 255 * inside[None]])
    return rgba.to(torch.uint8).expand(count, 4, 64, 64).clone()


def plans(count: int, **ways: str) -> list[dict[str, str]]:
    return [dict.fromkeys(web.STAGES, "") | ways] * count


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_what_fluent_draws_of_the_unseen_is_never_in_the_gallery():
    concepts = [concept("seen"), concept("unseen"), concept("rare")]
    picture = disc(1)[0]
    fluent = {("seen",): picture, ("unseen",): picture}
    hands = {"Fluent 3D": fluent, "Noto": {c.code: picture for c in concepts}, "Twemoji": {}}
    drawn = web.gallery(concepts, hands, {("unseen",)})
    assert {(one.concept, one.hand) for one in drawn} == {(0, "Fluent 3D"), (0, "Noto"), (1, "Noto"), (2, "Noto")}


def test_hands_are_chosen_by_their_shares_among_those_that_draw_a_thing():
    picture = disc(1)[0]
    both = list(web.HANDS), ["Noto", "Twemoji"]
    drawn = [web.Drawn(i, hand, picture) for i, hands in enumerate(both) for hand in hands]
    chooser = web.HandChooser(drawn)
    got = [drawn[i].hand for i in chooser.choose([0] * 4000, chance()).tolist()]
    assert all(got.count(hand) / 4000 == pytest.approx(share, abs=0.03) for hand, share in web.HANDS.items())
    got = [drawn[i].hand for i in chooser.choose([1] * 4000, chance()).tolist()]
    noto = web.HANDS["Noto"] / (web.HANDS["Noto"] + web.HANDS["Twemoji"])
    assert got.count("Noto") / 4000 == pytest.approx(noto, abs=0.03) and "Fluent 3D" not in got


def test_shares_are_those_of_the_tables():
    made = web.plan(8000, chance())
    clean = [one for one in made if not any(one.values())]
    assert len(clean) / 8000 == pytest.approx(web.CLEAN, abs=0.02)
    for stage, rows in web.STAGES.items():
        for name, (share, _) in rows.items():
            met = sum(one[stage] == name for one in made) / (8000 - len(clean))
            assert met == pytest.approx(share, abs=0.02) if stage != "ground" else share <= met + 0.02


def test_clean_pictures_stand_on_white_as_they_were_drawn():
    shown = web.shown(disc(16), plans(16), chance()).float()
    assert (shown[:, :, :4, :4] == 255).all()
    assert (shown[:, :, 32, 32] - torch.tensor([200.0, 80, 40])).abs().max() <= 2


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage, rows in web.STAGES.items() for name in rows])
def test_every_way_spoils_a_picture_and_keeps_its_shape(stage: str, name: str):
    clean = web.shown(disc(8), plans(8), chance()).float()
    shown = web.shown(disc(8), plans(8, **{stage: name}), chance()).float()
    assert shown.shape == (8, 3, 64, 64) and ((shown - clean).abs().mean((1, 2, 3)) > 1).sum() >= (6 if name != "turned" else 0)


def test_ways_do_what_they_are_called():
    x = disc(64).float() / 255
    rgb = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]
    assert variety.grey(rgb, chance()).std(1).max() < 1e-6
    assert variety.faded(rgb, chance()).std((1, 2, 3)).max() < 0.55 * rgb.std((1, 2, 3)).min()
    turned = variety.recoloured(rgb, chance())
    assert ((turned[:, :, 32, 32] - rgb[:, :, 32, 32]).abs().max(1).values > 0.2).all()
    assert (
        variety.pixelated(rgb, chance())[:, :, ::4, ::4]
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
        .allclose(variety.pixelated(rgb, chance()))
    )
    size = variety.small(x, chance())[:, 3].mean((1, 2)) / x[:, 3].mean((1, 2))
    assert size.min() + 0.03 > 0.45**2 and size.max() < 0.65**2 + 0.03
    edge = variety.cut(x, chance())[:, 3]
    assert torch.stack([edge[:, 0], edge[:, -1], edge[:, :, 0], edge[:, :, -1]]).amax((0, 2)).min() > 0.5
    bar = torch.zeros(64, 4, 64, 64)
    bar[:, :, 30:34, 8:56] = 1
    rows = variety.turned(bar, chance())[:, 3].amax(2) > 0.5
    assert rows.sum(1).min() >= 15  # a bar 4 px high that is turned by 20 degrees is higher
    page = torch.ones(64, 3, 64, 64)
    assert variety.coloured(page, chance()).std((2, 3)).max() == 0
    assert ((variety.graded(page, chance()) - variety.striped(page, chance())).abs().mean((1, 2, 3)) > 0.01).all()
    assert variety.blurred_much(rgb, chance()).diff(dim=-1).abs().amax() < 0.5 * rgb.diff(dim=-1).abs().amax()
    assert 0.07 < (variety.noisy(0.5 * page, chance()) - 0.5).std((1, 2, 3)).min() < 0.16


def test_the_sheet_says_what_happened_to_each_picture():
    drawn = [web.Drawn(i, hand, disc(1)[0]) for i in range(10) for hand in web.HANDS]
    pictures, told = web.contact(drawn, 20)
    assert len(pictures) == len(told) == 20 and {picture.size for picture in pictures} == {(64, 64)}
    known = {name for rows in web.STAGES.values() for name in rows} | {f"{hand}, clean" for hand in web.HANDS}
    assert all(text in known or all(part in known for part in text.split(", ")) for text in told)
