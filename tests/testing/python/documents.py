"""Reading the documents: blocks of code and tables."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
]


def blocks(page, language):
    """The fenced blocks of a page that are marked with the language, with their first lines."""
    text = page.read_text()
    found = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append((text.count("\n", 0, match.start()) + 2, match.group(1)))
    return found


def section(text, heading):
    """The text below a heading of the second level, up to the next one."""
    match = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert match, f"no section {heading}"
    return match.group(1)


def table(text, first_column):
    """The rows of the table whose first column has this heading, as lists of cells."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |")]
    assert len(starts) == 1, f"{len(starts)} tables begin with {first_column}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|\n ").split("|")])
    return rows
