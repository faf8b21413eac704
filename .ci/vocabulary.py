"""Looks for words in the documents that have a term of the field in their place.

Who searches for "backpressure" or "mTLS" has to find the page that is about it. Code, inline code
and links' targets are left alone, and decisions, which are records.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# What is not written -> what is.
TERMS = {
    r"\bends? TLS\b|\bending TLS\b": "terminates TLS",
    r"\bcertificates? of (?:a |the )?clients?\b": "client certificates, mutual TLS (mTLS)",
    r"\bnot read any further\b|\bpush(?:es)? back\b": "backpressure",
    r"\bside sockets?\b": "shared-memory socket",
    r"\bforeign\b": "external",
    r"\bstrewn\b": "unstructured sparsity",
    r"\brunning ranges?\b": "moving-average (EMA) range, min/max observer",
    r"\bpass(?:es)? straight through\b": "straight-through estimator (STE)",
    r"\banew\b": "again, new",
    r"\bmend(?:s|ed)?\b": "fix",
    r"\b[Ww]hoever\b": "a caller that",
    r"\bgo(?:es)? on\b": "continue, resume",
    r"\bthere twice\b": "duplicate",
    r"\b[Ww]ho may call\b": "authentication and authorization",
    r"\b[Ww]hat errors mean\b": "error codes",
    r"\bmakes? trouble\b": "fails, failures",
}
PROSE = ("README.md", "CONTRIBUTING.md", "docs/*.md", "*/README.md", "*/*/README.md")


def prose(text: str) -> str:
    """The text with everything else blanked, line by line."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"^```.*?^```$", blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", blank, text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", blank, text)
    return re.sub(r"\]\([^)]*\)", blank, text)


def main() -> int:
    files = subprocess.run(
        ["git", "ls-files", *PROSE], capture_output=True, text=True, check=True
    ).stdout.split()
    found = 0
    for file in files:
        if file.startswith("docs/decisions/"):
            continue
        text = prose(Path(file).read_text())
        for pattern, term in TERMS.items():
            for match in re.finditer(pattern.replace(" ", r"\s+"), text):
                line = text.count("\n", 0, match.start()) + 1
                print(f"{file}:{line}: {' '.join(match[0].split())!r}; the field says: {term}")
                found += 1
    print(f"{found} found in {len(files)} files")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
