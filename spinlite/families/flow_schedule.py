"""Samplers of flow models, with their steps set as diffusers' own pipelines set them."""

import difflib
from typing import Any

import diffusers

from spinlite.errors import SpinliteError

SAMPLERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def flow_schedule(name: str, spacing: str, steps: int, shift: float, device: Any) -> Any:
    """A diffusers scheduler with `steps` steps from noise to a clean picture: s u / (1 + (s - 1) u) for even u, s the shift.

    FlowMatchEuler is given u: without it, `set_timesteps` shifts twice and spends a step where there is no noise left. The
    other two round their times to whole numbers; here they are those that the samples really have.

    Raises SpinliteError if there is no such sampler or spacing for flow models.
    """
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, 1)
        problem = f"play.sampler = {name!r} is no sampler for this model, which needs one of: {', '.join(SAMPLERS)}"
        raise SpinliteError(problem, fix=f'set play.sampler = "{near[0] if near else "euler"}"')
    if spacing != "trailing":
        fix = 'set play.spacing = "trailing"'
        raise SpinliteError(f"play.spacing = {spacing!r} is not for this model: its steps follow from its shift", fix=fix)
    made = getattr(diffusers, SAMPLERS[name])
    if name == "euler":
        scheduler = made(shift=shift)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device)
        return scheduler
    scheduler = made(use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction")
    scheduler.set_timesteps(steps, device=device)
    scheduler.timesteps = scheduler.sigmas[:-1].to(device) * scheduler.config.num_train_timesteps
    return scheduler
