"""The documents of this repository as tests read them: their code blocks, links and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".venv", ".git", ".shrinkstream", "build", "node_modules"}

_FENCE = re.compile(r"^(`{3,})([^`]*)$")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$")
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?\)")
_FILE = re.compile(r"`([\w./-]+)`:$")


@dataclass(frozen=True)
class Block:
    """A fenced code block: ``info`` is what stands behind the fence, ``line`` where it begins, from 1."""

    document: Path
    line: int
    info: str
    text: str
    caption: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def needs(self) -> str:
        """What must be there to run it beside the running system, as in ```` ```sh docker ````."""
        return self.info.partition(" ")[2]

    @property
    def file(self) -> str | None:
        """The file that the line before the block says it is, as in `` `streams/x.py`: ``."""
        found = _FILE.search(self.caption)
        return found[1] if found else None

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Document:
    """A Markdown file, taken apart."""

    path: Path
    blocks: tuple[Block, ...]
    links: tuple[str, ...]
    anchors: frozenset[str]

    def of_language(self, language: str) -> list[Block]:
        return [block for block in self.blocks if block.language == language]


def documents() -> list[Path]:
    """Every Markdown file of the checkout that is ours."""
    return sorted(
        path for path in ROOT.rglob("*.md") if not NOT_OURS & set(path.relative_to(ROOT).parts) and path.is_file()
    )


def read(name: str | Path) -> Document:
    """Take apart a document, which is named from the root of the checkout."""
    path = ROOT / name
    blocks: list[Block] = []
    links: list[str] = []
    anchors: dict[str, None] = {}
    caption, fence, begun, info, text = "", "", 0, "", ""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _FENCE.match(line)
        if fence:
            if line.strip() == fence:
                blocks.append(Block(path, begun, info, text, caption))
                fence, caption = "", ""
            else:
                text += line + "\n"
        elif match:
            fence, info, begun, text = match[1], match[2].strip(), number, ""
        else:
            caption = line.strip() or caption
            if heading := _HEADING.match(line):
                anchors[_anchor(heading[1], anchors)] = None
            links += _LINK.findall(_CODE.sub("``", line))
    assert not fence, f"{path}: a code block has no end"
    return Document(path, tuple(blocks), tuple(links), frozenset(anchors))


def _anchor(heading: str, taken: dict[str, None]) -> str:
    """What GitHub makes of a heading: lower case, hyphens for blanks, no punctuation, a number where it is taken."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
    number = 1
    anchor = slug
    while anchor in taken:
        anchor = f"{slug}-{number}"
        number += 1
    return anchor
