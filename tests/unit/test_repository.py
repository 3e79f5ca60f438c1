"""What the repository says of itself is true: packages, floors, sizes, targets, links."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = sorted((ROOT / "worker").rglob("*.py"))
MODULES = [*CORE, *sorted((ROOT / "contrib").rglob("*.py"))]
MAX_LINES = 400


def dotted(path: Path) -> str:
    """Return the name under which users import the module or package at ``path``."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"worker.{name}" if name.startswith("contrib") else name


def floors() -> Iterator[str]:
    """Yield the full name of every module that the layers contract puts on a floor."""
    for contract in PROJECT["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            (container,) = contract["containers"]
            for layer in contract["layers"]:
                for name in re.findall(r"[\w.]+", layer):
                    yield f"{container}.{name}"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_is_built() -> None:
    folders = {dotted(module.parent) for module in MODULES}

    assert sorted(folders) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_an_extra_brings_what_its_package_imports() -> None:
    """Since 2.1 SQLAlchemy brings greenlet by an extra of its own, and for asyncio alone."""
    imported = (ROOT / "contrib" / "sqlalchemy" / "inbox.py").read_text()
    (wanted,) = PROJECT["project"]["optional-dependencies"]["sqlalchemy"]

    assert "from sqlalchemy.ext.asyncio import" in imported
    assert wanted.startswith("sqlalchemy[asyncio]")


def test_every_package_has_an_init() -> None:
    folders = {module.parent for module in MODULES}

    assert [relative(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_says_in_its_first_line_why_it_exists(module: Path) -> None:
    docstring = ast.get_docstring(ast.parse(module.read_text()))

    assert docstring, f"{relative(module)} starts without a docstring"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_has_one_reason_to_exist_so_it_is_short(module: Path) -> None:
    lines = len(module.read_text().splitlines())

    assert lines <= MAX_LINES, f"{relative(module)}: look for the second thing hiding in it"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_has_no_banners(module: Path) -> None:
    assert re.findall(r"^ *#.*[-=]{8,}.*$", module.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("module", [m for m in CORE if m.name != "__init__.py"], ids=relative)
def test_a_module_stands_on_a_floor(module: Path) -> None:
    name = dotted(module)

    assert any(name == floor or name.startswith(f"{floor}.") for floor in floors()), (
        f"put {name} into the layers of [tool.importlinter] in pyproject.toml"
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/reliability.md"])
def test_a_page_that_names_the_tests_says_where_the_long_ones_are(page: str) -> None:
    text = (ROOT / page).read_text()

    assert "`make test`" in text
    assert "`make chaos`" in text


def test_the_readme_names_every_page_and_every_example() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    examples = {file.parent.name for file in (ROOT / "examples").glob("*/README.md")}

    assert [page for page in pages if page not in text] == []
    listed = text.partition("[examples/](examples) holds")[2].partition("\n")[0]
    assert [name for name in examples if name.split("_")[-1] not in listed] == []


def named_in_the_map() -> set[str]:
    """Return the modules, and folders with a / at the end, that ARCHITECTURE.md's map names."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rows = page.partition("## The map")[2].partition("\n## ")[0]
    return set(re.findall(r"`([\w/]+(?:\.py|/))`", rows))


@pytest.mark.parametrize("module", [m for m in CORE if m.name != "__init__.py"], ids=relative)
def test_a_module_is_on_the_map_or_in_a_folder_that_is(module: Path) -> None:
    name = module.relative_to(ROOT / "worker")
    folders = {f"{folder}/" for folder in name.parents}

    assert {str(name), *folders} & named_in_the_map(), f"name {name} in ARCHITECTURE.md's map"


def test_the_map_names_nothing_that_is_not_there() -> None:
    places = [ROOT / "worker", ROOT]
    missing = [
        name for name in named_in_the_map() if not any((place / name).exists() for place in places)
    ]

    assert missing == []


@pytest.mark.parametrize("folder", ["supervisor", "sharding"])
def test_a_folder_of_many_parts_is_mapped_file_by_file(folder: str) -> None:
    files = {str(m.relative_to(ROOT / "worker")) for m in CORE if m.parent.name == folder}

    assert files - named_in_the_map() <= {f"{folder}/__init__.py"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"(?:`|^ *\$? *)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert named, f"{page} names no make target"
    assert named <= targets


def pages() -> list[Path]:
    folders = (ROOT, ROOT / "docs", *(ROOT / "examples").glob("*/"))
    return sorted(page for folder in folders for page in folder.glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Return what a link may name in a page: its headings, in the form that GitHub gives them."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=relative)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
