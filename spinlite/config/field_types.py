"""What the tables of settings are made of: their strictness, paths, lists of texts, and names of trackers."""

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, field_validator

TRACKERS = ("tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "aim", "clearml", "swanlab", "dvclive")


class Section(BaseModel):
    """A table of a preset. It can't be changed, and takes no unknown keys and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("should have fewer digits")
        return value


def expand(text: str) -> str:
    """A path with ~ and environment variables filled in. Raises ValueError for one that can't be meant."""
    if not text.strip():
        raise ValueError("should not be empty")
    if re.search(r"[\x00-\x1f\x7f]", text):  # "D:\\training" in TOML's double quotes holds a tab
        raise ValueError("should not hold a tab, a new line or the like")
    return os.path.expanduser(os.path.expandvars(text))


PathText = Annotated[str, AfterValidator(expand)]


def _one_or_more(value: Any) -> Any:
    """A single text stands for a list of one."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("should be text, or a list of texts")
    return value


Texts = Annotated[list[str], BeforeValidator(_one_or_more)]


def _known_trackers(value: Any) -> Any:
    """Names between commas, or a list of them."""
    names = [name.strip().lower() for name in value.split(",")] if isinstance(value, str) else _one_or_more(value)
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"holds {unknown[0]!r}: the trackers are {', '.join(TRACKERS)}")
    return list(dict.fromkeys(names))


Trackers = Annotated[list[str], BeforeValidator(_known_trackers)]
