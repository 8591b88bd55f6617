"""What the fakes of a round are like: beside the real pictures, and beside fakes of twice the steps."""

import torch

from spinlite.maths.draws import gaussian
from spinlite.training.batches import Fakes
from spinlite.training.guards import Diverged
from spinlite.training.heldout import levels
from spinlite.training.motion import STILL, WEAK, motions, share
from spinlite.training.play import coarseness
from spinlite.training.session import Session

COMPARED = 64  # pictures whose latents are compared with those of their fakes
COARSE, COARSE_OF = 0.15, 8  # standard deviations that twice the steps may change fakes by, and of how many; docs/log.md


def compare_with_real(session: Session, k: int, fakes: Fakes) -> None:
    """Journal the mean and deviation of each latent channel, of fakes and of real pictures; of clips their motion too.

    If the sampler goes wrong, all its samples are too dark, too pale or of one colour. It shows here first. Raises Diverged if
    fakes stand still.
    """
    figures: dict[str, list[float]] = {}
    records, moving = session.train[:COMPARED], {}
    rows = {who: [of([r])[0] for r in records] for who, of in (("real", session.encoded.real), ("fake", fakes))}
    for who, latents in rows.items():
        figures[f"{who}_mean"], figures[f"{who}_deviation"] = levels(latents)
        if len(found := motions(latents)):
            moving[f"{who}_motion"] = found.mean().item()
    session.run.log("fakes", round=k, **figures, **moving)
    moved = share(rows["fake"], rows["real"])
    if moved is not None and session.method.fakes == "played":
        _look_at_motion(session, k, moved)


def _look_at_motion(session: Session, k: int, moved: float) -> None:
    """Warn, or raise Diverged, if fakes hardly move; `moved` is their motion as a share of the real clips'."""
    much = f"the fakes of round {k} move {100 * moved:.2g} % as much as your clips"
    if moved < STILL and session.settings.judge.stop:
        raise Diverged("motion", f"{much}: they stand still, so there is nothing to learn from but that")
    if moved < WEAK and k == 1:
        session.watch.say(
            f"{much}, so motion tells them apart. If samples move too little, add --set play.start=0.7: fakes then begin with "
            "your own clips, noised, and keep their motion"
        )


def warn_of_few_steps(session: Session) -> None:
    """Journal how much twice the steps would change a few fakes, and warn if it is much. The opponent is in its slot."""
    shape, settings = session.train[0].bucket, session.settings.play.model_copy(update={"points": 0, "start": 1.0})
    records = [record for record in session.train if record.bucket == shape][:COARSE_OF]
    noise = torch.stack([gaussian(session.encoded.real([r])[0].shape, "coarse", r.key) for r in records])
    conditioning = session.encoded.cond(records), session.encoded.cond(records, [True] * len(records))
    real = session.encoded.real(records) if settings.start < 1 else None
    with session.slots.use("opponent"):
        apart = session.fallback.run(
            "play", len(records), lambda levers: coarseness(session.family, noise, *conditioning, settings, real)
        )
    if apart is None:
        return
    session.run.log("coarse", round=1, steps=settings.steps, apart=apart)
    if apart > COARSE:
        session.watch.say(
            f"play.steps = {settings.steps} is too few: twice the steps would change the model's own pictures by {apart:.0%}. "
            f"They come out broken, and it learns from those. Use {2 * settings.steps} or more."
        )
