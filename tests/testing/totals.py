"""Adds up JUnit result files: prints `PASSED FAILED SKIPPED`.

totals.py FILE...              a file that is missing or cannot be read counts as one failure
totals.py --write FILE STATUS  writes the result of one program: 0 passed, 77 skipped, else failed
"""

import sys
import xml.etree.ElementTree as ElementTree


def add_up(paths):
    passed = failed = skipped = 0
    for path in paths:
        try:
            suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
        except (OSError, ElementTree.ParseError):
            failed += 1
            continue
        for suite in suites:
            tests = int(suite.get("tests", 0))
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            out = int(suite.get("skipped", 0)) + int(suite.get("disabled", 0))
            passed += tests - bad - out
            failed += bad
            skipped += out
    return passed, failed, skipped


def write(path, status):
    failures, skipped = int(status not in (0, 77)), int(status == 77)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<testsuite tests="1" failures="{failures}" skipped="{skipped}"/>\n')


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(sys.argv[2], int(sys.argv[3]))
    else:
        print(*add_up(sys.argv[1:]))
