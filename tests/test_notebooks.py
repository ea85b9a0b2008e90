"""The notebooks run: every code cell, in order, in one fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def code_of(notebook):
    """All code cells as one program, without magics."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", ["ablating_train_step.ipynb"])
def test_a_notebook_runs(name):
    notebook = ROOT / "notebooks" / name
    done = subprocess.run(
        [sys.executable, "-c", code_of(notebook)],
        env=os.environ | {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compilations: 1" in done.stdout


def test_notebooks_are_kept_with_their_output():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in cells), notebook.name
        assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
