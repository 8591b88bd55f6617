"""The kinds of base model, and where the published models' settings lie. Nothing here imports torch."""

from pathlib import Path
from typing import Literal

Kind = Literal["sd1", "sd2", "sdxl"]

KINDS: dict[Kind, str] = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
CONFIGS = Path(__file__).parent / "configs"
FOLDERS: dict[Kind, str] = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
