"""Where commands write what they make. Nothing is ever replaced: a name that is taken gets a number (fox-2.safetensors)."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from spinlite.errors import SpinliteError

LORA = ".safetensors"


def new_file(path: Path, beside: Sequence[str] = ()) -> Path:
    """`path`, ending in .safetensors, with a number if a file of this name is there, or one with an ending of `beside`.

    Makes its folder. Raises SpinliteError if `path` is a folder, or its folder can't be made.
    """
    path = path.expanduser()
    if path.is_dir() or not path.name:
        raise SpinliteError(f"{path} is a folder", fix=f"name a file: -o {path / ('my-style' + LORA)}")
    stem = path.name.removesuffix(LORA)
    _make(path.parent)
    free = _free(stem, lambda name: not any(path.with_name(name + end).exists() for end in (LORA, *beside)))
    return path.with_name(free + LORA)


def page_file(path: Path, option: str) -> Path:
    """`path` for a page. Makes its folder. Raises SpinliteError if `path` is a folder, or its folder can't be made."""
    path = path.expanduser()
    if path.is_dir() or not path.name:
        raise SpinliteError(f"{path} is a folder", fix=f"name a file: {option} {path / 'page.html'}")
    _make(path.parent)
    return path


def new_folder(path: Path) -> Path:
    """`path`, with a number if there is such a folder with anything in it. Makes it; raises SpinliteError if that fails."""
    path = path.expanduser().absolute() if not path.name else path.expanduser()
    folder = path.with_name(_free(path.name, lambda name: _is_empty(path.with_name(name))))
    _make(folder)
    return folder


def _free(name: str, is_free: Callable[[str], bool]) -> str:
    return next(free for free in itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2))) if is_free(free))


def _is_empty(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpinliteError(f"can't make the folder {folder}: {error.strerror}", fix="name another place") from None
