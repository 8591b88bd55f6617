"""From [model] settings to a family: finds out which kind of base model it is, and loads it."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.blank import BLANK, with_random_weights
from spinlite.families.clip import CHUNK, TokenCounter, build_counter, counter_of
from spinlite.families.kinds import FAMILIES, KINDS, Kind, check_family
from spinlite.families.open import open_base, open_checkpoint, others_of
from spinlite.families.picture import ClipRule, with_frames
from spinlite.families.single_file import SingleFile

if TYPE_CHECKING:
    from spinlite.families.family import Family
    from spinlite.memory.device import Device


def load_family(model: Model, device: "Device") -> "Family":
    """Load the base model, with its network on the device. Raises SpinliteError if it can't be read."""
    check_family(model.family)
    made_by = FAMILIES.get(model.family) or KINDS[open_base(model).kind].made_by
    module, _, name = made_by.partition(":")
    family: Family = getattr(importlib.import_module(f"spinlite.{module}"), name)(model, device)
    if model.init_lora:
        family.start_from(Path(model.init_lora))
    return family


def layout_of(kind: Kind) -> Any:
    """The module with `find_places` and `single_file_tensors` for whole files of this kind."""
    return importlib.import_module(f"spinlite.{KINDS[kind].layout}")


def refuse_unet_settings(name: str, model: Model) -> None:
    """Raises SpinliteError for settings that mean nothing for a flow model."""
    wrong = [
        (key, default)
        for key, default in (("prediction", "auto"), ("zero_snr", None), ("clip_skip", None))
        if getattr(model, key) != default
    ]
    if wrong:
        key, default = wrong[0]
        problem = f"model.{key} = {getattr(model, key)!r} means nothing for {name}, which is a flow model"
        raise SpinliteError(problem, fix=f"add --set model.{key}={'none' if default is None else default}")


def require_base(model: Model) -> None:
    """Raises SpinliteError at once if the base can't be reached, or is nothing to train on. Its weights are not loaded yet."""
    check_family(model.family)
    if model.family == "toy":
        return
    checkpoint = open_base(model)
    if KINDS[checkpoint.kind].is_flow:
        refuse_unet_settings(checkpoint.name, model)
    else:
        from spinlite.families.schedule import resolve_prediction

        resolve_prediction(checkpoint, model.prediction, model.zero_snr)
    checkpoint.size_and_step(model.resolution)


def size_and_step(model: Model) -> tuple[tuple[int, int], int]:
    """A base model's `Family.size` and `Family.step` in px, without loading it.

    Raises SpinliteError if it can't be read, or if it can't have that model.resolution.
    """
    check_family(model.family)
    if model.family == "toy":
        from spinlite.families.toy import Toy, clips_of
        from spinlite.families.toy_clips import SIZE

        return (SIZE if clips_of(model.base) else Toy.size), Toy.step
    return open_base(with_random_weights(model)).size_and_step(model.resolution)


def clip_rule(model: Model) -> ClipRule | None:
    """Which clips a base model takes, without loading it; None if it takes pictures alone.

    Raises SpinliteError if it can't have that many model.frames.
    """
    own = None
    if model.family == "toy":
        from spinlite.families.toy import clips_of

        own = clips_of(model.base)
    else:
        own = open_base(with_random_weights(model)).clips
    return with_frames(own, model.frames)


def note_of(model: Model) -> str:
    """`Family.note` of a base model, without loading it. Raises SpinliteError if it can't be read."""
    if model.family == "toy":
        return ""
    return KINDS[open_base(with_random_weights(model)).kind].note


def token_counter(model: Model) -> TokenCounter | None:
    """What counts the tokens of captions for a base model, without loading it; None if its captions have no limit."""
    if model.family == "toy":
        return None
    model = model.model_copy(update={"motion": None})  # which reads no captions
    base = with_random_weights(model).base.removeprefix(BLANK)
    checkpoint = open_checkpoint(f"{BLANK}{base}" if base in KINDS else base, others_of(model))
    if files := KINDS[checkpoint.kind].files:
        counter = files.counter()
        if not files.vocabulary or base in KINDS:
            return counter
        import torch

        return replace(counter, count=counter_of(checkpoint.load("tokenizer", torch.float32)).count)
    if base in KINDS or isinstance(checkpoint, SingleFile):
        counter = build_counter()
    else:
        import torch

        counter = counter_of(checkpoint.load("tokenizer", torch.float32))
    return replace(counter, limit=counter.limit * (model.max_tokens // CHUNK))
