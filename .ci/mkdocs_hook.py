"""A hook of mkdocs: pages that lie outside docs/ become pages of the site, and links follow them.

The files stay where GitHub readers expect them. A link that leads neither to a page of the site nor
to a file of it is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "engines/README.md": "recipes.md",
    "benchmarks/README.md": "benchmark-results.md",
    "benchmarks/percentiles.md": "percentiles.md",
}
"""Page of the site by the file that it is made of."""

_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and the plots that lie outside docs/."""
    for source, page in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for plot in sorted((ROOT / "benchmarks" / "plots").glob("*.svg")):
        name = f"benchmarks/plots/{plot.name}"
        files.append(File.generated(config, name, abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page from the repository's folders to the site's."""
    at_home = {page: source for source, page in OUTSIDE.items()}
    source = at_home.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        link = posixpath.relpath(site_path(target, source), posixpath.dirname(page.file.src_uri))
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def site_path(target: str, source: str) -> str:
    """Where a file of the repository is on the site.

    Raises:
        PluginError: it is not on the site.
    """
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.startswith("benchmarks/plots/"):
        return target
    raise PluginError(f"{source} links to {target}, which is not on the site")
