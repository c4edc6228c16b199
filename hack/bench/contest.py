"""Runs the contestants against each other in one view of the cgroup file system, and prints JSON.

Called by `run`, in a mount namespace of its own:  contest.py VIEW WORK N SECTIONS NAME=PATH...

Everything is interleaved (A B C A B C ...), so that a machine that grows slower in between slows all of them. What
a section returns is {row: {contestant: cell}}; a cell is what `summary` makes of the samples, or {"value": number},
or {"failed": why}. A contestant that failed in a row has no figure in that row."""

import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import bundles

PR_SET_CHILD_SUBREAPER = 36
STATE = "/run/rtc-bench"
LIMIT = "10"  # seconds; who takes longer has failed
OFTEN = 3  # failures after which a contestant is left out of a row


class Failed(Exception):
    """What a contestant did wrong; its row says so."""


class Contest:
    def __init__(self, view, work, n, contestants):
        self.view, self.work, self.n = view, work, n
        self.contestants = contestants  # name -> path; "floor" and "empty" are not in it
        self.errors = work + "/errors"
        self.prefix = f"rtcbench-{os.getpid()}-"
        self.owners = {}  # id -> contestant

    # ---- one measured command ----

    def id(self, owner):
        id = self.prefix + str(len(self.owners) + 1)
        self.owners[id] = owner
        return id

    def root(self, name):
        path = f"{STATE}/{self.prefix}{name}"
        os.makedirs(path, exist_ok=True)
        return path

    def measure(self, command):
        """One sample: wall and CPU in ms, maximum RSS in KiB, minor faults, exit status."""
        open(self.errors, "w").close()
        command = [self.work + "/measure", LIMIT, self.errors, *command]
        output = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True).stdout
        wall, cpu, rss, faults, _switches, status = map(int, output.split())
        return {"wall": wall / 1e6, "cpu": cpu / 1e3, "rss": rss, "faults": faults, "status": status}

    def command(self, name, *arguments):
        return [self.contestants[name], "--root", self.root(name), *arguments]

    def floor(self, mode, *program):
        work = self.work
        files = [work + "/rootfs", work + "/binds", work + "/filter.bpf"]
        return [work + "/floor", mode, self.view, *files, self.id("floor"), *(program or ["/bin/true"])]

    def bundle(self, name):
        return f"{self.work}/bundles/{name}"

    def why(self, sample):
        """The last thing it said."""
        with open(self.errors, errors="replace") as f:
            lines = f.read().strip().splitlines()
        return f"status {sample['status']}: {lines[-1][:200] if lines else 'no message'}"

    def must(self, name, *arguments):
        sample = self.measure(self.command(name, *arguments))
        if sample["status"]:
            raise Failed(f"{arguments[0]}: {self.why(sample)}")
        return sample

    def remove(self, name, id):
        """Force, without measuring; what a failed run may have left goes too."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            subprocess.run(self.command(name, "delete", "--force", id), timeout=20, check=False, **quiet)
        except subprocess.TimeoutExpired:
            pass
        reap()

    # ---- many of them ----

    def collect(self, samplers):
        """{name: sampler} to {name: summary}, interleaved. A sampler returns a sample or raises Failed."""
        samples = {name: [] for name in samplers}
        failures = {name: [] for name in samplers}
        for _ in range(self.n):
            for name, sampler in samplers.items():
                if len(failures[name]) >= OFTEN:
                    continue
                try:
                    samples[name].append(sampler())
                except Failed as e:
                    failures[name].append(str(e))
        return {name: summary(samples[name], failures[name]) for name in samplers}

    def runs(self, mode):
        """`run` of the bundle `mode`, and the floor for it."""

        def runner(name):
            def once():
                id = self.id(name)
                try:
                    return self.must(name, "run", "--bundle", self.bundle(mode), id)
                except Failed:
                    self.remove(name, id)
                    raise

            return once

        def floor():
            sample = self.measure(self.floor(mode))
            if sample["status"]:
                raise Failed(self.why(sample))
            return sample

        samplers = {"floor": floor}
        guards = {}
        for name in self.contestants:
            try:
                self.witness(name, mode)
                samplers[name] = runner(name)
            except Failed as e:
                guards[name] = {"failed": str(e)}
        sample = self.measure(self.floor(mode, "/bin/sh", "-c", "exit 42"))
        if sample["status"] != 42:
            raise SystemExit(f"the floor itself fails: {self.why(sample)}")
        return {**self.collect(samplers), **guards}

    def witness(self, name, mode):
        """The guard: who does nothing, quickly and with success, must not win."""
        id = self.id(name)
        sample = self.measure(self.command(name, "run", "--bundle", self.bundle("witness-" + mode), id))
        if sample["status"] != 42:
            self.remove(name, id)
            raise Failed(f"a program that exits with 42: {self.why(sample)}")

    # ---- sections ----

    def section_run(self):
        modes = ["default", "k8s", "userns"] if self.view == "v1" else ["default"]
        suffix = "" if self.view == "v1" else "-v2"
        return {f"run-{mode}{suffix}": self.runs(mode) for mode in modes}

    def section_life(self):
        """create, start and delete, each measured by itself, and the waiting init's memory in between."""
        samples, failures = {}, {}
        for turn in range(self.n):
            for name in self.contestants:
                if len(failures.get(name, [])) >= OFTEN:
                    continue
                id = self.id(name)
                try:
                    for row, value in self.life(name, id, turn).items():
                        samples.setdefault(row, {}).setdefault(name, []).append(value)
                except Failed as e:
                    failures.setdefault(name, []).append(str(e))
                    self.remove(name, id)
        rows = {}
        for row in ("create", "start", "delete"):
            rows[row] = {
                name: summary(samples.get(row, {}).get(name, []), failures.get(name, [])) for name in self.contestants
            }
        rows["dirty"] = {name: {"value": statistics.median(v)} for name, v in samples.get("dirty", {}).items()}
        return rows

    def life(self, name, id, turn):
        pid_file = self.work + "/pid"
        result = {}
        result["create"] = self.must(name, "create", "--bundle", self.bundle("default"), "--pid-file", pid_file, id)
        with open(pid_file) as f:
            pid = int(f.read())
        if turn < 5:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                result["dirty"] = int(re.search(r"Private_Dirty:\s+(\d+)", f.read()).group(1))
        result["start"] = self.must(name, "start", id)
        wait_for_end(pid)
        result["delete"] = self.must(name, "delete", id)
        return result

    def section_running(self):
        """What is done to a running container: exec, state, kill."""
        rows = {}
        for mode in ("default", "k8s"):
            ids, failed = {}, {}
            for name in self.contestants:
                id = self.id(name)
                try:
                    self.must(name, "create", "--bundle", self.bundle("sleep-" + mode), id)
                    self.must(name, "start", id)
                    self.exec_witness(name, id)
                    ids[name] = id
                except Failed as e:
                    failed[name] = {"failed": str(e)}
                    self.remove(name, id)
            execs = {n: lambda n=n, i=i: self.must(n, "exec", i, "/bin/true") for n, i in ids.items()}
            rows["exec-" + mode] = {**self.collect(execs), **failed}
            if mode == "default":
                states = {n: lambda n=n, i=i: self.must(n, "state", i) for n, i in ids.items()}
                kills = {n: lambda n=n, i=i: self.must(n, "kill", i, "CONT") for n, i in ids.items()}
                states["empty"] = lambda: self.measure([self.work + "/empty"])
                rows["state"] = {**self.collect(states), **failed}
                rows["kill"] = {**self.collect(kills), **failed}
            for name, id in ids.items():
                self.remove(name, id)
        return rows

    def exec_witness(self, name, id):
        sample = self.measure(self.command(name, "exec", id, "/bin/sh", "-c", "exit 42"))
        if sample["status"] != 42:
            raise Failed(f"exec of a program that exits with 42: {self.why(sample)}")

    def section_list(self):
        """`list` of 100 created containers."""
        cells = {}
        for name, path in self.contestants.items():
            ids = [self.id(name) for _ in range(100)]
            root = f"{STATE}/{self.prefix}list-{name}"
            os.makedirs(root, exist_ok=True)
            base = [path, "--root", root]
            each(ids, 4, [*base, "create", "--bundle", self.bundle("sleep-default"), "{}"])
            listed = subprocess.run([*base, "list", "--quiet"], stdout=subprocess.PIPE, check=False).stdout.split()
            samples = [self.measure([*base, "list"]) for _ in range(15)]
            bad = [self.why(s) for s in samples if s["status"]]
            if len(listed) != 100:
                bad = [f"lists {len(listed)} of 100 containers"] * OFTEN
            cells[name] = summary([s for s in samples if not s["status"]], bad)
            each(ids, 4, [*base, "delete", "--force", "{}"])
            reap()
            shutil.rmtree(root, ignore_errors=True)
        return {"list": cells}

    def section_limit(self):
        """The lowest memory limit, in KiB, with which the default container runs (twice in a row)."""
        with open(self.bundle("default") + "/config.json") as f:
            config = json.load(f)
        cells = {}
        for name in self.contestants:

            def works(kib, name=name):
                config["linux"]["resources"]["memory"] = {"limit": kib * 1024}
                directory = bundles.write(self.work, "limit", config)
                for _ in range(2):
                    id = self.id(name)
                    if self.measure(self.command(name, "run", "--bundle", directory, id))["status"]:
                        self.remove(name, id)
                        return False
                return True

            low, high = 0, 16384
            if not works(high):
                cells[name] = {"failed": f"does not run with {high} KiB"}
                continue
            while high - low > 4:
                middle = (low + high) // 2 // 4 * 4
                low, high = (low, middle) if works(middle) else (middle, high)
            cells[name] = {"value": high}
        return {"limit": cells}

    def section_strace(self):
        """System calls of `run`, and how many processes, threads and programs it starts."""
        trace = self.work + "/trace"
        calls, starts, most = {}, {}, {}
        for name in ["floor", *self.contestants]:

            def traced(options, name=name):
                id = self.id(name)
                own = self.floor("default")
                if name != "floor":
                    own = self.command(name, "run", "--bundle", self.bundle("default"), id)
                quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                command = ["timeout", "60", "strace", "-f", "-o", trace, *options, *own]
                status = subprocess.run(command, check=False, **quiet).returncode
                if name != "floor":
                    self.remove(name, id)
                if status:
                    raise Failed(f"under strace: status {status}")
                with open(trace) as f:
                    return f.read()

            try:
                text = traced(["-c"])
                calls[name] = {"value": int(re.search(r"^\s*100\.\d+\s.*?(\d+)\s+\d*\s*total$", text, re.M).group(1))}
                most[name] = top_calls(text)
                text = traced(["-e", "trace=clone,clone3,fork,vfork,execve,execveat"])
                started = [l for l in text.splitlines() if re.search(r" (clone3?|v?fork)\(", l)]
                threads = sum("CLONE_THREAD" in l for l in started)
                execs = len(re.findall(r" execve(?:at)?\(", text))
                starts[name] = {"value": f"{len(started) - threads} / {threads} / {execs}"}
            except Failed as e:
                calls[name] = starts[name] = {"failed": str(e)}
        return {"syscalls": calls, "starts": starts, "syscalls-by-name": most}

    def section_throughput(self):
        """Default containers run per second, eight at a time; the median of three rounds of 100."""
        rates = {}
        for _ in range(3):
            for name in ["floor", *self.contestants]:
                ids = [self.id(name) for _ in range(100)]
                if name == "floor":
                    command = self.floor("default")
                    command[6] = "{}"
                else:
                    command = self.command(name, "run", "--bundle", self.bundle("default"), "{}")
                start = time.monotonic()
                failed = each(ids, 8, command)
                rates.setdefault(name, []).append((100 - failed) / (time.monotonic() - start))
                if failed:
                    rates[name] = [None] * 3
                    for id in ids if name != "floor" else []:
                        self.remove(name, id)
        return {
            "throughput": {
                name: {"failed": "some of 100 runs failed"} if None in r else {"value": round(statistics.median(r), 1)}
                for name, r in rates.items()
            }
        }

    def section_empty(self):
        """What it costs to start a static Rust program that does nothing: no command of ours can cost less."""
        return {"empty": self.collect({"empty": lambda: self.measure([self.work + "/empty"])})}

    # ---- afterwards ----

    def leftovers(self):
        """Removes what is left of this contest, and says what it was: [[contestant, path], ...]."""
        left = []
        for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            id = re.search(re.escape(self.prefix) + r"\d+", os.path.basename(directory))
            if id:
                left.append([self.owners.get(id[0], "unknown"), directory])
                try:
                    os.rmdir(directory)
                except OSError as e:
                    left[-1][1] += f" (and can't be removed: {e.strerror})"
        for name in os.listdir(STATE) if os.path.isdir(STATE) else []:
            if name.startswith(self.prefix):
                owner = name.removeprefix(self.prefix)
                left += [[owner, f"{STATE}/{name}/{entry}"] for entry in os.listdir(f"{STATE}/{name}")]
                shutil.rmtree(f"{STATE}/{name}", ignore_errors=True)
        return left


def reap():
    """Collects the ended inits of `create`, whose parent has gone."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def wait_for_end(pid):
    deadline = time.monotonic() + float(LIMIT)
    while time.monotonic() < deadline:
        reap()
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.0005)
    raise Failed(f"its process {pid} does not end")


def each(ids, at_a_time, command):
    """Runs the command for each id, and returns how many of them failed."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    words = ["timeout", "-s", "KILL", LIMIT, *command]
    script = ["xargs", f"-P{at_a_time}", "-I{}", "sh", "-c", '"$@" >/dev/null 2>&1 || echo failed >&2', "sh", *words]
    result = subprocess.run(script, input="\n".join(ids).encode(), check=False, **quiet)
    return result.stderr.count(b"failed")


def summary(samples, failures):
    """Medians and 10th and 90th percentiles of the good samples, unless there were failures."""
    if failures or not samples:
        return {"failed": f"{len(failures)} of {len(samples) + len(failures)}: {failures[0] if failures else ''}"}
    cell = {"n": len(samples), "rss": max(s["rss"] for s in samples)}
    for key in ("wall", "cpu", "faults"):
        values = sorted(s[key] for s in samples)
        cell[key] = round(statistics.median(values), 3)
        cell[key + "-p10"], cell[key + "-p90"] = (values[int(f * (len(values) - 1))] for f in (0.1, 0.9))
    return cell


def top_calls(text):
    """[[call, times], ...] of an `strace -c` table, most frequent first."""
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text, re.M)
    return sorted(([name, int(times)] for times, name in rows if name != "total"), key=lambda r: -r[1])[:25]


def main():
    view, work, n, sections, *contestants = sys.argv[1:]
    # The same environment for all, whatever the caller has: RUST_BACKTRACE alone costs rtc 0.8 ms where an error is made.
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ.clear()
    os.environ.update(PATH=path, HOME="/root", LANG="C.UTF-8")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    contest = Contest(view, work, int(n), dict(c.split("=", 1) for c in contestants))
    rows = {}
    try:
        for section in sections.split(","):
            start = time.monotonic()
            rows |= getattr(contest, "section_" + section)()
            print(f"bench: {view} {section}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    finally:
        left = contest.leftovers()
        for owner, path in left:
            print(f"bench: left behind by {owner}: {path}", file=sys.stderr)
    json.dump({"rows": rows, "left": left}, sys.stdout)


if __name__ == "__main__":
    main()
