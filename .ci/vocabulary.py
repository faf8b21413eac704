"""Looks for words that have a term of the field in their place: in the documents, and in comments
and messages of the sources.

Who searches for "backpressure" or "mTLS" has to find the page that is about it, and a message in
the log should need no translation. Code, inline code and links' targets are left alone, and
decisions, which are records.

    python3 .ci/vocabulary.py                    the documents, and the sources of SOURCES
    python3 .ci/vocabulary.py client/cpp ...     the sources of these folders
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
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
# In comments and messages, in addition.
CODE_TERMS = {
    r"\b[Ww]homever\b": "a caller that",
    r"\b(?:[Ss]ome|[Aa]ny|[Ee]very|[Nn]o)body\b": "a client, a caller, none",
    r"\b(?![Tt]here\b)\w+ is no (?!longer|more|less)[a-z]\w*": "is not a",
    r"(?:[;:,.] |\(|^)[Nn]othing(?:: | for | when | where )": "nullopt, None",
    r"\b[Bb]esides?\b": "next to, in addition to",
    r"\b(?:came|comes?) back\b": "return",
    r"\bgiven up\b|\bgives up\b": "abandoned",
    r"\blet(?:s|ting)? go of\b": "release, evict",
    r"\blets? (?:nobody |everybody |calls? )?in\b": "admit",
    r"\bhand(?:s|ed)? (?:on|out)\b": "pass, return",
    r"\b(?:says?|said) so\b": "set, report",
    r"\btakes? the place of\b": "replace",
    r"\b[Mm]int(?:s|ed)?\b": "generate",
    r"\bhalf types?\b": "16-bit floats",
    r"\b(?:that|which|what|who|they|it) came\b": "received, sent",
    r"\bknows? nothing of\b": "is independent of",
    r"\bas (?:many|much) as (?:it|there) may\b": "the limit",
    r"\buse for\b(?= (?:gradients|it))": "use",
}
PROSE = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/tutorials/*.md",
    "*/README.md",
    "*/*/README.md",
)

# Folders whose sources are checked.
SOURCES = ("client", "server", "compression", "proto")

Text = Callable[[str], str]


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def without_inline_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", blank, text)


def prose(text: str) -> str:
    """A document with everything else blanked, line by line."""
    text = re.sub(r"^```.*?^```$", blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", blank, text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", blank, text)
    return re.sub(r"\]\([^)]*\)", blank, text)


CPP = re.compile(
    r"""//(?P<line>[^\n]*) | /\*(?P<block>.*?)\*/
      | R"(?P<mark>[^(\s]*)\((?P<raw>.*?)\)(?P=mark)"
      | "(?P<string>(?:\\.|[^"\\\n])*)" | '(?:\\.|[^'\\\n])+' | \b\d[\d']*""",
    re.VERBOSE | re.DOTALL,
)


def cpp(text: str) -> str:
    """Comments and string literals of C++ or proto, everything else blanked."""
    text = re.sub(r"^#\s*include.*$", blank, text, flags=re.MULTILINE)
    out = list(re.sub(r"[^\n]", " ", text))
    for match in CPP.finditer(text):
        for group in ("line", "block", "raw", "string"):
            if match[group] is not None:
                out[match.start(group) : match.end(group)] = match[group]
    return without_inline_code("".join(out))


def python(text: str) -> str:
    """Comments and docstrings of Python, everything else blanked."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    out = list(re.sub(r"[^\n]", " ", text))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type == tokenize.COMMENT or is_docstring:
            (first, column), (last, end) = token.start, token.end
            begin = starts[first - 1] + column
            out[begin : starts[last - 1] + end] = token.string
            if token.type == tokenize.COMMENT:
                out[begin] = " "
    return without_inline_code("".join(out))


READERS: dict[str, Text] = {".cc": cpp, ".h": cpp, ".proto": cpp, ".py": python}


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *patterns], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def check(file: str, text: str, terms: dict[str, str]) -> int:
    found = 0
    for pattern, term in terms.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, flags=re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            print(f"{file}:{line}: {' '.join(match[0].split())!r}; the field says: {term}")
            found += 1
    return found


def main(folders: list[str]) -> int:
    found = checked = 0
    if not folders:
        for file in tracked(*PROSE):
            if file.startswith("docs/decisions/"):
                continue
            found += check(file, prose(Path(file).read_text()), TERMS)
            checked += 1
    for file in tracked(*(folders or SOURCES)):
        reader = READERS.get(Path(file).suffix)
        if reader is None or Path(file).stem.endswith("_pb2"):
            continue
        found += check(file, reader(Path(file).read_text()), TERMS | CODE_TERMS)
        checked += 1
    print(f"{found} found in {checked} files")
    return 1 if found or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
