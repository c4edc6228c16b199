"""mutate.py ROOT TARGET [--check | --peers DIRECTORY] [NAME...]: what hack/mutate does.

A mutation is a file `NAME.mutation`:

    # What is defended, in a sentence.
    fails security/a_test_of_the_outside        must fail when the defence is out
    fails path::a_unit_test                     the same, by module and name, as docs/conformance.md has it
    may security/another                        may fail: a race, or a second defence that does not always help
    in runtime/src/rootfs/path.rs
    <<<
    text that is there exactly once
    ===
    what takes its place
    >>>

`in` and the texts may come again. Texts keep their indentation.
"""

import os
import re
import subprocess
import sys

TRIPLE = "x86_64-unknown-linux-gnu"
# By the directory of the sources: package, program, option of rtc-tests, beginning of the areas that test it.
PROGRAMS = {
    "runtime": ("rtc", "rtc", "--rtc"),
    "shim": ("containerd-shim-rtc-v2", "containerd-shim-rtc-v2", "--shim"),
    "cri": ("rtc-cri", "rtc-cri", "--cri"),
}
# Longest that the tests of one mutation may take, in seconds: without a defence they may hang. The first build takes long.
LIMIT, BUILD_LIMIT = 900, 7200


class Mutation:
    def __init__(self, path):
        self.name = os.path.basename(path).removesuffix(".mutation")
        self.what, self.fails, self.may, self.changes = "", [], [], []
        file, texts, part = None, None, None
        for number, line in enumerate(open(path, encoding="utf-8").read().splitlines(), 1):
            if part is not None and line not in ("===", ">>>"):
                texts[part].append(line)
            elif line == "<<<":
                texts, part = [[], []], 0
            elif line == "===":
                part = 1
            elif line == ">>>":
                self.changes.append((file, "\n".join(texts[0]) + "\n", "\n".join(texts[1]) + "\n" if texts[1] else ""))
                part = None
            elif line.startswith("# "):
                self.what = self.what or line[2:]
            elif line.strip():
                word, _, rest = line.partition(" ")
                if word == "fails":
                    self.fails.append(rest.strip())
                elif word == "may":
                    self.may.append(rest.strip())
                elif word == "in":
                    file = rest.strip()
                else:
                    sys.exit(f"{path}:{number}: {line!r}: must be fails, may, in, or <<<")
        if not (self.what and self.fails and self.changes):
            sys.exit(f"{path}: needs a sentence, a test that fails and a change")

    def crates(self):
        return sorted({file.split("/")[0] for file, _, _ in self.changes})

    def apply(self, tree):
        """The files as they become; an error says what does not fit any more."""
        files = {}
        for file, old, new in self.changes:
            text = files.get(file) or open(os.path.join(tree, file), encoding="utf-8").read()
            count = text.count(old)
            if count != 1:
                raise ValueError(f"{file}: the text to be replaced is there {count} times, not once:\n{old}")
            files[file] = text.replace(old, new)
        return files


def tracked(root):
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return [name for name in output.decode().split("\0") if name and os.path.isfile(os.path.join(root, name))]


def write(path, data):
    """Only what differs, so that cargo sees what changed."""
    try:
        if open(path, "rb").read() == data:
            return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def copy(root, tree):
    names = tracked(root)
    for name in names:
        write(os.path.join(tree, name), open(os.path.join(root, name), "rb").read())
    for directory, _, files in os.walk(tree):
        for file in files:
            path = os.path.join(directory, file)
            if os.path.relpath(path, tree) not in names:
                os.remove(path)


def known_tests(root):
    """Every test as `area/name` or `module::name`."""
    output = subprocess.run([os.path.join(root, "hack", "dev"), "tests"], capture_output=True, text=True, check=True)
    return set(output.stdout.split())


def short(path):
    """`rootfs::tests::hostile::name` as `hostile::name`, `rootfs::path::tests::name` as `path::name`."""
    return "::".join([part for part in path.split("::") if part != "tests"][-2:])


class Bench:
    """Where sources are built and tested."""

    def __init__(self, root, target, peers, mutations):
        self.root, self.tree = root, os.path.join(target, "mutate", "tree")
        self.target, self.ours = os.path.join(target, "mutate", "target"), target
        self.peers = peers
        self.log = open(os.path.join(target, "mutate", "log"), "w", encoding="utf-8")
        # The tests of each crate that the mutations of it name: all are run for each.
        self.named = {crate: set() for crate in PROGRAMS}
        for mutation in mutations:
            for crate in mutation.crates():
                self.named[crate].update(mutation.fails + mutation.may)

    def run(self, command, limit=LIMIT, **options):
        self.log.write(f"$ {' '.join(command)}\n")
        self.log.flush()
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, errors="replace", **options)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{command[0]} {command[1]} did not end in {limit} s") from error
        self.log.write(ended.stdout + ended.stderr)
        self.log.flush()
        return ended

    def cargo(self, *words):
        environment = dict(os.environ, CARGO_TARGET_DIR=self.target)
        limit = BUILD_LIMIT if words[0] == "build" or "--no-run" in words else LIMIT
        return self.run(["cargo", *words], limit, cwd=self.tree, env=environment)

    def program(self, crate, mutated):
        return os.path.join(self.target if mutated else self.ours, TRIPLE, "debug", PROGRAMS[crate][1])

    def build_tests(self, crates):
        """What is not mutated: the outside tests, and the programs that tests of these crates need besides."""
        packages = ["rtc-tests"] + [PROGRAMS[crate][0] for crate in PROGRAMS if crates - {"runtime"} or crate in crates]
        words = [word for package in packages for word in ("--package", package)]
        ended = self.run(["cargo", "build", "--quiet", "--locked", *words], BUILD_LIMIT, cwd=self.root)
        if ended.returncode != 0:
            sys.exit(ended.stderr)

    def failing(self, crates):
        """The named tests of these crates that fail in the tree as it is."""
        failed = set()
        for crate in crates:
            package = PROGRAMS[crate][0]
            units = sorted(name.split("::")[1] for name in self.named[crate] if "::" in name)
            if units:
                ended = self.cargo("test", "--quiet", "--locked", "--package", package, "--lib", "--bins", "--no-run")
                if ended.returncode != 0:
                    raise ValueError("does not build:\n" + ended.stderr[-3000:])
                ended = self.cargo("test", "--locked", "--package", package, "--lib", "--bins", "--no-fail-fast", "--", *units)
                failed |= {short(name) for name in re.findall(r"^test (\S+) \.\.\. FAILED$", ended.stdout, re.M)}
                # One that ends its process, as a panic in a child may.
                if ended.returncode not in (0, 101):
                    raise ValueError(f"the unit tests ended with status {ended.returncode}")
            outside = sorted(name for name in self.named[crate] if "/" in name)
            if outside:
                ended = self.cargo("build", "--quiet", "--locked", "--package", package)
                if ended.returncode != 0:
                    raise ValueError("does not build:\n" + ended.stderr[-3000:])
                failed |= self.outside(crate, outside)
        return failed

    def outside(self, crate, names):
        command = [os.path.join(self.ours, TRIPLE, "debug", "rtc-tests"), "--strict", "--exact", "--timeout", "60"]
        for each, (_, _, option) in PROGRAMS.items():
            program = self.program(each, each == crate)
            # One that these tests do not run need not be built.
            command += [option, program if os.path.exists(program) else "/bin/true"]
        if self.peers:
            command += ["--peers", self.peers]
        ended = self.run(command + names, cwd=self.root)
        skipped = re.findall(r"^skip   (\S+): (.*)$", ended.stdout, re.M)
        if skipped:
            raise ValueError(f"skipped: {skipped}")
        if not re.search(r"^\d+ passed, \d+ failed, \d+ skipped$", ended.stdout, re.M):
            raise ValueError("the outside tests broke off:\n" + ended.stderr[-1000:])
        return set(re.findall(r"^failed: (\S+)$", ended.stdout, re.M))


def try_out(bench, mutation):
    """Its table, and whether it holds."""
    changed = mutation.apply(bench.root)
    for file, text in changed.items():
        write(os.path.join(bench.tree, file), text.encode())
    failed = bench.failing(mutation.crates())
    rows = [(test, "fails" if test in failed else "PASSES") for test in mutation.fails]
    rows += [(test, "may fail: " + ("fails" if test in failed else "passes")) for test in mutation.may]
    rows += [(test, "FAILS, and is not named") for test in sorted(failed - set(mutation.fails) - set(mutation.may))]
    return rows


def main():
    root, target, *words = sys.argv[1:]
    directory = os.path.join(root, "hack", "mutate.d")
    files = sorted(name for name in os.listdir(directory) if name.endswith(".mutation"))
    mutations = [Mutation(os.path.join(directory, name)) for name in files]
    known = known_tests(root)
    wrong = [f"{m.name}: no such test: {test}" for m in mutations for test in m.fails + m.may if test not in known]
    for mutation in mutations:
        try:
            mutation.apply(root)
        except (ValueError, OSError) as error:
            wrong.append(f"{mutation.name}: {error}")
    if wrong:
        sys.exit("\n".join(wrong))
    if words and words[0] == "--check":
        return
    peers, wanted = words[1], words[2:]
    chosen = [m for m in mutations if not wanted or any(word in m.name for word in wanted)]
    if not chosen:
        sys.exit(f"no defence has one of these in its name: {' '.join(wanted)}")
    crates = {crate for mutation in chosen for crate in mutation.crates()}
    os.makedirs(os.path.join(target, "mutate"), exist_ok=True)
    bench = Bench(root, target, peers, chosen if wanted else mutations)
    bench.build_tests(crates)
    copy(root, bench.tree)
    passed = failed = 0

    def row(defence, test, result):
        print(f"{defence:28} {test:110} {result}", flush=True)

    row("defence", "test", "result without it")
    for mutation in [None, *chosen]:
        name = mutation.name if mutation else "(nothing taken out)"
        copy(root, bench.tree)
        try:
            if mutation:
                rows = try_out(bench, mutation)
            else:
                rows = [(test, "FAILS") for test in sorted(bench.failing(sorted(crates)))] or [("all", "pass")]
        except ValueError as error:
            rows = [("", f"FAILED: {error}")]
        for test, result in rows:
            row(name, test, result)
        if any("FAIL" in result or "PASSES" in result for _, result in rows):
            failed += 1
        else:
            passed += 1
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
