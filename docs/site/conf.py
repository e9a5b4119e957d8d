"""Settings of Sphinx; `build.py` beside it writes what Sphinx reads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the extensions beside this file

import fedjax_post

project = "fedjax_post"
author = "the authors of fedjax_post"
version = release = fedjax_post.__version__
root_doc = "index"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
]
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**", "catalogue/**", "reference/**"]

myst_heading_anchors = 4  # as GitHub makes them, so that links work in both places

autodoc_typehints = "none"  # docstrings state shapes, dtypes and units
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False
napoleon_use_param = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
