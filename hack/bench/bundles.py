"""The bundles that every contestant runs, and the seccomp filter that the floor loads.

One root file system (busybox) and a few configurations of it, written out here in full so that no runtime's own
`spec` decides what is measured. `default` is what `runc spec` prints, without a terminal."""

import copy
import ctypes
import json
import os
import shutil
import subprocess

PROFILE = "/usr/share/containers/seccomp.json"

DEFAULT = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/true"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            s: ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"] for s in ("bounding", "effective", "permitted")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    },
    "root": {"path": "", "readonly": True},
    "hostname": "runc",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        },
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": [
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    },
}

# What containerd and CRI-O leave to a container that asks for nothing.
ENGINE_CAPABILITIES = [
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT "
        "KILL AUDIT_WRITE"
    ).split()
]


def make_rootfs(directory):
    """A busybox root file system, made once."""
    if os.path.exists(directory + "/bin/true"):
        return
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp", "run", "root"):
        os.makedirs(f"{directory}/{name}", exist_ok=True)
    shutil.copy("/bin/busybox", directory + "/bin/busybox")
    applets = subprocess.run([directory + "/bin/busybox", "--list"], stdout=subprocess.PIPE, check=True, text=True)
    for applet in applets.stdout.split():
        if applet not in ("busybox", "true"):
            os.symlink("busybox", f"{directory}/bin/{applet}")
    for name in ("hosts", "resolv.conf"):
        open(f"{directory}/etc/{name}", "w").close()
    os.symlink("busybox", directory + "/bin/true")  # last: its presence says that all is there


def engine_seccomp(capabilities):
    """The `linux.seccomp` that an engine makes of the distribution's profile for these capabilities."""
    with open(PROFILE) as f:
        profile = json.load(f)
    rules = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("arches") and "amd64" not in includes["arches"]:
            continue
        if excludes.get("arches") and "amd64" in excludes["arches"]:
            continue
        if not set(includes.get("caps") or []) <= set(capabilities):
            continue
        if set(excludes.get("caps") or []) & set(capabilities):
            continue
        kept = {"names": rule["names"], "action": rule["action"]}
        if rule["action"] == "SCMP_ACT_ERRNO":
            kept["errnoRet"] = rule.get("errnoRet", 1)
        if rule.get("args"):
            kept["args"] = [{k: a[k] for k in ("index", "value", "valueTwo", "op") if k in a} for a in rule["args"]]
        rules.append(kept)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def compile_filter(seccomp, path):
    """Has libseccomp write the profile's classic BPF, as crun and runc have it do."""
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]

    class Comparison(ctypes.Structure):
        _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

    lib.seccomp_rule_add_array.argtypes = [
        context,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Comparison),
    ]
    lib.seccomp_arch_add.argtypes = [context, ctypes.c_uint32]
    lib.seccomp_export_bpf.argtypes = [context, ctypes.c_int]
    lib.seccomp_release.argtypes = [context]
    lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    operators = {
        "SCMP_CMP_" + name: number for number, name in enumerate("_ NE LT LE EQ GE GT MASKED_EQ".split())
    }

    def action(name, errno):
        return 0x7FFF0000 if name == "SCMP_ACT_ALLOW" else 0x00050000 | errno

    default = action(seccomp["defaultAction"], seccomp["defaultErrnoRet"])
    filter_context = lib.seccomp_init(default)
    for arch in (b"x86", b"x32"):
        lib.seccomp_arch_add(filter_context, lib.seccomp_arch_resolve_name(arch))
    for rule in seccomp["syscalls"]:
        what = action(rule["action"], rule.get("errnoRet", 1))
        if what == default:
            continue
        arguments = [
            Comparison(a["index"], operators[a["op"]], a["value"], a.get("valueTwo", 0)) for a in rule.get("args", [])
        ]
        for name in rule["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            if number != -1:  # one that this libseccomp knows
                array = (Comparison * len(arguments))(*arguments)
                lib.seccomp_rule_add_array(filter_context, what, number, len(arguments), array)
    with open(path, "wb") as f:
        lib.seccomp_export_bpf(filter_context, f.fileno())
    lib.seccomp_release(filter_context)


def make(work):
    """Writes everything under `work`; returns nothing. Cheap enough to be done each time."""
    rootfs, binds = work + "/rootfs", work + "/binds"
    make_rootfs(rootfs)
    os.makedirs(binds + "/shm", exist_ok=True)
    for name in ("hosts", "resolv.conf", "termination-log"):
        open(f"{binds}/{name}", "a").close()

    default = copy.deepcopy(DEFAULT)
    default["root"]["path"] = rootfs

    k8s = copy.deepcopy(default)
    process, linux = k8s["process"], k8s["linux"]
    process["capabilities"] = {s: ENGINE_CAPABILITIES for s in ("bounding", "effective", "permitted")}
    process["env"] += [f"SERVICE_{i}_SERVICE_HOST=10.0.0.{i}" for i in range(12)]
    process["oomScoreAdj"] = 999
    k8s["mounts"] = [m for m in k8s["mounts"] if m["destination"] != "/dev/shm"]
    for source, destination in (
        ("shm", "/dev/shm"),
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("termination-log", "/dev/termination-log"),
    ):
        mount = {"destination": destination, "type": "bind", "source": f"{binds}/{source}"}
        k8s["mounts"].append({**mount, "options": ["rbind", "rprivate", "rw"]})
    linux["resources"] |= {
        "memory": {"limit": 128 << 20},
        "cpu": {"shares": 256, "quota": 50000, "period": 100000},
        "pids": {"limit": 512},
    }
    linux["seccomp"] = engine_seccomp(ENGINE_CAPABILITIES)
    compile_filter(linux["seccomp"], work + "/filter.bpf")

    userns = copy.deepcopy(default)
    userns["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    userns["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}

    bundles = {"default": default, "k8s": k8s, "userns": userns}
    for name in ("default", "k8s"):
        sleeper = copy.deepcopy(bundles[name])
        sleeper["process"]["args"] = ["/bin/sleep", "1000"]
        bundles["sleep-" + name] = sleeper
    for name in ("default", "k8s", "userns"):
        witness = copy.deepcopy(bundles[name])
        witness["process"]["args"] = ["/bin/sh", "-c", "exit 42"]
        bundles["witness-" + name] = witness
    for name, config in bundles.items():
        write(work, name, config)


def write(work, name, config):
    """Writes one bundle and returns its directory."""
    directory = f"{work}/bundles/{name}"
    os.makedirs(directory, exist_ok=True)
    with open(directory + "/config.json", "w") as f:
        json.dump(config, f, indent=1)
    return directory
