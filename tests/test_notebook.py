"""The notebook of docs/ runs from its first cell to its last, on the toy model and its pictures."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.toy import TOY

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
PARAMETERS = f"""
PRESET, DATA, BASE, NAME, RUNS = {str(TOY)!r}, "swatches", "", "mystyle", "runs"
OPTIONS = ["--rounds", "1", "--set", "learn.updates=2"]
"""


# Jupyter's own deprecations, and its event loop on Windows: not ours to fix.
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_trains_and_shows_a_sheet_and_the_lora(swatches: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    cells["parameters"].source += PARAMETERS
    notebook.cells.remove(cells["install"])
    cells["base"].source = cells["base"].source.replace('spinlite("doctor")', "")  # it has tests of its own, and takes its time
    place = {"metadata": {"path": swatches.parent}}
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place)
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "mystyle" in outputs[-1].text and ".safetensors" in outputs[-1].text
    assert "Traceback" not in str(outputs)
