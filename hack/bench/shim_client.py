"""containerd's side of a shim, as far as the benchmark needs it: the binary's `start`, the Task API over ttrpc, and an
events service that takes everything. Messages are written by hand: a few fields of protobuf need no library."""

import os
import re
import socket
import struct
import subprocess
import time

OPTIONS = "containerd.runc.v1.Options"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
REQUEST, RESPONSE = 1, 2
PATIENCE = 30  # seconds


class Refused(Exception):
    """The shim answered with an error."""


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(fields):
    """{number: str, bytes, int or bool} as protobuf; what is empty is left out."""
    out = bytearray()
    for number, value in fields.items():
        if not value:
            continue
        if isinstance(value, int):
            out += varint(number << 3) + varint(int(value))
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return bytes(out)


def fields(data):
    """{number: value} of a message; of a repeated field the last one."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        elif key & 7 == 2:
            length = number()
            found[key >> 3] = data[at : at + length]
            at += length
        else:
            raise ValueError(f"field of type {key & 7}")
    return found


def frame(stream, kind, body):
    return struct.pack(">IIBB", len(body), stream, kind, 0) + body


def read_frame(connection):
    """(stream, type, body), or None at the end."""

    def exactly(length):
        data = b""
        while len(data) < length:
            part = connection.recv(length - len(data))
            if not part:
                return None
            data += part
        return data

    header = exactly(10)
    if header is None:
        return None
    length, stream, kind, _ = struct.unpack(">IIBB", header)
    return stream, kind, exactly(length) if length else b""


def serve_events(path):
    """A process that answers every request on this socket with nothing. Returns its pid."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1000)
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    try:
        import selectors

        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                try:
                    got = read_frame(key.fileobj)
                    if got:
                        key.fileobj.sendall(frame(got[0], RESPONSE, b""))
                except OSError:
                    got = None
                if not got:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    finally:
        os._exit(1)


class Connection:
    """A client of a shim's Task service."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.stream = 1

    def call(self, method, request):
        """{number: value} of the answer."""
        body = message({1: "containerd.task.v3.Task", 2: method, 3: message(request)})
        self.socket.sendall(frame(self.stream, REQUEST, body))
        self.stream += 2
        got = read_frame(self.socket)
        if got is None:
            raise Refused(f"{method}: the shim hung up")
        answer = fields(got[2])
        status = fields(answer.get(1, b""))
        if status.get(1):
            raise Refused(f"{method}: code {status[1]}: {status.get(2, b'').decode(errors='replace')}")
        return fields(answer.get(2, b""))

    def close(self):
        self.socket.close()


class Shim:
    """A shim that was started for a bundle. `launch` is the launcher and its cgroups; `ready` is called right before the
    program starts, and `wall` is from there to the first answer, in ms."""

    def __init__(self, launch, program, bundle, id, environment, ready=lambda: None):
        namespace, address = environment["NAMESPACE"], environment["GRPC_ADDRESS"]
        words = ["-namespace", namespace, "-address", address, "-publish-binary", "/bin/true", "-id", id, "start"]
        # What containerd 2.3 and newer sends; older ones only give the flags and the environment.
        events = environment["TTRPC_ADDRESS"]
        parameters = {1: id, 2: namespace, 4: "v2.4.0", 5: events, 6: address, 7: "/bin/true"}
        with open(bundle + "/parameters", "wb") as f:
            f.write(message(parameters))
        said, say = os.pipe()
        heard, hear = os.pipe()
        with open(bundle + "/parameters", "rb") as f:
            process = subprocess.Popen(
                [*launch, str(say), str(heard), "--", program, *words],
                cwd=bundle,
                env=environment,
                stdin=f,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(say, heard),
            )
        os.close(say)
        os.close(heard)
        os.read(said, 1)
        ready()
        begin = time.perf_counter()
        os.write(hear, b"g")
        output = process.stdout.read()
        found = re.search(rb'unix://([^\s"\0-\x1f]+)', output)
        if not found:
            raise Refused(f"start: {output.decode(errors='replace')[-300:]}")
        self.path = found[1].decode()
        self.connection = Connection(self.path)
        self.pid = self.connection.call("Connect", {1: id})[1]
        self.wall = (time.perf_counter() - begin) * 1e3
        process.wait()
        process.stdout.close()
        os.close(said)
        os.close(hear)

    def call(self, method, request):
        return self.connection.call(method, request)

    def shutdown(self):
        try:
            self.call("Shutdown", {})
        except (Refused, OSError):
            pass  # it may end before it has answered
        self.connection.close()
