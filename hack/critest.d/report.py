"""report.py REPORT [OPTION...]: what critest's JSON report says: each spec that failed or was skipped, and the counts.

--again REPORT          of what failed, run again alone: a spec that passed there has passed, and is called unsteady
--passed                names those that passed, too
--failed                prints a regular expression of the specs to run again, or nothing
"""

import argparse
import json
import re
import sys

AGAIN = 10  # more failures than this are no accident: not run again
UNSTEADY = 2  # so many specs may pass only alone


def specs(path):
    with open(path) as file:
        suites = json.load(file)
    for spec in (spec for suite in suites for spec in suite["SpecReports"] or []):
        name = " ".join((spec["ContainerHierarchyTexts"] or []) + [spec["LeafNodeText"]])
        # Filtered out by us (--focus, benchmarks): not there, rather than skipped.
        filtered = spec["State"] == "skipped" and not spec.get("Failure", {}).get("Message")
        if spec["LeafNodeType"] == "It" and not filtered:
            failure = spec.get("Failure", {})
            place = failure.get("Location", {})
            where = f" ({place['FileName'].rsplit('/', 1)[-1]}:{place['LineNumber']})" if place.get("FileName") else ""
            why = failure.get("Message", "").replace("\n", " ")[:300] + where
            yield name, spec["State"], spec["RunTime"] / 1e9, why


def fails(state):
    # failed, panicked, timedout, interrupted, aborted
    return state not in ("passed", "skipped")


def to_run_again(found):
    failed = [re.escape(name) for name, state, _, _ in found if fails(state)]
    return f"({'|'.join(failed)})$" if 0 < len(failed) <= AGAIN else ""


def main(options):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    second = {name: state for name, state, _, _ in specs(options.again)} if options.again else {}
    found, unsteady = sorted(specs(options.report)), []
    for name, state, seconds, why in found:
        if fails(state) and second.get(name) == "passed":
            unsteady.append(f"unsteady {name}: {state}, then passed alone\n         {why}")
            state = "passed"
        counts["failed" if fails(state) else state] += 1
        if state != "passed":
            print(f"{state:8} {name} ({seconds:.1f} s)\n         {why}")
        elif options.passed:
            print(f"{state:8} {name} ({seconds:.1f} s)")
    print(*unsteady, sep="\n", end="\n" if unsteady else "")
    if len(unsteady) > UNSTEADY:
        print(f"failed   {len(unsteady)} specs passed only alone, {UNSTEADY} may")
        counts["failed"] += 1
    slowest = sorted(found, key=lambda spec: -spec[2])[:3]
    print("slowest: " + "; ".join(f"{name} ({seconds:.0f} s)" for name, _, seconds, _ in slowest))
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["failed"] or not counts["passed"] else 0


parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("report")
parser.add_argument("--again")
parser.add_argument("--failed", action="store_true")
parser.add_argument("--passed", action="store_true")
options = parser.parse_args()
if options.failed:
    print(to_run_again(sorted(specs(options.report))))
else:
    sys.exit(main(options))
