"""The site: ``nox -s docs`` builds it, warnings are errors."""

import re

import sharedmask

project = "sharedmask"
author = "the sharedmask developers"
release = sharedmask.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "sg_execution_times.rst"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_heading_anchors = 3

templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections have the types
numpydoc_show_class_members = False  # each has a description of its own
nitpicky = True
nitpick_ignore_regex = [(".*", r"(nilearn|numpy|pandas|sklearn)\..*")]  # of other sites

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_\d",
    "ignore_pattern": r"conf|brain",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1_000_000,
    "reset_modules": (),
    "remove_config_comments": True,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "sharedmask"
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": []}
html_show_sourcelink = False


def of_nilearn(app, what, name, obj, options, lines):
    """Maskers have nilearn's own texts, whose roles and directives are those of its site."""
    if "Masker" not in name:
        return
    text = "\n".join(lines)
    text = re.sub(r":(?:term|ref|class|func|meth|obj|sklearn):`~?([^`<]+?)(?:\s*<[^`]*>)?`", r"``\1``", text)
    text = re.sub(r"\.\. nilearn_(version\w+|deprecated):: ", r".. \1:: nilearn ", text)
    lines[:] = text.split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", of_nilearn, priority=400)  # before numpydoc
