"""cluster-images.py REGISTRY TREE PROGRAMS OUT CLUSTER: pushes what images.py does by the first four, and the images of
a cluster's own programs, which are in the directory CLUSTER, by the names that its kubeadm gives them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile

CLUSTER = sys.argv.pop()
import images  # pushes its own, by the other arguments

BIN = "usr/local/bin/"
# capability.h: VFS_CAP_REVISION_2 with the effective bit, and CAP_NET_BIND_SERVICE (10) permitted.
MAY_BIND_LOW_PORTS = bytes([1, 0, 0, 2, 0, 4, 0, 0] + [0] * 12)
IPTABLES = [family + verb for family in ("iptables", "ip6tables") for verb in ("", "-restore", "-save")]


def add_iptables(layer):
    """This machine's iptables with its extensions and libraries."""
    program = os.path.realpath(shutil.which("iptables"))
    layer.file("usr/sbin/" + os.path.basename(program), images.read(program), 0o755)
    for name in IPTABLES:
        layer.hard_link("usr/sbin/" + name, "usr/sbin/" + os.path.basename(program))
    directory = "/usr/lib/x86_64-linux-gnu/xtables"
    extensions = [f"{directory}/{name}" for name in sorted(os.listdir(directory))]
    for path in extensions:
        layer.file(path[1:], images.read(path), 0o755)
    linked = subprocess.check_output(["ldd", program, *extensions], text=True)
    images.add_libraries(layer, "", sorted(set(re.findall(r"^\s*(lib\S+) => /", linked, re.MULTILINE))))
    layer.directory("run")
    layer.directory("tmp", 0o1777)


def component(programs, name):
    layer = images.Layer()
    layer.file(BIN + name, images.read(f"{programs}/{name}"), 0o755)
    if name == "kube-proxy":
        add_iptables(layer)
    return images.Image([layer.finish()], {"Env": [images.PATH], "Entrypoint": ["/" + BIN + name]})


def coredns(programs):
    """As its project's image is: of a user that may bind port 53 by the program's file capability alone."""
    layer = images.Layer()
    data = images.read(programs + "/coredns")
    info = layer.entry("coredns", tarfile.REGTYPE, 0o755)
    info.size = len(data)
    info.pax_headers = {"SCHILY.xattr.security.capability": MAY_BIND_LOW_PORTS.decode("ascii")}
    layer.tar.addfile(info, images.io.BytesIO(data))
    config = {"Env": [images.PATH], "Entrypoint": ["/coredns"], "User": "65532:65532", "WorkingDir": "/"}
    return images.Image([layer.finish()], config)


def wanted(programs):
    """What kubeadm asks for, as (repository, tag)."""
    version = subprocess.check_output([programs + "/kubeadm", "version", "-o", "short"], text=True).strip()
    listed = subprocess.check_output(
        [programs + "/kubeadm", "config", "images", "list", "--kubernetes-version", version], text=True
    )
    for image in listed.split():
        yield image.split("/", 1)[1].rsplit(":", 1)


def main(address, programs, pause):
    registry = images.Registry(address)
    for repository, tag in wanted(programs):
        name = os.path.basename(repository)
        if name == "pause":
            layer = images.one_file("pause", images.read(pause), 0o755)
            image = images.Image([layer], {"Env": [images.PATH], "Entrypoint": ["/pause"], "User": "65535:65535"})
        elif name == "coredns":
            image = coredns(programs)
        else:
            image = component(programs, name)
        registry.push(repository, [tag], image)


main(sys.argv[1], CLUSTER, sys.argv[3] + "/pause")
