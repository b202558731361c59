"""Render nbs/index.ipynb as README.md: `python .ci/readme.py`."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def _links_from_root(text: str) -> str:
    """Turn links that are relative to nbs/ into links that are relative to the repository."""

    def moved(match: re.Match[str]) -> str:
        return f"]({os.path.normpath(f'nbs/{match[1]}')}{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)", moved, text)


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _output_text(output: nbformat.NotebookNode) -> str:
    """Give the plain text of an output; what has none, such as a picture alone, is an error."""
    text = output.text if output.output_type == "stream" else output.data["text/plain"]
    return str(text)


def render(notebook: Path) -> str:
    """Render a notebook's cells in order: prose as it is, code and its output in fences."""
    parts = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(_links_from_root(cell.source.strip()))
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(_fenced(cell.source, "python"))
            parts += [_fenced(_output_text(output)) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(ROOT / "nbs" / "index.ipynb"))
