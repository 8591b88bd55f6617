"""The user's own prompts, drawn: the same picture as a WebUI with noise from the CPU makes of the same parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spinlite.config.prompts import MOST, Prompt, read_prompts
from spinlite.config.settings import Judge, Play
from spinlite.data.encoded import caption_key
from spinlite.errors import SpinliteError
from spinlite.families.family import Cond, Family
from spinlite.memory import processes
from spinlite.runs.store import Store
from spinlite.training.play import sample


@dataclass(frozen=True)
class Asked:
    """A prompt with every part filled in, and its conditioning, (1, ...) each, on the CPU."""

    prompt: Prompt
    cond: Cond
    empty: Cond  # of the negative prompt


def prompts_of(judge: Judge) -> list[Prompt]:
    """The user's own prompts, as they are written. Raises SpinliteError for what is none, and for too many."""
    prompts = read_prompts(judge.prompts) if judge.prompts else []
    if len(prompts) > MOST:
        problem = f"judge.prompts are {len(prompts)}, and every round would draw them all"
        raise SpinliteError(problem, fix=f"leave {MOST} of them; `spinlite sample RUN --prompt @FILE` draws more")
    return list(dict.fromkeys(prompts))


def settle(prompt: Prompt, base: Family, play: Play) -> Prompt:
    """Fill in what is none: seed 0, the model's own size, steps and guidance of `play`; and make the size one of the model's.

    Sides become the nearest multiples of `Family.step`, from a quarter of the model's own side to twice as much.
    """

    def side(wanted: int | None, own: int) -> int:
        low, high = (-(-own // 4 // base.step), 2 * own // base.step)
        return min(max(round((wanted or own) / base.step), low), high) * base.step

    width, height = (side(*pair) for pair in zip((prompt.width, prompt.height), base.size, strict=True))
    rest = {"seed": prompt.seed or 0, "steps": prompt.steps or play.steps, "guidance": prompt.guidance or play.guidance}
    return prompt.model_copy(update={"width": width, "height": height, **rest})


def describe_sizes(given: Sequence[Prompt], settled: Sequence[Prompt]) -> str:
    """Which sizes were changed, in words; "" if none was."""
    pairs = [
        (f"{was.width or now.width}x{was.height or now.height}", f"{now.width}x{now.height}")
        for was, now in zip(given, settled, strict=True)
    ]
    changed = dict.fromkeys(f"{now} instead of {was}" for was, now in pairs if was != now)
    return f"the model can't draw every size of your prompts: it draws {', '.join(changed)}" if changed else ""


def ask(base: Family, prompt: Prompt) -> Asked:
    """Encode a settled prompt; both its texts in as many chunks of tokens as the longer one needs."""
    texts = [prompt.text, prompt.negative]
    conds = base.encode_captions(texts, base.count_chunks(texts))
    cond, empty = ({name: value[i : i + 1] for name, value in conds.items()} for i in (0, 1))
    return Asked(prompt, cond, empty)


def ask_all(base: Family, prompts: Sequence[Prompt], store: Store) -> list[Asked]:
    """Encode settled prompts that are not in the store of captions yet; text encoders come back for these alone."""
    texts = {prompt: [prompt.text, prompt.negative] for prompt in prompts}
    chunks = {prompt: base.count_chunks(both) for prompt, both in texts.items()}
    keys = {prompt: [caption_key(text, chunks[prompt]) for text in both] for prompt, both in texts.items()}
    missing = [prompt for prompt in texts if any(key not in store for key in keys[prompt])]
    with processes.writing(store, 2 * len(missing)):
        for prompt in missing if processes.leads() else ():
            store.add(keys[prompt], base.encode_captions(texts[prompt], chunks[prompt]))
    base.free()
    return [Asked(prompt, *(store.get([key]) for key in keys[prompt])) for prompt in prompts]


def play_of(prompt: Prompt, play: Play) -> Play:
    """The sampling of a settled prompt."""
    return play.model_copy(update={"steps": prompt.steps, "guidance": prompt.guidance, "points": 0, "start": 1.0})


def draw_prompt(base: Family, asked: Asked, play: Play) -> Tensor:
    """The latent of a prompt, (1, ...), by the LoRA that is active. A seed gives one generator: noise, then the sampler's."""
    prompt, own = asked.prompt, base.latent_shape
    assert prompt.width and prompt.height and prompt.seed is not None
    sides, wanted = own[1:][-2:], (prompt.height, prompt.width)  # the toy family has no sides
    scaled = [n * side // of for n, side, of in zip(sides, wanted, base.size[::-1], strict=False)]
    chance = torch.Generator("cpu").manual_seed(prompt.seed)
    noise = torch.randn((1, *own[: len(own) - len(scaled)], *scaled), generator=chance)
    return sample(base, noise, asked.cond, asked.empty, play_of(prompt, play), [chance])
