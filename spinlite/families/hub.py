"""Base models on the hub: does it answer, is the model there, and what of it does this computer's cache hold?"""

from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from spinlite.errors import SpinliteError

SECONDS = 5.0  # that the hub has to answer in; huggingface_hub itself would try for half a minute
FIRST = ("unet/config.json", "transformer/config.json")  # one of them is in every model of diffusers' layout


@cache
def list_files(repo: str) -> list[str] | None:
    """The files of a model on the hub, in diffusers' layout; None if the hub does not answer.

    Raises SpinliteError if it has no such model.
    """
    if is_offline_mode():
        return None
    try:
        info = HfApi().model_info(repo, timeout=SECONDS)
    except GatedRepoError:
        fix = f"accept its conditions on its page, https://huggingface.co/{repo}, and log in: hf auth login"
        raise SpinliteError(f"the hub gives {repo} only to people who accepted its conditions", fix=fix) from None
    except RepositoryNotFoundError:
        fix = "check model.base; for a private model, log in first: hf auth login"
        raise SpinliteError(f"there is no model {repo} on the hub, nor a folder of that name here", fix=fix) from None
    except Exception:  # of whichever library huggingface_hub uses for connections
        return None
    names = [each.rfilename for each in info.siblings or []]
    if not set(FIRST) & set(names):
        files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        hint = f"download {files[0]} from there and name that file in model.base" if files else "use another model"
        raise SpinliteError(f"{repo} holds no model in diffusers' layout (no {' or '.join(FIRST)})", fix=hint)
    return names


def cached_folder(repo: str) -> Path:
    """The folder of a model in this computer's cache of the hub. Raises SpinliteError if it is not there."""
    for first in FIRST:
        found = try_to_load_from_cache(repo, first)
        if isinstance(found, str):
            return Path(found).parents[1]
    why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "no answer"
    raise SpinliteError(
        f"the hub can't be reached ({why}), and this computer has no copy of {repo}",
        fix="check the network, and unset HF_HUB_OFFLINE; or set model.base to a folder or a .safetensors file",
    )
