"""What the benchmark says: the table with its targets, the chart, and their places in docs/."""

import re

TRIPLE = "x86_64-unknown-linux-gnu"
BEGIN, END = "<!-- bench:begin (written by hack/bench/run) -->", "<!-- bench:end -->"
# crun 1.28 against the floor, Kubernetes-like spec: it caches what Debian's crun 1.8.1 compiles anew each time.
CRUN_128_K8S = 17.6 / 7.7


def cpu(cells, name):
    """CPU ms, or nothing where there is no figure."""
    return cells.get(name, {}).get("cpu")


def value(cells, name):
    return cells.get(name, {}).get("value")


def at_most(limit):
    """A check: the figure of rtc is there and no more than limit(cells) says; None where nothing can be said."""

    def check(cells, get):
        ours = get(cells, "rtc")
        if ours is None:
            return None
        try:
            return ours <= limit(cells)
        except TypeError:  # who it is compared with has no figure
            return None

    return check


def of_floor(factor):
    return at_most(lambda c: factor * cpu(c, "floor"))


def of_crun(factor):
    return at_most(lambda c: factor * cpu(c, "crun"))


def starts(cells, _):
    ours = value(cells, "rtc")
    if ours is None:
        return None
    forks, threads, execs = map(int, str(ours).split(" / "))
    return forks <= 1 and threads == 0 and execs <= 3


SHORT = ("CPU ≤ empty program + 0.5 ms, ≤ 0.35x crun", [at_most(lambda c: cpu(c, "empty") + 0.5), of_crun(0.35)])

# key, title, what is shown, (target, checks)
ROWS = [
    ("run-default", "run, default spec", cpu, ("CPU ≤ 1.35x floor, ≤ 0.6x crun", [of_floor(1.35), of_crun(0.6)])),
    (
        "run-k8s",
        "run, Kubernetes-like spec",
        cpu,
        ("CPU ≤ 1.35x floor, ≤ 0.6x crun 1.28 (*)", [of_floor(1.35), of_floor(0.6 * CRUN_128_K8S), of_crun(0.6)]),
    ),
    ("run-userns", "run, user namespace", cpu, ("CPU ≤ 1.5x floor", [of_floor(1.5)])),
    ("run-default-v2", "run, default, cgroup v2 view", cpu, ("CPU ≤ 1.5x floor", [of_floor(1.5)])),
    ("create", "create", cpu, ("CPU ≤ 0.6x crun", [of_crun(0.6)])),
    ("start", "start", cpu, SHORT),
    ("state", "state", cpu, SHORT),
    ("kill", "kill", cpu, SHORT),
    ("delete", "delete", cpu, ("CPU ≤ 0.4x crun", [of_crun(0.4)])),
    ("exec-default", "exec, default spec", cpu, ("CPU ≤ 0.5x crun", [of_crun(0.5)])),
    ("exec-k8s", "exec, Kubernetes-like spec", cpu, ("CPU ≤ 0.5x crun", [of_crun(0.5)])),
    ("list", "list, 100 containers", cpu, ("CPU ≤ 2 ms", [at_most(lambda c: 2)])),
    ("rss", "max RSS of `run`, KiB", value, ("≤ 2048", [at_most(lambda c: 2048)])),
    ("rss-k8s", "max RSS of `run`, Kubernetes-like, KiB", value, ("≤ 2048", [at_most(lambda c: 2048)])),
    ("dirty", "init before start, private dirty KiB", value, ("≤ 256", [at_most(lambda c: 256)])),
    ("limit", "lowest memory limit that runs, KiB", value, ("≤ 188", [at_most(lambda c: 188)])),
    ("syscalls", "system calls of `run`", value, ("~300 (≤ 330)", [at_most(lambda c: 330)])),
    ("starts", "forks / threads / execs of `run`", value, ("1 / 0 / 3", [starts])),
    (
        "throughput",
        "`run` per second, 8 at a time",
        value,
        (
            "≥ 0.7x floor",
            [lambda c, g: None if None in (g(c, "rtc"), g(c, "floor")) else g(c, "rtc") >= 0.7 * g(c, "floor")],
        ),
    ),
]
# start, state and kill are compared with it wherever it was measured.
EVERYWHERE = "empty"


def complete(result):
    """The rows, with those that are read off others."""
    rows = dict(result["rows"])
    for key, source in (("rss", "run-default"), ("rss-k8s", "run-k8s")):
        if source in rows:
            rows[key] = {n: {"value": c["rss"]} if "rss" in c else c for n, c in rows[source].items()}
    empty = rows.get("empty", {}).get(EVERYWHERE)
    for key in ("start", "state", "kill"):
        if key in rows and empty:
            rows[key] = {**rows[key], EVERYWHERE: rows[key].get(EVERYWHERE, empty)}
    return rows


def verdict(cells, get, checks):
    answers = [check(cells, get) for check in checks]
    if "failed" in cells.get("rtc", {}):
        return "**failed**"
    if False in answers:
        return "**missed**"
    return "met" if True in answers and cells.get("rtc") else "-"


def shown(cell, get):
    if not cell:
        return ""
    if "failed" in cell:
        return "failed"
    return f"{cell['wall']:.1f} / **{cell['cpu']:.2f}**" if get is cpu else f"{cell['value']}"


def table(result):
    """Markdown: one row per measurement, and below it why a contestant failed where it did."""
    rows = complete(result)
    names = ["floor", *result["versions"]]
    lines = ["| | C floor | " + " | ".join(result["versions"][n] for n in names[1:]) + " | target | |"]
    lines.append("|---" * (len(names) + 3) + "|")
    notes = []
    for key, title, get, (target, checks) in ROWS:
        if key not in rows:
            continue
        cells = rows[key]
        columns = [shown(cells.get(n), get) for n in names]
        lines.append(f"| {title} | " + " | ".join(columns) + f" | {target} | {verdict(cells, get, checks)} |")
        if key != "rss":
            notes += [f"- {title}: {n} failed: {c['failed']}" for n, c in cells.items() if "failed" in c]
    empty = rows.get("empty", {}).get(EVERYWHERE)
    about = f"Wall / **CPU** in ms, medians of n = {result['n']}; {result['date']}, Linux {result['kernel']}, "
    about += f"{result['cpus']} CPUs, load average {result['load'][0]} before and {result['load'][-1]} after."
    if empty:
        about += f" A static Rust program that does nothing: {empty['wall']:.2f} / **{empty['cpu']:.2f}** ms."
    return "\n".join([about, "", *lines, *([""] + notes if notes else [])])


COLOURS = {"floor": "#9aa0a6", "rtc": "#d9480f", "crun": "#1c7ed6", "runc": "#5f3dc4"}


def chart(result):
    """SVG: CPU time per row, each row drawn to its own scale, as `state` and `run` are two orders apart."""
    rows = complete(result)
    drawn = [(k, t) for k, t, get, _ in ROWS if get is cpu and k in rows]
    names = ["floor", *result["versions"]]
    width, left, bar, gap = 860, 210, 13, 12
    parts, y = [], 58
    for key, title in drawn:
        cells = {n: cpu(rows[key], n) for n in names if cpu(rows[key], n) is not None}
        if not cells:
            continue
        middle = y + bar * len(cells) / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end">{title}</text>')
        for name, ms in cells.items():
            length = ms / max(cells.values()) * (width - left - 90)
            colour = COLOURS.get(name, "#495057")
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 5:.1f}" y="{y + bar - 3}" class="n">{ms:.2f}</text>')
            y += bar
        y += gap
    x, legend = left, []
    for name in names:
        label = result["versions"].get(name, "C floor")
        legend.append(f'<rect x="{x}" y="30" width="11" height="11" fill="{COLOURS.get(name, "#495057")}"/>')
        legend.append(f'<text x="{x + 16}" y="40">{label}</text>')
        x += 40 + 7 * len(label)
    style = "text{font:12px sans-serif;fill:#212529}.n{font-size:10px;fill:#495057}.h{font-size:14px;font-weight:bold}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">'
    title = '<text x="10" y="20" class="h">CPU time in ms, less is better (each row to its own scale)</text>'
    background = f'<rect width="{width}" height="{y}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", background, title, *legend, *parts, "</svg>", ""])


def write_table(directory, begin, end, table):
    """Puts a table between its markers in performance.md, whose other text stays."""
    path = directory + "/performance.md"
    with open(path) as f:
        text = f.read()
    if begin not in text or end not in text:
        raise SystemExit(f"bench: {path}: the markers are gone: {begin} {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    text = re.sub(pattern, lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S)
    with open(path, "w") as f:
        f.write(text)


def write_docs(directory, result):
    """The table and the chart."""
    write_table(directory, BEGIN, END, table(result))
    with open(directory + "/performance.svg", "w") as f:
        f.write(chart(result))
