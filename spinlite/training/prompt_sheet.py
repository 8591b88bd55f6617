"""The user's own prompts, drawn at the start and after every round: cells at the model's own size, and a sheet."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from spinlite.config.prompts import Prompt
from spinlite.errors import SpinliteError
from spinlite.memory import processes
from spinlite.training.animation import strip
from spinlite.training.cells import read_cells, write_cells
from spinlite.training.decode import decode_latents
from spinlite.training.panels import write_panels
from spinlite.training.parameters import parameters
from spinlite.training.prompts import Asked, draw_prompt, play_of
from spinlite.training.session import Session


def draw_prompts(session: Session, k: int) -> None:
    """Draw them after round k, by the policy; or at the start (k = 0), if they are not there yet.

    They are for looking at alone: if memory does not suffice, the run does without.
    """
    texts = [tell(session, k, each.prompt) for each in session.asked]
    known = processes.from_lead(lambda: [cell.parameters for cell in read_cells(session.run.cells_path(k), "prompt")])
    if not texts or (not k and texts == known):
        return
    try:
        latents = _draw(session, k)
        made = session.fallback.run("sheet", len(latents), lambda levers: decode_latents(
            session.family, latents, levers.play_batch
        ))  # fmt: skip
    except SpinliteError as error:
        session.watch.say(f"no pictures of your prompts: {error.problem}")
        return
    finally:
        session.family.free()
    if processes.leads():
        prompts = [each.prompt for each in session.asked]
        stills = list(map(strip, made))
        write_cells(session.run.cells_path(k), "prompt", list(zip(prompts, texts, stills, strict=True)))
        _write_sheet(session, k, stills)


def tell(session: Session, k: int, prompt: Prompt) -> str:
    """The parameters of a picture by round k. The LoRA has the name that `spinlite export` gives it."""
    play, model = session.settings.drawn, session.settings.model.base.replace("\\", "/").rpartition("/")[2]
    lora = f"{session.run.name}-{k}:1" if k or session.family.start else ""
    about = {"Model": model.removesuffix(".safetensors")}
    return parameters(session.family, play_of(prompt, play), prompt, about, lora)


def _draw(session: Session, k: int) -> list[Tensor]:
    """The latents of the prompts, (C, ...) each."""
    who = "policy" if k else "opponent" if session.family.start else "base"
    if who == "opponent":
        session.load_opponent(0)
    active = session.slots.merged if session.device.levers.merge else session.slots.use
    title, latents = session.title(k, "your prompts") if k else "your prompts, before round 1", []

    def draw(asked: Asked) -> Tensor:
        return session.fallback.run("play", 1, lambda levers: draw_prompt(session.family, asked, session.settings.drawn)[0])

    with session.watch.phase(title, len(session.asked)) as progress, active(who):
        for _, latent in processes.spread(session.asked, draw):
            latents.append(latent)
            progress(len(latents), len(session.asked))
    return latents


def _write_sheet(session: Session, k: int, made: Sequence[Image.Image]) -> None:
    run, prompts = session.run, [each.prompt for each in session.asked]
    label = "your LoRA" if session.family.start else "the base"
    before = {cell.prompt: cell.path for cell in read_cells(run.cells_path(0), "prompt")} if k else {}
    sides = {}
    if all(prompt in before for prompt in prompts):
        sides[label] = [_read(before[prompt]) for prompt in prompts]
    sides[f"after round {k}" if k else label] = made
    title = f"{run.name} · round {k} of {session.settings.run.rounds} · your prompts"
    write_panels(run.prompts_path(k), title, [prompt.text for prompt in prompts], sides, [])


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
