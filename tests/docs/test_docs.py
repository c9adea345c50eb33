"""The README and the pages of docs/ do what they say: the blocks of each run in order, in an empty folder.

Python blocks run as they are. In `bash` blocks the lines that begin with `tensordb` run; the others are for the reader.
A block under the comment `<!-- not run: why -->` is only compiled.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("frameworks/*.md"))]
FENCE = re.compile(r"^```(\w*)\s*$")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> Iterator[tuple[str, int, list[str], bool]]:
    """Language, number of the first line, lines, and whether it is to run."""
    lines = page.read_text().splitlines()
    language, start, run = None, 0, True
    for number, line in enumerate(lines):
        found = FENCE.match(line)
        if found and language is None:
            language, start = found[1], number + 1
            run = not (number and lines[number - 1].startswith("<!-- not run:"))
        elif found:
            assert language is not None
            yield language, start, lines[start:number], run
            language = None
    assert language is None, f"{page.name}: the block from line {start} has no end"


def program(page: Path) -> str:
    """The blocks of a page as one script, each line at the number that it has on the page."""
    script = [""] * len(page.read_text().splitlines())
    for language, start, lines, run in blocks(page):
        if not run:
            continue
        if language == "python":
            script[start : start + len(lines)] = lines
        elif language == "bash":
            for number, line in enumerate(lines, start):
                if line.startswith("tensordb "):
                    script[number] = f"__import__('subprocess').run({line!r}, shell=True, check=True)"
    return "\n".join(script)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if program(page).strip()], ids=lambda page: page.name)
def test_code_runs(page: Path, warehouse_dir: Path) -> None:
    script = warehouse_dir / f"page_{page.stem}.py"  # not the name of a framework
    script.write_text(program(page))
    printed = ran(script)
    if page.name == "README.md":
        # All that the second run finds to do is to say so: samples and steps are there already.
        assert len(printed) > 1 and ran(script) == printed[-1:]


def ran(script: Path) -> list[str]:
    """What a script printed, which has to end well."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = warm.run(
        [sys.executable, str(script)],
        cwd=script.parent, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{script.name}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout.splitlines()


def test_the_front_page_has_the_program_of_the_readme() -> None:
    readme, index = (
        [lines for language, _, lines, _ in blocks(ROOT / name) if language == "python"]
        for name in ("README.md", "docs/index.md")
    )
    assert readme == index


def test_links_of_the_readme_work_on_a_package_index() -> None:
    """They are absolute, into the repository that the metadata names, and what they lead to is there."""
    about = re.search(r'^Source = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert about is not None, "pyproject.toml names the repository as `Source` among the project's URLs"
    text = (ROOT / "README.md").read_text()
    assert not LINK.findall(text), "links of the README are absolute"
    for target in re.findall(r"\]\((https?://[^)#]+)", text):
        found = re.fullmatch(rf"{re.escape(about[1])}/(blob|tree)/main/(.+)", target)
        assert found is not None, f"{target} is not in {about[1]}"
        path = ROOT / found[2]
        assert path.is_dir() if found[1] == "tree" else path.is_file(), f"the README links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_compile_and_links_lead_somewhere(page: Path) -> None:
    for language, start, lines, _ in blocks(page):
        if language == "python":
            compile("\n" * start + "\n".join(lines), str(page), "exec")
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
