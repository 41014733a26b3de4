"""How the documentation is built: `make docs`. Its reference comes from pipelines/site."""

from kdcache import __version__
from pipelines.site.pages import fill

project = "kdcache"
version = release = __version__
copyright = "the kdcache authors, Apache-2.0"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["fieldlist"]

smartquotes = False  # would make one dash of the two before an option

html_theme = "furo"
html_title = "kdcache"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


def setup(app):
    app.connect("source-read", fill)
