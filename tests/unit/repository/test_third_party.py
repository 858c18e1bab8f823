"""THIRD_PARTY.md leaves nothing out that others made."""

import json
import re
import tomllib

import yaml

from tests.support.markdown import ROOT

TEXT = (ROOT / "THIRD_PARTY.md").read_text()
CODE_OF_OTHERS = ("api/web/redoc", "infra/demo", "tests/images", "tests/schemas", "tests/spreadsheets")
OURS = {"infra/demo/products.csv"}


def rows_under(heading: str) -> set[str]:
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {cell.strip("`") for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)} - {"---"}


def packages(requirements: list[object]) -> set[str]:
    return {re.split(r"[\[=<>]", text)[0].strip() for text in requirements if isinstance(text, str)}


def test_every_file_of_others_is_listed_with_its_licence() -> None:
    files = {
        str(path.relative_to(ROOT))
        for folder in CODE_OF_OTHERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not path.name.startswith("LICENSE")
    }
    rows = rows_under("In this repository") - {"file"}
    listed = {str(path.relative_to(ROOT)) for row in rows if "*" in row for path in ROOT.glob(row)}
    assert listed | {row for row in rows if "*" not in row} == files - OURS
    texts = {str(path.relative_to(ROOT)) for folder in CODE_OF_OTHERS for path in (ROOT / folder).rglob("LICENSE*")}
    assert set(re.findall(r"\]\((\w[^)]*LICENSE[^)]*)\)", TEXT)) == texts


def test_every_large_or_binary_file_is_one_of_those() -> None:
    """What is neither text of ours nor a lock comes from somewhere."""
    tracked = (path for room in ("api", "infra", "streams", "tests", "docs") for path in (ROOT / room).rglob("*"))
    foreign = {
        ".js.map",
        ".jar",
        ".whl",
        ".woff2",
        ".ttf",
        ".png",
        ".jpg",
        ".jpeg",
        ".heic",
        ".webp",
        ".min.js",
        ".min.css",
    }
    for path in tracked:
        if path.is_file() and any(path.name.endswith(ending) for ending in foreign):
            assert str(path.relative_to(ROOT)).startswith(CODE_OF_OTHERS), path


def test_every_package_that_is_named_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    npm = json.loads((ROOT / "tests" / "npm" / "package.json").read_text())["dependencies"]
    go = re.findall(r"(\S+) v\d", (ROOT / "docs" / "examples" / "go" / "go.mod").read_text())
    installed = packages(project["project"]["dependencies"])
    embedded = packages(project["project"]["optional-dependencies"]["embedded"])
    tests = packages([*project["dependency-groups"]["dev"], *project["dependency-groups"]["install"], *npm, *go])
    assert rows_under("Installed with it") - {"package"} == installed
    assert rows_under("Only for `make demo`, `make up` and the tests") - {"package"} == embedded
    assert rows_under("Only for the tests") - {"package"} == tests


def test_every_container_image_is_listed() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    used = {service["image"] for service in compose["services"].values() if not service["image"].startswith("shrink")}
    used |= set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert rows_under("Container images") - {"image"} == used
