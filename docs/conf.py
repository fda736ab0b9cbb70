"""The site, by Sphinx: `make docs`.

Its source is the repository: pages are Markdown and stay where they are read without the site too, so a link from a
guide to a method card or to a table of measurements is one path for both, and Sphinx checks it.
The order of the pages is `navigation.toml`.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from coldpress import __version__  # noqa: E402

project = "coldpress"
author = "the authors of coldpress"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "site_extension"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "plugins/*/README.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "examples/third_party/*/README.md",
]
exclude_patterns = [".*", "core", "out", "dist", "tests", "plugins/*/src", "plugins/*/tests"]

myst_heading_anchors = 4
default_role = "literal"  # docstrings write code as Markdown does
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "coldpress"
html_extra_path = ["site"]  # index.html, which leads to the first page
html_show_sourcelink = False
html_copy_source = False
