"""report.py REPORT: what critest's JSON report says: each spec that failed or was skipped, and the counts."""

import json
import sys


def specs(path):
    with open(path) as file:
        suites = json.load(file)
    for spec in (spec for suite in suites for spec in suite["SpecReports"] or []):
        name = " ".join((spec["ContainerHierarchyTexts"] or []) + [spec["LeafNodeText"]])
        # Filtered out by us (--focus, benchmarks): not there, rather than skipped.
        filtered = spec["State"] == "skipped" and not spec.get("Failure", {}).get("Message")
        if spec["LeafNodeType"] == "It" and not filtered:
            why = spec.get("Failure", {}).get("Message", "").replace("\n", " ")
            yield name, spec["State"], spec["RunTime"] / 1e9, why


def main(path):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    found = sorted(specs(path))
    for name, state, seconds, why in found:
        # panicked, timedout, interrupted, aborted
        counts[state if state in counts else "failed"] += 1
        if state != "passed":
            print(f"{state:8} {name} ({seconds:.1f} s)\n         {why[:300]}")
    slowest = sorted(found, key=lambda spec: -spec[2])[:3]
    print("slowest: " + "; ".join(f"{name} ({seconds:.0f} s)" for name, _, seconds, _ in slowest))
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


main(sys.argv[1])
