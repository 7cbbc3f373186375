"""The documentation is short where it must be, its links lead somewhere, and its Python works."""

import ast
import re
from pathlib import Path

import pytest

import sdlab

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "assets" / "toybox" / "README.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


def test_the_readme_is_short_and_has_the_line_that_ci_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body = text.split("\n---\n", 1)[1]  # without the settings of a Space, which nobody reads
    assert len(body.encode()) <= 7000
    assert re.search(r"^\.venv/bin/python -m pytest", text, re.MULTILINE)


def test_python_blocks_compile_and_import_what_there_is():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            tree = ast.parse(block)
            imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
            exec(compile(ast.Module(imports, []), page.name, "exec"), {})


def test_the_changelog_has_the_present_version():
    assert f"## [{sdlab.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
