"""The settings of a round that follow from how many pictures there are."""

import math

from spinlite.config.settings import Judge, Learn, Settings

EPOCHS = 32  # in three rounds each picture is seen about 100 times, as LoRA trainers advise; published rounds show it twice
FEWEST, MOST = 30, 2000  # updates of a round: fewer than the demo's 30 learn too little, more are nearly a night on one card
FEW = 16  # where fewer pictures are held out, each of them counts ..
MEASURED = 128  # .. and is measured more often: so many draws in all (per draw, chance is 7 times that between pictures, M)


def updates_for(learn: Learn, pictures: int) -> int:
    """The updates of a round that show each of so many pictures `learn.epochs` times (on average, if sources have weights)."""
    wanted = (learn.epochs or EPOCHS) * pictures / learn.batch
    return learn.updates or min(max(math.ceil(wanted), FEWEST), MOST)


def draws_for(judge: Judge, pictures: int) -> int:
    """The draws of each of so many held-out pictures: `judge.draws`, or more where pictures are few."""
    return max(judge.draws, math.ceil(MEASURED / max(pictures, 1))) if pictures < FEW else judge.draws


def with_pictures(settings: Settings, train: int, heldout: int) -> Settings:
    """The settings for so many pictures to learn from and held out: `learn.updates` and `judge.draws` are filled in."""
    learn = settings.learn.model_copy(update={"updates": updates_for(settings.learn, train)})
    judge = settings.judge.model_copy(update={"draws": draws_for(settings.judge, heldout)})
    return settings.model_copy(update={"learn": learn, "judge": judge})


def describe_round(learn: Learn, pictures: int, thing: str = "picture") -> str:
    """The work of a round, in words: "100 steps (updates), batch 32: each picture is seen 32 times a round on average"."""
    times = learn.length * learn.batch / max(pictures, 1)
    number = f"{times:.0f}" if times >= 9.5 else f"{times:.1f}".removesuffix(".0")
    return f"{learn.length} steps (updates), batch {learn.batch}: each {thing} is seen {number} times a round on average"


def learning_rate(settings: Learn, update: int) -> float:
    """The learning rate of an update, counted from 0 in each round: it warms up over the first 5 %, then falls to 0 (cosine).

    A round ends in a snapshot, and a snapshot that is taken at the full rate is a noisy one. Schedule-free averages its
    weights instead, so its rate does not fall.
    """
    warmup = min(1.0, (update + 1) / max(1, settings.length // 20))
    decay = 1.0 if settings.optimizer == "schedulefree" else 0.5 + 0.5 * math.cos(math.pi * update / settings.length)
    return settings.rate * warmup * decay
