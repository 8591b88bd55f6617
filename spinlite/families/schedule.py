"""What a base model predicts (eps or v) and its noise schedule, from the model's own files and from the preset."""

import difflib
import inspect
import re
from typing import Any, Literal

import diffusers
from diffusers import DDPMScheduler

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import KINDS, Checkpoint

SAMPLERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
# By class name. Left out: samplers that in diffusers 0.42.1 run into NaN or NumPy's warnings on Stable Diffusion's schedule
# (KDPM2, DEIS), and one with noise that does not depend on each sample's own seed (DPMSolverSDE).
OTHERS = ("PNDMScheduler", "DPMSolverSinglestepScheduler")
STATED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "steps_offset", "set_alpha_to_one",
          "skip_prk_steps")  # fmt: skip
Prediction = Literal["eps", "v"]


def resolve_prediction(checkpoint: Checkpoint, prediction: str, zero_snr: bool | None) -> tuple[Prediction, bool]:
    """(what the network predicts, whether the schedule ends in pure noise). Raises SpinliteError if labels contradict.

    With `prediction` "auto" (not "eps" or "v"), and with `zero_snr` None, the model's own labels decide.
    """
    chosen = _prediction(checkpoint, prediction)
    if zero_snr is False and checkpoint.zero_snr:
        raise SpinliteError(
            f"{checkpoint.name} was trained with zero terminal SNR, but the preset says model.zero_snr = false",
            fix="remove model.zero_snr",
        )
    zero = bool(checkpoint.zero_snr) if zero_snr is None else zero_snr
    if zero and chosen == "eps":
        raise SpinliteError(
            f"{checkpoint.name} would predict eps with zero terminal SNR: at the last time the sample is pure noise, and "
            "its noise says nothing about the picture",
            fix='set model.prediction = "v" if that is what it predicts, else model.zero_snr = false',
        )
    return chosen, zero


def _prediction(checkpoint: Checkpoint, chosen: str) -> Prediction:
    stated = checkpoint.predictions
    words = ", ".join(f"{value} by {where}" for where, value in stated.items())
    distinct = set(stated.values())
    if chosen in ("eps", "v"):
        if distinct and chosen not in distinct:
            raise SpinliteError(
                f"the preset says model.prediction = {chosen!r}, but {checkpoint.name} predicts {words}",
                fix='set model.prediction = "auto"; where the model is mislabelled, correct its label',
            )
        return chosen  # pyright: ignore[reportReturnType]
    if len(distinct) > 1:
        raise SpinliteError(f"{checkpoint.name} contradicts itself: {words}", fix='set model.prediction to "eps" or "v"')
    if distinct:
        return distinct.pop()
    if checkpoint.kind == "sd2" or re.search(r"v[-_ ]?pred", checkpoint.name, re.IGNORECASE):
        why = "its name speaks of v" if checkpoint.kind != "sd2" else f"{KINDS['sd2'].title} has both (v: 768 px, eps: 512 px)"
        problem = f"{checkpoint.name} does not say whether it predicts eps or v, and {why}"
        raise SpinliteError(problem, fix='set model.prediction to "eps" or "v"')
    return "eps"  # what the published SD 1.x and SDXL predict


def noise_scheduler(checkpoint: Checkpoint, prediction: Prediction, zero_snr: bool) -> DDPMScheduler:
    """The model's noise schedule; `zero_snr` rescales its betas (Lin et al. 2023, arXiv 2305.08891, alg. 1).

    Of the base's own settings only the noise counts (STATED): how it is sampled is said by [play].
    """
    kind = "epsilon" if prediction == "eps" else "v_prediction"
    settings: dict[str, Any] = {"prediction_type": kind, "rescale_betas_zero_snr": zero_snr, "clip_sample": False}
    if zero_snr:
        settings["timestep_spacing"] = "trailing"  # the last time must be sampled: same paper, section 3.3
    stated = {name: value for name, value in checkpoint.config("scheduler").items() if name in STATED}
    return DDPMScheduler.from_config(stated, **settings)  # pyright: ignore[reportReturnType]


def make_sampler(noise: DDPMScheduler, name: str, spacing: str = "trailing") -> Any:
    """A diffusers scheduler with that noise: one of SAMPLERS, or a class of OTHERS. Raises SpinliteError for any other.

    Its steps begin at the last time, where there is noise alone, as WebUIs place them: "trailing" or "linspace", or "karras"
    (Karras et al. 2022, arXiv 2206.00364, eq. 5). SD's own "leading" begins below it, with noise that the network takes for
    some of a picture (Lin et al. 2023, arXiv 2305.08891, section 3.3).
    """
    kind = SAMPLERS.get(name, name)
    if kind not in (*SAMPLERS.values(), *OTHERS):
        near = difflib.get_close_matches(name, [*SAMPLERS, *SAMPLERS.values(), *OTHERS], 1)
        known = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join((*SAMPLERS, *OTHERS))}"
        raise SpinliteError(f"play.sampler = {name!r} is no sampler for this model", fix=known)
    karras = spacing == "karras"
    placed: dict[str, Any] = {"timestep_spacing": "linspace" if karras else spacing}
    try:
        made = getattr(diffusers, kind)
        takes = inspect.signature(made.__init__).parameters
        if karras and "use_karras_sigmas" not in takes:
            raise SpinliteError(f"sampler {name!r} has no Karras schedule", fix='set play.spacing = "trailing"')
        if noise.config["rescale_betas_zero_snr"] and "rescale_betas_zero_snr" not in takes:
            problem = f"sampler {name!r} can't sample a model whose noise ends in zero SNR"
            raise SpinliteError(problem, fix='set play.sampler = "dpm++"')
        return made.from_config(noise.config, **placed, **{"use_karras_sigmas": True} if karras else {})
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpinliteError(f"play.sampler = {name!r} can't be used: {reason}", fix='set play.sampler = "dpm++"') from None
