"""What the benchmark of shims says: the table with its targets."""

from report import at_most, cpu, shown, value, verdict

BEGIN, END = "<!-- bench-shim:begin (written by hack/bench/shim) -->", "<!-- bench-shim:end -->"


def of(name, get, factor):
    """At most this fraction of what another needs."""
    return at_most(lambda cells: factor * get(cells, name))


def wall(cells, name):
    return cells.get(name, {}).get("wall")


def wall_at_most(limit):
    return lambda cells, _: None if wall(cells, "rtc") is None else wall(cells, "rtc") <= limit


NOTHING = ("", [])
# key, title, what is shown, (target, checks)
ROWS = [
    ("shim", "shim: start to first answer", cpu, ("wall ≤ 10 ms", [wall_at_most(10)])),
    ("up", "create + start, default spec", cpu, ("CPU ≤ 1/4 of runc's", [of("runc", cpu, 1 / 4)])),
    ("up-k8s", "create + start, Kubernetes-like spec", cpu, ("CPU ≤ 1/4 of runc's", [of("runc", cpu, 1 / 4)])),
    ("exec", "exec of `true`, default spec", cpu, ("CPU ≤ 1/10 of runc's", [of("runc", cpu, 1 / 10)])),
    ("exec-k8s", "exec of `true`, Kubernetes-like spec", cpu, ("CPU ≤ 1/10 of runc's", [of("runc", cpu, 1 / 10)])),
    ("down", "kill + wait + delete, default spec", cpu, NOTHING),
    ("down-k8s", "kill + wait + delete, Kubernetes-like spec", cpu, NOTHING),
    ("all-k8s", "CPU of a pod's whole life with 3 execs, Kubernetes-like spec", value, NOTHING),
    ("uss", "USS, KiB", value, ("≤ 512", [at_most(lambda c: 512)])),
    ("dirty", "Private_Dirty, KiB", value, ("≤ 410", [at_most(lambda c: 410)])),
    ("dirty-execs", "Private_Dirty after three execs, KiB", value, ("≤ 410", [at_most(lambda c: 410)])),
    ("rss", "RSS, KiB (most of it the program, which all shims share)", value, NOTHING),
    ("cgroup", "memory of its own cgroup, kernel's included, KiB", value, ("≤ 819", [at_most(lambda c: 819)])),
    ("kernel", "of it the kernel's, KiB", value, NOTHING),
    ("pause", "and the pod's pause process, the kernel's included, KiB", value, NOTHING),
    ("threads", "threads", value, ("1", [at_most(lambda c: 1)])),
    ("out", "100 MiB of standard output, MiB/s", value, NOTHING),
    ("out-shim", "the shim's CPU for them, ms", value, ("≤ 1", [at_most(lambda c: 1)])),
    ("idle", "CPU of an idle pod in 30 s, ms", value, ("0", [at_most(lambda c: 0.001)])),
    ("idle-count", "pods idle beside each other for it", value, NOTHING),
]


def table(result):
    """Markdown: one row per measurement, and below it why a contestant failed where it did."""
    rows, names = result["rows"], list(result["versions"])
    heads = [" + ".join(result["versions"][name]) for name in names]
    lines = ["| | " + " | ".join(heads) + " | target | |", "|---" * (len(names) + 3) + "|"]
    notes = []
    for key, title, get, (target, checks) in ROWS:
        if key not in rows:
            continue
        cells = rows[key]
        columns = [shown(cells.get(name), get) for name in names]
        lines.append(f"| {title} | " + " | ".join(columns) + f" | {target} | {verdict(cells, get, checks)} |")
        notes += [f"- {title}: {name} failed: {c['failed']}" for name, c in cells.items() if "failed" in c]
    about = f"Wall / **CPU** in ms, medians of n = {result['n']}; memory: medians of 10 pods of one container each; "
    about += f"{result['date']}, Linux {result['kernel']}, {result['cpus']} CPUs, "
    about += f"load average {result['load'][0]} before and {result['load'][-1]} after."
    return "\n".join([about, "", *lines, *([""] + notes if notes else [])])
