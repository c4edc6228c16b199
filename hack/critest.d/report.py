"""report.py REPORT [OPTION...]: what critest's JSON report says: each spec that failed or was skipped, and the counts.

--again REPORT          of what failed, run again alone: a spec that passed there has passed, and is called unsteady
--unimplemented FILE    names of specs that must fail; one that does counts as skipped
--part                  not all specs were run: those of the file may be missing
--failed                prints a regular expression of the specs to run again, or nothing
"""

import argparse
import json
import os
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


def listed(path):
    if not path:
        return set()
    with open(path) as file:
        return {line.strip() for line in file if line.strip() and not line.startswith("#")}


def to_run_again(found, unimplemented):
    failed = [re.escape(name) for name, state, _, _ in found if fails(state) and name not in unimplemented]
    return f"({'|'.join(failed)})$" if 0 < len(failed) <= AGAIN else ""


def main(options):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    second = {name: state for name, state, _, _ in specs(options.again)} if options.again else {}
    unimplemented = listed(options.unimplemented)
    found, unsteady = sorted(specs(options.report)), []
    for name, state, seconds, why in found:
        if name in unimplemented:
            if fails(state):
                state, why = "skipped", f"listed in {os.path.basename(options.unimplemented)}: {why}"
            else:
                state, why = "failed", f"{state}, though listed in {os.path.basename(options.unimplemented)}: take it off"
        elif fails(state) and second.get(name) == "passed":
            unsteady.append(f"unsteady {name}: {state}, then passed alone\n         {why}")
            state = "passed"
        counts["failed" if fails(state) else state] += 1
        if state != "passed":
            print(f"{state:8} {name} ({seconds:.1f} s)\n         {why}")
    for name in unimplemented - {name for name, *_ in found} if not options.part else ():
        print(f"failed   {name}\n         no such spec, though listed in {os.path.basename(options.unimplemented)}")
        counts["failed"] += 1
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
parser.add_argument("--unimplemented")
parser.add_argument("--part", action="store_true")
parser.add_argument("--failed", action="store_true")
options = parser.parse_args()
if options.failed:
    print(to_run_again(sorted(specs(options.report)), listed(options.unimplemented)))
else:
    sys.exit(main(options))
