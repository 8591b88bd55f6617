"""The notebook of docs/ runs from its first cell to its last, on the demo's model and a small folder."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from spinlite.config.presets import PACKAGE

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
PARAMETERS = """
PRESET, DATA, BASE, NAME, RUNS = "demo", "pictures", "", "mystyle", "runs"
OPTIONS = ["--rounds", "1"]
for each in ("learn.updates=2", "play.steps=2", "judge.draws=1", "judge.captions=1"):
    OPTIONS += ["--set", each]
"""


# Jupyter's own deprecations, and its event loop on Windows: not ours to fix.
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_trains_and_shows_a_sheet_and_the_lora(tmp_path: Path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in sorted((PACKAGE / "demo" / "fluent").glob("*.png"))[:16]:
        for file in (picture, picture.with_suffix(".txt")):
            (pictures / file.name).write_bytes(file.read_bytes())
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    cells["parameters"].source += PARAMETERS
    notebook.cells.remove(cells["install"])
    cells["base"].source = cells["base"].source.replace('spinlite("doctor")', "")  # it has tests of its own, and takes its time
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "mystyle.safetensors" in outputs[-1].text
    assert "Traceback" not in str(outputs)
