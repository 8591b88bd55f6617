"""Base models on the hub: does it answer, is the model there, and what of it does this computer's cache hold?"""

from collections.abc import Sequence
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
    names = _ask(repo, "model.base")
    if names is not None and not set(FIRST) & set(names):
        files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        hint = f"download {files[0]} from there and name that file in model.base" if files else "use another model"
        raise SpinliteError(f"{repo} holds no model in diffusers' layout (no {' or '.join(FIRST)})", fix=hint)
    return names


@cache
def answers(repo: str, setting: str) -> bool:
    """Whether the hub answers. Raises SpinliteError if it has no such repository as the setting names."""
    return _ask(repo, setting) is not None


def _ask(repo: str, setting: str) -> list[str] | None:
    """The files of a repository on the hub; None if the hub does not answer."""
    if is_offline_mode():
        return None
    try:
        info = HfApi().model_info(repo, timeout=SECONDS)
    except GatedRepoError:
        fix = f"accept its conditions on its page, https://huggingface.co/{repo}, and log in: hf auth login"
        raise SpinliteError(f"the hub gives {repo} only to people who accepted its conditions", fix=fix) from None
    except RepositoryNotFoundError:
        fix = f"check {setting}; for a private model, log in first: hf auth login"
        raise SpinliteError(f"there is no model {repo} on the hub, nor a folder of that name here", fix=fix) from None
    except Exception:  # of whichever library huggingface_hub uses for connections
        return None
    return [each.rfilename for each in info.siblings or []]


def cached_folder(repo: str, files: Sequence[str] = FIRST, setting: str = "model.base") -> Path:
    """The folder of a repository in this computer's cache of the hub, where it has one of these files.

    Raises SpinliteError if it is not there.
    """
    for name in files:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found).parents[name.count("/")]
    why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "no answer"
    raise SpinliteError(
        f"the hub can't be reached ({why}), and this computer has no copy of {repo}",
        fix=f"check the network, and unset HF_HUB_OFFLINE; or set {setting} to a folder or a .safetensors file",
    )
