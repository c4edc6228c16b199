"""images.py REGISTRY TREE PROGRAMS OUT: makes the images that critest uses and pushes them to a plain-http registry.

TREE is Debian packages unpacked (busybox, nginx and its libraries), PROGRAMS holds our static `pause` and
`setuid`. Into OUT go `digest` and the archives. The same input makes the same images, to the digest.

critest pulls by the real names (registry.k8s.io/..., gcr.io/k8s-staging-cri-tools/...); a mirror for `_default` asks
this registry for their paths.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.parse

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EPOCH = 1700000000
CREATED = "2023-11-14T22:13:20Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NGINX_LIBRARIES = ("libcrypt.so.1", "libpcre2-8.so.0", "libssl.so.3", "libcrypto.so.3", "libz.so.1")

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
www-data:x:33:
users:x:100:
nogroup:x:65534:
"""


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode(document):
    return json.dumps(document, sort_keys=True).encode()


class Layer:
    """A layer being put together; parents of what is added are made."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)
        self.made = {""}

    def entry(self, name, kind, mode, owner=(0, 0)):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, (info.uid, info.gid) = kind, mode, EPOCH, owner
        return info

    def directory(self, name, mode=0o755, owner=(0, 0)):
        if name not in self.made:
            self.directory(os.path.dirname(name))
            self.made.add(name)
            self.tar.addfile(self.entry(name, tarfile.DIRTYPE, mode, owner))

    def file(self, name, data, mode=0o644):
        data = data.encode() if isinstance(data, str) else data
        self.directory(os.path.dirname(name))
        info = self.entry(name, tarfile.REGTYPE, mode)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def hard_link(self, name, target):
        info = self.entry(name, tarfile.LNKTYPE, 0o755)
        info.linkname = target
        self.tar.addfile(info)

    def finish(self):
        """The layer as (digest of the tar, the tar compressed)."""
        self.tar.close()
        raw = self.buffer.getvalue()
        return digest(raw), gzip.compress(raw, 6, mtime=0)


class Image:
    """Blobs, and the index that names them."""

    def __init__(self, layers, config):
        document = {
            "created": CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff for diff, _ in layers]},
            "history": [{"created": CREATED, "created_by": "hack/peers"} for _ in layers],
        }
        self.config = encode(document)
        self.layers = [compressed for _, compressed in layers]
        described = [self.describe(LAYER, layer) for layer in self.layers]
        self.manifest = encode(
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.describe(CONFIG, self.config), "layers": described}
        )
        self.index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [self.manifest_entry()]})

    @staticmethod
    def describe(kind, data):
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    def manifest_entry(self):
        return {**self.describe(MANIFEST, self.manifest), "platform": {"architecture": "amd64", "os": "linux"}}

    def archive(self, path, name):
        """An OCI layout in a tar, for `ctr images import`."""
        annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        index = {"schemaVersion": 2, "manifests": [{**self.manifest_entry(), "annotations": annotations}]}
        tree = Layer()
        tree.file("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
        tree.file("index.json", encode(index))
        for blob in (self.config, self.manifest, *self.layers):
            tree.file("blobs/sha256/" + digest(blob).split(":")[1], blob)
        tree.tar.close()
        with open(path, "wb") as out:
            out.write(tree.buffer.getvalue())


class Registry:
    """Client of a registry (OCI distribution specification 1.0, "Push")."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=60)
        for _ in range(200):
            try:
                self.connection.connect()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit(f"no registry at {address}")

    def call(self, wanted, method, path, body=None, kind="application/octet-stream"):
        self.connection.request(method, path, body=body, headers={"Content-Type": kind})
        response = self.connection.getresponse()
        text = response.read()
        if response.status != wanted:
            sys.exit(f"{method} {path}: {response.status} {text!r}")
        return response

    def blob(self, repository, data):
        location = self.call(202, "POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
        parts = urllib.parse.urlparse(location)
        query = "&".join(filter(None, [parts.query, "digest=" + digest(data)]))
        self.call(201, "PUT", f"{parts.path}?{query}", data)

    def push(self, repository, tags, image):
        for data in (image.config, *image.layers):
            self.blob(repository, data)
        self.call(201, "PUT", f"/v2/{repository}/manifests/{digest(image.manifest)}", image.manifest, MANIFEST)
        for tag in tags:
            self.call(201, "PUT", f"/v2/{repository}/manifests/{tag}", image.index, INDEX)
        print(f"{repository}:{','.join(tags)} {digest(image.index)}")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def add_libraries(layer, tree, names):
    """The C library's loader, and these libraries."""
    for library in names:
        name = "lib/x86_64-linux-gnu/" + library
        places = [place for place in (f"{tree}/{name}", f"{tree}/usr/{name}") if os.path.exists(place)]
        layer.file(name, read(places[0]), 0o755)
    layer.file("lib64/ld-linux-x86-64.so.2", read(tree + "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), 0o755)


def busybox_layer(tree):
    """Debian's busybox under all its names, which are hard links: a test masks one of them, which must not mask all.

    The one with libraries: the shell of the static one runs its own `ls` rather than the masked /bin/ls.
    """
    program = tree + "/bin/busybox"
    layer = Layer()
    layer.file("bin/busybox", read(program), 0o755)
    for applet in subprocess.check_output([program, "--list"], text=True).split():
        if applet != "busybox":
            layer.hard_link("bin/" + applet, "bin/busybox")
    add_libraries(layer, tree, ["libc.so.6", "libresolv.so.2"])
    # Tests also call what Debian's busybox lacks.
    layer.file("bin/pgrep", '#!/bin/sh\nexec pidof "$1"\n', 0o755)
    layer.file("bin/ipcs", "#!/bin/sh\nexec cat /proc/sysvipc/shm\n", 0o755)
    for name in ("dev", "etc", "usr", "usr/bin", "var", "var/www"):
        layer.directory(name)
    layer.directory("home", owner=(65534, 65534))
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    return layer.finish()


def nginx_layer(tree, port):
    """The real nginx: tests look for its master process, its pid file and its log."""
    layer = Layer()
    layer.file("usr/sbin/nginx", read(tree + "/usr/sbin/nginx"), 0o755)
    add_libraries(layer, tree, NGINX_LIBRARIES)
    layer.file("etc/nginx/mime.types", read(tree + "/etc/nginx/mime.types"))
    layer.file(
        "etc/nginx/nginx.conf",
        "user www-data; worker_processes 1; pid /var/run/nginx.pid; error_log /dev/stderr notice;\n"
        "events { worker_connections 256; }\n"
        "http { include mime.types; access_log /dev/stdout;\n"
        f"  server {{ listen {port}; location / {{ root /usr/share/nginx/html; index index.html; }} }} }}\n",
    )
    layer.file("usr/share/nginx/html/index.html", "<html><body><h1>Welcome to nginx!</h1></body></html>\n")
    for name in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
        layer.directory("var/lib/nginx/" + name)
    for name in ("var/run", "var/log/nginx"):
        layer.directory(name)
    return layer.finish()


def one_file(name, data="", mode=0o644):
    layer = Layer()
    layer.file(name, data, mode)
    return layer.finish()


def push_servers(registry, tree, base):
    shell = {"Env": [PATH]}
    nginx = {**shell, "Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT"}
    for repository, tags, port in (
        ("e2e-test-images/nginx", ["1.14-2", "1.14-4"], 80),
        ("k8s-staging-cri-tools/hostnet-nginx-amd64", ["latest"], 12003),
    ):
        config = {**nginx, "ExposedPorts": {f"{port}/tcp": {}}}
        registry.push(repository, tags, Image([base, nginx_layer(tree, port)], config))
    layer = Layer()
    layer.file(
        "usr/local/bin/httpd-foreground",
        "#!/bin/sh\necho \"[core:notice] Command line: 'httpd -D FOREGROUND'\"\nexec httpd -f -vv -p 80 -h /var/www/html\n",
        0o755,
    )
    layer.file("var/www/html/index.html", "<html><body><h1>It works!</h1></body></html>\n")
    config = {**shell, "Cmd": ["httpd-foreground"], "ExposedPorts": {"80/tcp": {}}}
    registry.push("e2e-test-images/httpd", ["2.4.39-4"], Image([base, layer.finish()], config))


def push_users(registry, base):
    """One image for each way to write USER, and one whose user has a supplementary group."""
    config = {"Env": [PATH], "Cmd": ["sh"]}
    users = {"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"}
    for name, user in users.items():
        registry.push(f"k8s-staging-cri-tools/test-image-user-{name}", ["latest"], Image([base], {**config, "User": user}))
    layer = Layer()
    layer.file("etc/passwd", PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
    layer.file("etc/group", GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
    layer.directory("home", owner=(65534, 65534))
    layer.directory("home/default-user", owner=(1000, 1000))
    image = Image([base, layer.finish()], {**config, "User": "1000"})
    registry.push("k8s-staging-cri-tools/test-image-predefined-group", ["latest"], image)


def push_names(registry, base, out):
    """Images that differ in one file, for the tests of tags and digests."""
    prefix = "k8s-staging-cri-tools/"

    def image(content):
        return Image([base, one_file(content)], {"Env": [PATH], "Cmd": ["sh"]})

    for name in ("test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"):
        registry.push(prefix + name, ["latest"], image(name))
    registry.push(prefix + "test-image-tags", ["1", "2", "3"], image("same-image"))
    for tag in ("test", "all"):
        registry.push(prefix + "test-image-tag", [tag], image(tag))
    with open(out + "/digest", "w") as file:
        file.write(digest(image("test-image-digest").index) + "\n")


def main(address, tree, programs, out):
    registry = Registry(address)
    base = busybox_layer(tree)
    busybox = Image([base], {"Env": [PATH], "Cmd": ["sh"]})
    registry.push("e2e-test-images/busybox", ["1.29-2", "1.29-4"], busybox)
    busybox.archive(out + "/busybox.tar", "registry.k8s.io/e2e-test-images/busybox:1.29-4")
    config = {"Env": [PATH], "Entrypoint": ["/pause"], "User": "65535:65535"}
    layer = one_file("pause", read(programs + "/pause"), 0o755)
    pause = Image([layer], config)
    registry.push("pause", ["3.10"], pause)
    pause.archive(out + "/pause.tar", "registry.k8s.io/pause:3.10")
    # A test counts and removes all names of 3.9: it must not be the image of the sandboxes.
    registry.push("pause", ["3.9"], Image([layer], {**config, "Labels": {"version": "3.9"}}))
    setuid = one_file("nnp", read(programs + "/setuid"), 0o4755)
    registry.push("e2e-test-images/nonewprivs", ["1.3"], Image([base, setuid], {"Env": [PATH], "Entrypoint": ["/nnp"]}))
    push_servers(registry, tree, base)
    push_users(registry, base)
    push_names(registry, base, out)


main(*sys.argv[1:])
