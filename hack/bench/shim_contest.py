"""Runs shims against each other, and prints JSON.

Called by `shim`, in a mount namespace of its own:  shim_contest.py WORK PAUSE N SECTIONS IDLE NAME=SHIM[,RUNTIME]...

Interleaved as in contest.py. CPU is of everything that a shim starts, the container's own processes too: the accounting
of a cgroup (v1, in nanoseconds) above that of the shim and those of its containers."""

import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

import contest
import shim_client

STATE = "/run/rtc-bench"
TREES = ("cpuacct", "memory")
THROUGHPUT = 100 << 20  # bytes
PODS = 10  # of which memory is measured
REST = 12  # seconds after which a pod is at rest: our shim leaves containerd alone after ten without an event


class Contestant:
    def __init__(self, contest, name, shim, runtime):
        self.contest, self.name, self.shim, self.runtime = contest, name, shim, runtime
        self.cgroup = f"{contest.prefix}/{name}"
        self.root = f"{STATE}/{contest.prefix}/root-{name}"
        for tree in TREES:
            os.makedirs(f"/sys/fs/cgroup/{tree}/{self.cgroup}")

    def cpu(self):
        """ms so far, of all that was in its cgroup and below."""
        return number(f"/sys/fs/cgroup/cpuacct/{self.cgroup}/cpuacct.usage") / 1e6

    def pod(self):
        """A shim, started for a bundle of its own, in a cgroup of its own."""
        return Pod(self)


class Pod:
    """A shim and its container."""

    def __init__(self, owner):
        self.owner, contest = owner, owner.contest
        self.id = contest.id()
        self.bundle = f"{STATE}/{contest.prefix}/{self.id}"
        os.makedirs(self.bundle)
        os.mkfifo(self.bundle + "/log")
        self.log = os.open(self.bundle + "/log", os.O_RDWR | os.O_NONBLOCK)
        self.cgroup = f"{owner.cgroup}/shim-{self.id}"
        for tree in TREES:
            os.makedirs(f"/sys/fs/cgroup/{tree}/{self.cgroup}")
        procs = [f"/sys/fs/cgroup/{tree}/{self.cgroup}/cgroup.procs" for tree in TREES]
        self.write("true")

        def ready():
            self.cpu_before = owner.cpu()

        environment = contest.environment
        self.shim = shim_client.Shim(
            [contest.work + "/launch", *procs], owner.shim, self.bundle, self.id, environment, ready
        )
        self.execs = 0
        self.fifos = []

    def write(self, mode, args=None):
        with open(f"{self.owner.contest.work}/bundles/{mode if mode != 'true' else 'default'}/config.json") as f:
            config = json.load(f)
        config["linux"]["cgroupsPath"] = f"/{self.owner.cgroup}/{self.id}"
        if args:
            config["process"]["args"] = args
        self.process = config["process"]
        with open(self.bundle + "/config.json", "w") as f:
            json.dump(config, f)

    def fifo(self, name):
        """Path of a FIFO that something has open for reading."""
        path = f"{self.bundle}/{name}"
        os.mkfifo(path)
        self.fifos.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return path

    def create(self, mode, args=None):
        self.write(mode, args)
        options = {7: self.owner.root, 6: self.owner.runtime}
        any_options = shim_client.message({1: shim_client.OPTIONS, 2: shim_client.message(options)})
        request = {1: self.id, 2: self.bundle, 5: "", 6: self.fifo("stdout"), 7: self.fifo("stderr"), 10: any_options}
        # Field 5 is stdin, as a pod without `stdin: true` has none.
        self.task = self.shim.call("Create", request)[1]

    def start(self):
        self.shim.call("Start", {1: self.id})

    def add_exec(self, args):
        """The request of an exec, whose making is none of the shim's time."""
        self.execs += 1
        id = f"exec{self.execs}"
        process = dict(self.process, args=args)
        spec = shim_client.message({1: shim_client.PROCESS, 2: json.dumps(process).encode()})
        return id, {1: self.id, 2: id, 5: self.fifo(id + "-out"), 6: self.fifo(id + "-err"), 7: spec}

    def run_exec(self, id, request):
        call = self.shim.call
        call("Exec", request)
        call("Start", {1: self.id, 2: id})
        status = call("Wait", {1: self.id, 2: id}).get(1, 0)
        call("Delete", {1: self.id, 2: id})
        return status

    def end(self):
        self.shim.call("Kill", {1: self.id, 3: 9, 4: 1})
        self.shim.call("Wait", {1: self.id})
        self.shim.call("Delete", {1: self.id})

    def remove(self, force=False):
        """The shim ends; so does what is left of a container where something has failed."""
        if force:
            for verb, request in (("Kill", {1: self.id, 3: 9, 4: 1}), ("Wait", {1: self.id}), ("Delete", {1: self.id})):
                try:
                    self.shim.call(verb, request)
                except (shim_client.Refused, OSError):
                    pass
        self.shim.shutdown()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{self.shim.pid}"):
            contest.reap()
            if time.monotonic() > deadline:
                raise contest.Failed("the shim does not end")
            time.sleep(0.001)
        for fd in [self.log, *self.fifos]:
            os.close(fd)
        shutil.rmtree(self.bundle)
        for tree in TREES:
            for _ in range(100):
                try:
                    os.rmdir(f"/sys/fs/cgroup/{tree}/{self.cgroup}")
                    break
                except OSError:
                    time.sleep(0.01)


class Contest:
    def __init__(self, work, pause, n, idle, contestants):
        self.work, self.pause, self.n, self.idle = work, pause, n, idle
        self.prefix = f"rtcshim{os.getpid()}"
        self.count = 0
        os.makedirs(f"{STATE}/{self.prefix}")
        events = f"{STATE}/{self.prefix}/events.sock"
        self.events = shim_client.serve_events(events)
        self.environment = {
            "PATH": os.environ["PATH"],
            "TTRPC_ADDRESS": events,
            "GRPC_ADDRESS": f"{STATE}/{self.prefix}/containerd.sock",
            "NAMESPACE": self.prefix,
            "MAX_SHIM_VERSION": "3",
            "GOMAXPROCS": "2",  # as containerd 1.6 and newer set it
        }
        self.contestants = []
        for word in contestants:
            name, programs = word.split("=", 1)
            shim, _, runtime = programs.partition(",")
            self.contestants.append(Contestant(self, name, shim, runtime))

    def id(self):
        self.count += 1
        return f"{self.prefix}-{self.count}"

    def collect(self, sampler):
        """{row: {contestant: cell}} of a sampler(contestant) -> {row: {"wall":, "cpu":}}."""
        samples, failures = {}, {}
        for _ in range(self.n):
            for owner in self.contestants:
                if len(failures.get(owner.name, [])) >= contest.OFTEN:
                    continue
                try:
                    for row, sample in sampler(owner).items():
                        samples.setdefault(row, {}).setdefault(owner.name, []).append(sample)
                except (contest.Failed, shim_client.Refused, OSError) as e:
                    failures.setdefault(owner.name, []).append(str(e))
                    print(f"bench: {owner.name}: {e}", file=sys.stderr)
        return {
            row: {o.name: summary(of.get(o.name, []), failures.get(o.name, [])) for o in self.contestants}
            for row, of in samples.items()
        }

    # ---- sections ----

    def section_life(self):
        return self.lives("default", "")

    def section_k8s(self):
        return self.lives("k8s", "-k8s")

    def lives(self, mode, suffix):
        rows = self.collect(lambda owner: self.life(owner, mode))
        # Its time on the wall is mostly this program's.
        rows["all"] = {n: {"value": round(c["cpu"], 1)} if "cpu" in c else c for n, c in rows.get("all", {}).items()}
        return {row + suffix: cells for row, cells in rows.items()}

    def life(self, owner, mode):
        """One pod with one container, from start to end, with an exec in it."""
        result = {}

        def timed(row, action, *arguments):
            before, begin = owner.cpu(), time.perf_counter()
            answer = action(*arguments)
            wall = (time.perf_counter() - begin) * 1e3
            result[row] = {"wall": wall, "cpu": owner.cpu() - before}
            return answer

        pod = owner.pod()
        result["shim"] = {"wall": pod.shim.wall, "cpu": owner.cpu() - pod.cpu_before}
        try:
            def up():
                pod.create("sleep-" + mode)
                pod.start()

            timed("up", up)
            # The first of a shim is not like those that follow.
            for row, args, status in (
                ("witness", ["/bin/sh", "-c", "exit 42"], 42),
                ("exec", ["/bin/true"], 0),
                ("exec", ["/bin/true"], 0),
            ):
                id, request = pod.add_exec(args)
                found = timed(row, pod.run_exec, id, request)
                if found != status:
                    raise contest.Failed(f"exec of a program that exits with {status}: it exited with {found}")
            del result["witness"]
            timed("down", pod.end)
        except BaseException:
            pod.remove(force=True)
            raise
        pod.remove()
        result["all"] = {"wall": 0, "cpu": owner.cpu() - pod.cpu_before}
        return result

    def section_memory(self):
        """Of pods that run one container each, at rest."""
        rows = {}
        for owner in self.contestants:
            pods = []
            try:
                for _ in range(PODS):
                    pods.append(owner.pod())
                    pods[-1].create("sleep-k8s")
                    pods[-1].start()
                time.sleep(REST)
                figures = [memory(pod) for pod in pods]
                for row in figures[0]:
                    value = round(statistics.median(figure[row] for figure in figures))
                    rows.setdefault(row, {})[owner.name] = {"value": value}
                for pod in pods:
                    for _ in range(3):
                        if pod.run_exec(*pod.add_exec(["/bin/true"])):
                            raise contest.Failed("exec of true")
                time.sleep(REST)
                after = round(statistics.median(memory(pod)["dirty"] for pod in pods))
                rows.setdefault("dirty-execs", {})[owner.name] = {"value": after}
                if owner.runtime:
                    rows.setdefault("pause", {})[owner.name] = {"value": self.pause_memory(owner)}
            finally:
                for pod in pods:
                    pod.remove(force=True)
        return rows

    def pause_memory(self, owner):
        """KiB that a pod's pause process needs, which pods of the others have: its pages but for its program's, and the
        kernel's."""
        cgroup = f"/sys/fs/cgroup/memory/{owner.cgroup}/pause"
        os.makedirs(cgroup)
        script = f'echo 0 >{cgroup}/cgroup.procs; exec "$@"'
        process = subprocess.Popen(["/bin/sh", "-c", script, "sh", self.pause])
        time.sleep(0.5)
        with open(f"{cgroup}/memory.stat") as f:
            usage = int(re.search(r"^rss (\d+)", f.read(), re.M)[1])
        usage = (usage + number(f"{cgroup}/memory.kmem.usage_in_bytes")) // 1024
        process.kill()
        process.wait()
        os.rmdir(cgroup)
        return usage

    def section_throughput(self):
        """A container that writes to its standard output as fast as it can."""
        rows = {"out": {}, "out-shim": {}}
        samples = {}
        for _ in range(5):
            for owner in self.contestants:
                wall, cpu = self.write_out(owner)
                samples.setdefault(owner.name, []).append((wall, cpu))
        for name, of in samples.items():
            wall, cpu = (statistics.median(s[i] for s in of) for i in (0, 1))
            rows["out"][name] = {"value": round(THROUGHPUT / (1 << 20) / wall * 1e3)}
            rows["out-shim"][name] = {"value": round(cpu, 2)}
        return rows

    def write_out(self, owner):
        pod = owner.pod()
        try:
            blocks = THROUGHPUT >> 16
            pod.create("sleep-default", ["/bin/dd", "if=/dev/zero", "bs=64k", f"count={blocks}"])
            read = []

            def reader():
                fd = os.open(f"{pod.bundle}/stdout", os.O_RDONLY)
                while data := os.read(fd, 1 << 20):
                    read.append(len(data))
                os.close(fd)

            thread = threading.Thread(target=reader)
            thread.start()
            before, begin = cpu_of(pod.shim.pid), time.perf_counter()
            pod.start()
            pod.shim.call("Wait", {1: pod.id})
            wall, cpu = (time.perf_counter() - begin) * 1e3, cpu_of(pod.shim.pid) - before
            pod.shim.call("Delete", {1: pod.id})
            thread.join(10)
            if sum(read) != THROUGHPUT:
                raise contest.Failed(f"{sum(read)} bytes of {THROUGHPUT} arrived")
            return wall, cpu
        finally:
            pod.remove(force=True)

    def section_idle(self):
        """CPU ms per 30 s of many pods at rest."""
        rows = {"idle": {}, "idle-count": {}}
        for owner in self.contestants:
            count = self.idle if not owner.runtime else min(self.idle, 50)
            pods = []
            try:
                for _ in range(count):
                    pods.append(owner.pod())
                    pods[-1].create("sleep-default")
                    pods[-1].start()
                time.sleep(REST)
                before = owner.cpu()
                time.sleep(30)
                rows["idle"][owner.name] = {"value": round((owner.cpu() - before) / count, 3)}
                rows["idle-count"][owner.name] = {"value": count}
            finally:
                for pod in pods:
                    pod.remove(force=True)
        return rows

    # ---- afterwards ----

    def leftovers(self):
        os.kill(self.events, 9)
        os.waitpid(self.events, 0)
        left = []
        for tree in os.listdir("/sys/fs/cgroup"):
            top = f"/sys/fs/cgroup/{tree}/{self.prefix}"
            for directory, _, _ in os.walk(top, topdown=False):
                name = os.path.relpath(directory, top).split("/")
                if len(name) > 1:
                    left.append([name[0], directory])
                try:
                    os.rmdir(directory)
                except OSError as e:
                    left.append([name[0], f"{directory}: {e.strerror}"])
        shutil.rmtree(f"{STATE}/{self.prefix}")
        return left


def number(path):
    with open(path) as f:
        return int(f.read())


def memory(pod):
    """KiB, and threads."""
    pid = pod.shim.pid
    with open(f"/proc/{pid}/smaps_rollup") as f:
        maps = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", f.read(), re.M)}
    with open(f"/proc/{pid}/status") as f:
        status = f.read()
    cgroup = f"/sys/fs/cgroup/memory/{pod.cgroup}/memory."
    return {
        "uss": maps["Private_Clean"] + maps["Private_Dirty"],
        "dirty": maps["Private_Dirty"],
        "rss": maps["Rss"],
        "pss": maps["Pss"],
        "cgroup": number(cgroup + "usage_in_bytes") // 1024,
        "kernel": number(cgroup + "kmem.usage_in_bytes") // 1024,
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
    }


def cpu_of(pid):
    """ms of a process, all its threads."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as f:
            total += int(f.read().split()[0])
    return total / 1e6


def summary(samples, failures):
    """Medians, and 10th and 90th percentiles."""
    if failures or not samples:
        return {"failed": f"{len(failures)} of {len(samples) + len(failures)}: {failures[0] if failures else ''}"}
    cell = {"n": len(samples)}
    for key in ("wall", "cpu"):
        values = sorted(s[key] for s in samples)
        cell[key] = round(statistics.median(values), 3)
        cell[key + "-p10"], cell[key + "-p90"] = (values[int(f * (len(values) - 1))] for f in (0.1, 0.9))
    return cell


def main():
    work, pause, n, sections, idle, *contestants = sys.argv[1:]
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ.clear()
    os.environ.update(PATH=path, HOME="/root", LANG="C.UTF-8")
    ctypes.CDLL(None).prctl(contest.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    rows, left = {}, []
    run = Contest(work, pause, int(n), int(idle), contestants)
    try:
        for section in sections.split(","):
            start = time.monotonic()
            rows |= getattr(run, "section_" + section)()
            print(f"bench: shim {section}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    finally:
        contest.reap()
        left = run.leftovers()
        for owner, path in left:
            print(f"bench: left behind by {owner}: {path}", file=sys.stderr)
    json.dump({"rows": rows, "left": left}, sys.stdout)


if __name__ == "__main__":
    main()
