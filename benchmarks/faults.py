"""The latest result of each fault's tests: turns pytest's JUnit file into
benchmarks/results/faults.json.

make test-faults     runs the tests, then this script, then render.py for the tables
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from outpace.bench.result import write_result

NAMED = re.compile(r"test_([kdcrsnmphqu]\d+(?:_[kdcrsnmphqu]\d+)*)_")
OUTPUT = Path(__file__).parent / "results" / "faults.json"


def outcome(case: ElementTree.Element) -> str:
    """Returns passed, failed or skipped."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def main(junit: Path) -> None:
    faults: dict[str, Counter[str]] = {}
    files: dict[str, set[str]] = {}
    total: Counter[str] = Counter()
    seconds = 0.0
    for case in ElementTree.parse(junit).iter("testcase"):
        result = outcome(case)
        total[result] += 1
        seconds += float(case.get("time", "0"))
        if match := NAMED.match(case.get("name", "")):
            for fault in match[1].upper().split("_"):
                faults.setdefault(fault, Counter())[result] += 1
                files.setdefault(fault, set()).add(case.get("classname", "").rpartition(".")[2])
    body = {
        "tests": dict(total),
        "seconds_of_tests": round(seconds),
        "faults": {f: {**c, "files": sorted(files[f])} for f, c in sorted(faults.items())},
    }
    write_result("faults", "cpu", body, OUTPUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
