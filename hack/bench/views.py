"""Mount namespaces of one's own in which /sys/fs/cgroup looks like cgroup v1 alone, or v2 alone: shell scripts that end in
the command given to them. State is on a tmpfs, as all of /run is on a host with an init system."""

STATE = """
mkdir -p /run/rtc-bench; mount -t tmpfs state /run/rtc-bench
"""
# The v1 hierarchies alone: theirs are bound to a new tmpfs.
V1 = (
    """
new=$(mktemp -d); mount -t tmpfs -o mode=755 cgroup "$new"
for h in /sys/fs/cgroup/*; do
    if [ -e "$h/cgroup.procs" ] && ! [ -e "$h/cgroup.controllers" ] && ! [ -L "$h" ]; then
        mkdir "$new/${h##*/}"; mount --bind "$h" "$new/${h##*/}"
    fi
done
mount --rbind "$new" /sys/fs/cgroup; umount -l "$new"; rmdir "$new"
"""
    + STATE
)
# The same for v2 alone, on a host that has v1 or both.
V2 = (
    """
if [ -e /sys/fs/cgroup/unified/cgroup.procs ]; then mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup; fi
"""
    + STATE
)


def enter(view, more, command):
    """The command, in this view, after more lines of shell."""
    script = {"v1": V1, "v2": V2}[view] + more + '\nexec "$@"\n'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script, "sh", *command]
