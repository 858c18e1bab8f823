"""No document leads nowhere."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support import markdown
from tests.support.markdown import ROOT

DOCUMENTS = markdown.documents()
INDEX = ROOT / "docs" / "README.md"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def targets(path: Path) -> list[tuple[Path, str]]:
    """The file and the anchor that each link within the repository leads to."""
    found = []
    for link in markdown.read(path).links:
        if "://" not in link and not link.startswith("mailto:"):
            file, _, anchor = unquote(link).partition("#")
            found.append(((path.parent / file).resolve() if file else path, anchor))
    return found


def test_the_documents_are_found() -> None:
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md", "docs/README.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    broken = []
    for file, anchor in targets(path):
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in markdown.read(file).anchors):
            broken.append(f"{file}#{anchor}")
    assert broken == []


def test_the_index_names_every_page() -> None:
    listed = {file for file, _ in targets(INDEX)}
    assert set((ROOT / "docs").rglob("*.md")) - {INDEX} <= listed


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# One `two`, three!\n\n[a](x.md) `[b](y.md)` [c](#one-two-three)\n\n```\n[d](z.md)\n```\n")
    read = markdown.read(document)
    assert read.links == ("x.md", "#one-two-three")
    assert read.anchors == {"one-two-three"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_prose_has_at_most_120_characters_a_line(path: Path) -> None:
    """Tables, code and links that can't be broken are exempt."""
    prose, is_code = [], False
    for line in path.read_text().splitlines():
        is_code ^= line.lstrip().startswith("```")
        if not is_code and not line.startswith("|") and "](" not in line and "<http" not in line:
            prose.append(line)
    assert [line for line in prose if len(line) > 120] == []
