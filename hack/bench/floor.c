/*
 * The floor under an OCI runtime: makes the same container as the benchmark's bundles ask for, by the system calls
 * that the kernel needs to be told so, and nothing else: no configuration is parsed, no state kept, no program
 * sealed, no error undone. What a runtime costs above this is its own.
 *
 *   floor default|k8s|userns  v1|v2  ROOTFS  BINDS  FILTER  ID  PROGRAM [ARGUMENT...]
 *
 * BINDS is the directory whose files a kubelet would bind into the container, FILTER a file of struct sock_filter
 * (both only looked at for k8s). The cgroup is /sys/fs/cgroup[/CONTROLLER]/ID. Exits as the program does.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

enum mode { DEFAULT, K8S, USERNS };

#define HIERARCHIES 16

/* One directory of the container's: each v1 hierarchy has its own, v2 has one. */
struct cgroup {
    char name[32];  /* of the hierarchy, as /sys/fs/cgroup names it */
    char path[256];
    int dir;
    int procs;
};

static enum mode mode;
static int v2;
static const char *rootfs, *binds, *id;
static char **program;
static struct cgroup cgroups[HIERARCHIES];
static int cgroup_count;
static struct sock_fprog filter;
static int mapped[2]; /* pipe: the parent has written the child's id maps */

static void fail(const char *what) {
    dprintf(2, "floor: %s: %s\n", what, strerror(errno));
    _exit(125);
}

#define MUST(call) do { if ((call) < 0) fail(#call); } while (0)

static int put(int dir, const char *file, const char *text) {
    int fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int n = write(fd, text, strlen(text));
    close(fd);
    return n;
}

/* ---- the parent's half: cgroups ---- */

static void open_cgroup(const char *hierarchy) {
    struct cgroup *c = &cgroups[cgroup_count++];
    snprintf(c->name, sizeof c->name, "%s", hierarchy);
    snprintf(c->path, sizeof c->path, "/sys/fs/cgroup%s%s/%s", v2 ? "" : "/", hierarchy, id);
    MUST(mkdir(c->path, 0755));
    MUST(c->dir = open(c->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    c->procs = -1;
    if (!v2) MUST(c->procs = openat(c->dir, "cgroup.procs", O_WRONLY | O_CLOEXEC));
}

/* A new v1 cpuset is empty, and no process can join it so. */
static void inherit(const struct cgroup *c, const char *file) {
    char path[64], value[256];
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpuset/%s", file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    MUST(fd);
    int length = read(fd, value, sizeof value - 1);
    MUST(length);
    close(fd);
    value[length] = 0;
    MUST(put(c->dir, file, value));
}

static void limit(const struct cgroup *c) {
    static const char *allowed[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:8 rwm", "c 1:7 rwm",
                                    "c 5:0 rwm", "c 1:5 rwm", "c 1:9 rwm", "c 136:* rwm", "c 5:2 rwm"};
    if (!strcmp(c->name, "cpuset")) {
        inherit(c, "cpuset.cpus");
        inherit(c, "cpuset.mems");
    } else if (!strcmp(c->name, "devices")) {
        MUST(put(c->dir, "devices.deny", "a"));
        for (unsigned i = 0; i < sizeof allowed / sizeof *allowed; i++) MUST(put(c->dir, "devices.allow", allowed[i]));
    } else if (mode == K8S && !strcmp(c->name, "memory")) {
        MUST(put(c->dir, "memory.limit_in_bytes", "134217728"));
    } else if (mode == K8S && !strcmp(c->name, "cpu")) {
        MUST(put(c->dir, "cpu.shares", "256"));
        MUST(put(c->dir, "cpu.cfs_quota_us", "50000"));
    } else if (mode == K8S && !strcmp(c->name, "pids")) {
        MUST(put(c->dir, "pids.max", "512"));
    }
}

static void make_cgroups(void) {
    if (v2) {
        open_cgroup("");
        return;
    }
    static const char *names[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        open_cgroup(names[i]);
        limit(&cgroups[cgroup_count - 1]);
    }
}

static void remove_cgroups(void) {
    for (int i = 0; i < cgroup_count; i++)
        while (rmdir(cgroups[i].path) < 0) {
            if (errno != EBUSY) fail(cgroups[i].path);
            sched_yield(); /* the last process is still being taken out */
        }
}

/* ---- the child's half: from its new namespaces to the program ---- */

static void join(void) {
    if (mode == USERNS) {
        char byte;
        close(mapped[1]);
        MUST(read(mapped[0], &byte, 1));
        MUST(setresgid(0, 0, 0));
        MUST(setresuid(0, 0, 0));
    } else {
        for (int i = 0; i < cgroup_count; i++)
            if (cgroups[i].procs >= 0) MUST(write(cgroups[i].procs, "0", 1));
    }
    MUST(unshare(CLONE_NEWCGROUP));
}

#define NO_SUID MS_NOSUID
#define NO_EXEC (MS_NOSUID | MS_NOEXEC)
#define NO_ALL (MS_NOSUID | MS_NOEXEC | MS_NODEV)

static void mount_cgroups(void) {
    if (v2) {
        MUST(mount("cgroup", "sys/fs/cgroup", "cgroup2", NO_ALL | MS_RDONLY, 0));
        return;
    }
    MUST(mount("tmpfs", "sys/fs/cgroup", "tmpfs", NO_ALL, "mode=755"));
    for (int i = 0; i < cgroup_count; i++) {
        char target[128];
        const char *name = cgroups[i].name;
        snprintf(target, sizeof target, "sys/fs/cgroup/%.31s", name);
        MUST(mkdir(target, 0755));
        MUST(mount("cgroup", target, "cgroup", NO_ALL | MS_RDONLY, strcmp(name, "systemd") ? name : "none,name=systemd"));
    }
    MUST(mount(0, "sys/fs/cgroup", 0, MS_REMOUNT | MS_BIND | MS_RDONLY | NO_ALL, 0));
}

static void bind(const char *file, const char *target) {
    char source[256];
    snprintf(source, sizeof source, "%s/%s", binds, file);
    MUST(mount(source, target, 0, MS_BIND | MS_REC, 0));
}

static void mount_all(void) {
    MUST(mount(0, "/", 0, MS_REC | MS_SLAVE, 0));
    MUST(mount(rootfs, rootfs, 0, MS_BIND | MS_REC, 0));
    MUST(chdir(rootfs));
    MUST(mount("proc", "proc", "proc", 0, 0));
    MUST(mount("tmpfs", "dev", "tmpfs", NO_SUID | MS_STRICTATIME, "mode=755,size=65536k"));
    MUST(mkdir("dev/pts", 0755));
    MUST(mkdir("dev/shm", 0755));
    MUST(mkdir("dev/mqueue", 0755));
    MUST(mount("devpts", "dev/pts", "devpts", NO_EXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
    if (mode == K8S)
        bind("shm", "dev/shm");
    else
        MUST(mount("shm", "dev/shm", "tmpfs", NO_ALL, "mode=1777,size=65536k"));
    MUST(mount("mqueue", "dev/mqueue", "mqueue", NO_ALL, 0));
    MUST(mount("sysfs", "sys", "sysfs", NO_ALL | MS_RDONLY, 0));
    mount_cgroups();
    if (mode == K8S) {
        int fd = open("dev/termination-log", O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
        MUST(fd);
        close(fd);
        bind("hosts", "etc/hosts");
        bind("resolv.conf", "etc/resolv.conf");
        bind("termination-log", "dev/termination-log");
    }
}

static void make_devices(void) {
    static const struct { const char *in, *host; int major, minor; } devices[] = {
        {"dev/null", "/dev/null", 1, 3}, {"dev/zero", "/dev/zero", 1, 5}, {"dev/full", "/dev/full", 1, 7},
        {"dev/tty", "/dev/tty", 5, 0}, {"dev/random", "/dev/random", 1, 8}, {"dev/urandom", "/dev/urandom", 1, 9}};
    static const char *links[][2] = {{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"},
                                     {"/proc/self/fd/1", "dev/stdout"}, {"/proc/self/fd/2", "dev/stderr"},
                                     {"/proc/kcore", "dev/core"}, {"pts/ptmx", "dev/ptmx"}};
    umask(0);
    for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) {
        if (mode != USERNS) {
            MUST(mknod(devices[i].in, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)));
            continue;
        }
        int fd = open(devices[i].in, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
        MUST(fd);
        close(fd);
        MUST(mount(devices[i].host, devices[i].in, 0, MS_BIND, 0));
    }
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++) MUST(symlink(links[i][0], links[i][1]));
    umask(022);
}

static void enter_root(void) {
    MUST(syscall(SYS_pivot_root, ".", "."));
    MUST(mount(0, ".", 0, MS_REC | MS_SLAVE, 0));
    MUST(umount2(".", MNT_DETACH));
    MUST(chdir("/"));
    MUST(mount(0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0));
    MUST(sethostname("runc", 4));
}

static void protect(void) {
    static const char *readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    static const char *masked[] = {"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                                   "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                                   "/proc/scsi"};
    for (unsigned i = 0; i < sizeof readonly / sizeof *readonly; i++) {
        if (mount(readonly[i], readonly[i], 0, MS_BIND | MS_REC, 0) == 0)
            MUST(mount(0, readonly[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0));
        else if (errno != ENOENT)
            fail(readonly[i]);
    }
    for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) {
        struct stat st;
        if (stat(masked[i], &st) < 0) continue;
        if (S_ISDIR(st.st_mode))
            MUST(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1"));
        else
            MUST(mount("/dev/null", masked[i], 0, MS_BIND, 0));
    }
}

static void drop_privileges(void) {
    /* AUDIT_WRITE KILL NET_BIND_SERVICE, or the fourteen that a container engine leaves. */
    unsigned long long keep = mode == K8S ? 0xa80425fbULL : 0x20000420ULL;
    struct rlimit files = {1024, 1024};
    MUST(setrlimit(RLIMIT_NOFILE, &files));
    for (int cap = 0; cap <= 40; cap++)
        if (!(keep >> cap & 1)) MUST(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0));
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (mode == K8S) MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{keep, keep, 0}, {keep >> 32, keep >> 32, 0}};
    MUST(syscall(SYS_capset, &header, sets));
}

static void child(void) {
    join();
    mount_all();
    make_devices();
    enter_root();
    protect();
    drop_privileges();
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", 0};
    execve(program[0], program, environment);
    fail(program[0]);
}

static void load_filter(const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    MUST(fd);
    MUST(fstat(fd, &st));
    filter.filter = mmap(0, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (filter.filter == MAP_FAILED) fail(path);
    filter.len = st.st_size / sizeof(struct sock_filter);
    close(fd);
}

static void map_ids(pid_t pid) {
    char path[64], text[16];
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    MUST(put(AT_FDCWD, path, "0 100000 65536"));
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    MUST(put(AT_FDCWD, path, "0 100000 65536"));
    int length = snprintf(text, sizeof text, "%d", pid);
    for (int i = 0; i < cgroup_count; i++)
        if (cgroups[i].procs >= 0) MUST(write(cgroups[i].procs, text, length));
    close(mapped[0]);
    MUST(write(mapped[1], "", 1));
    close(mapped[1]);
}

int main(int argc, char **argv) {
    if (argc < 8) {
        dprintf(2, "usage: floor default|k8s|userns v1|v2 ROOTFS BINDS FILTER ID PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    mode = !strcmp(argv[1], "k8s") ? K8S : !strcmp(argv[1], "userns") ? USERNS : DEFAULT;
    v2 = !strcmp(argv[2], "v2");
    rootfs = argv[3];
    binds = argv[4];
    id = argv[6];
    program = argv + 7;
    if (mode == K8S) load_filter(argv[5]);
    make_cgroups();
    if (mode == USERNS) MUST(pipe2(mapped, O_CLOEXEC));
    struct clone_args args = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET |
                 (mode == USERNS ? CLONE_NEWUSER : 0) | (v2 ? CLONE_INTO_CGROUP : 0),
        .exit_signal = SIGCHLD,
        .cgroup = v2 ? cgroups[0].dir : 0,
    };
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    MUST(pid);
    if (pid == 0) child();
    if (mode == USERNS) map_ids(pid);
    int status;
    MUST(waitpid(pid, &status, 0));
    remove_cgroups();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
