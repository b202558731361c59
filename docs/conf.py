"""Sphinx: the site is the README, every notebook with its stored outputs, and the modules."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import crypto_ml

ROOT = Path(__file__).resolve().parent.parent
# The site's sources are laid out as the repository is, so that a link means the same in both.
SOURCE = ROOT / "docs" / "_build" / "source"
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "settings.ini"]

project = "crypto_ml"
author = "the crypto_ml contributors"
version = release = crypto_ml.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
nb_execution_mode = "off"
myst_heading_anchors = 3
# Outputs come in several forms, of which the site takes the first that it can show; headings may
# skip a level; a name that two modules offer is the same thing in both.
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "ref.python"]
autodoc_member_order = "bysource"
# Methods that scikit-learn writes into every estimator, with references into its own manual.
REQUESTS = ["fit", "partial_fit", "predict", "predict_proba", "score", "transform"]
autodoc_default_options = {"exclude-members": ",".join(f"set_{name}_request" for name in REQUESTS)}
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_title = "crypto_ml"
html_copy_source = False


def toctree(caption: str, pages: list[str]) -> str:
    """Write a hidden table of contents, which the theme shows at the side."""
    listed = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def write_sources() -> None:
    """Lay out the pages of the site below docs/_build/source."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "modules").mkdir(parents=True)
    notebooks = sorted(path for path in (ROOT / "nbs").glob("*.ipynb") if path.stem != "index")
    for path in notebooks:
        (SOURCE / "nbs").mkdir(exist_ok=True)
        shutil.copy2(path, SOURCE / "nbs")
    shutil.copytree(ROOT / "docs" / "images", SOURCE / "docs" / "images")
    for name in PAGES:
        shutil.copy2(ROOT / name, SOURCE)
    modules = [path.stem for path in sorted((ROOT / "crypto_ml").glob("[!_]*.py"))]
    for name in modules:
        # Before autodoc does it, which would load pydantic twice and confuse it.
        importlib.import_module(f"crypto_ml.{name}")
        options = ":members:\n:show-inheritance:"
        page = f"# crypto_ml.{name}\n\n```{{eval-rst}}\n.. automodule:: crypto_ml.{name}\n"
        page += "".join(f"   {option}\n" for option in options.splitlines()) + "```\n"
        (SOURCE / "modules" / f"{name}.md").write_text(page)
    index = (ROOT / "README.md").read_text()
    index += toctree("Notebooks", [f"nbs/{path.stem}" for path in notebooks])
    index += toctree("Modules", [f"modules/{name}" for name in modules])
    index += toctree("Project", ["CONTRIBUTING", "CHANGELOG"])
    (SOURCE / "index.md").write_text(index)


write_sources()
