"""Starts processes fast: a server that has imported TensorFlow forks for each of them.

`python train.py` needs 5 seconds of a core before it runs the first line of the project, and the
tests start dozens of processes. `python -IS tests/warm.py train.py ...` behaves like
`python train.py ...`, with the same arguments, environment, folder, files, signals and exit
status. It imports the project anew, but finds its packages loaded.

conftest.py starts the server and names it in WARM_SERVER. Without WARM_SERVER (COLD=1
tests/run.sh), this runs plain Python.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys

PYTHON = [sys.executable, "-IS", os.path.abspath(__file__)]  # in place of [sys.executable]
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PACKAGES = (
    "tensorflow", "tensorflow_text", "keras", "sentencepiece", "google.protobuf.descriptor_pb2",
    "absl.app", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image",
    "tensorboard.backend.event_processing.event_accumulator")
SCRIPT = """#!/usr/bin/env bash
if [[ ${{1-}} == *.py ]]; then exec {python} -IS {warm} "$@"; fi
exec {python} "$@"
"""


# -------------------------------------------------------------------------------------------------
# The process that a test starts: it stands in for the one forked by the server


def client(argv: list[str]) -> int:
    """Lets the server run a program, and ends like it."""
    if "WARM_SERVER" not in os.environ:
        os.execv(sys.executable, [sys.executable, *argv])
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["WARM_SERVER"])
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until there is a process to send them to
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    request = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "ignored": ignored}
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(content)
    pid = int.from_bytes(server.recv(8), "big")
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = int.from_bytes(server.recv(8), "big", signed=True)
    if status < 0:  # a signal
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


# -------------------------------------------------------------------------------------------------
# The server


def start() -> subprocess.Popen:
    """Starts a server and names it to all later processes. It ends with this process or `stop`."""
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    os.environ["WARM_SERVER"] = server.stdout.readline().decode().strip()
    return server


def stop(server: subprocess.Popen):
    del os.environ["WARM_SERVER"]
    server.communicate()


def link_python(folder: str) -> str:
    """Makes commands `python` and `python3` in a folder for PATH, which run files warm."""
    for name in ("python", "python3"):
        path = os.path.join(folder, name)
        with open(path, "w") as script:
            script.write(SCRIPT.format(python=sys.executable, warm=os.path.abspath(__file__)))
        os.chmod(path, 0o755)
    return str(folder)


def serve() -> dict | None:
    """Forks for each request, until standard input ends.

    Returns:
      The request, in a forked process.
    """
    import tempfile

    folder = tempfile.TemporaryDirectory()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder.name}/socket")
    listening.listen(100)
    print(listening.getsockname(), flush=True)
    selector, running = selectors.DefaultSelector(), {}  # running: the process of each connection
    selector.register(sys.stdin, selectors.EVENT_READ, "end")
    selector.register(listening, selectors.EVENT_READ, "request")
    while True:
        for key, _ in selector.select():
            if key.data == "end":
                for pid in running.values():
                    os.kill(pid, signal.SIGKILL)
                folder.cleanup()
                return None
            if key.data == "request":
                connection, _ = listening.accept()
                if "tensorflow" not in sys.modules:
                    import_packages()
                request, files = receive(connection)
                if (pid := os.fork()) == 0:
                    folder._finalizer.detach()  # the server removes it
                    for opened in (listening, selector, connection, *running):
                        opened.close()
                    request["files"] = files
                    return request
                for file in files:
                    os.close(file)
                running[connection] = pid
                connection.sendall(pid.to_bytes(8, "big"))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, connection)
                selector.register(connection, selectors.EVENT_READ, "left")
            elif key.data == "left":  # the client has been killed
                os.kill(running[key.fileobj], signal.SIGKILL)
                selector.unregister(key.fileobj)
            else:
                connection = key.data
                _, status = os.waitpid(running.pop(connection), 0)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                if connection in selector.get_map():
                    selector.unregister(connection)
                    connection.sendall(
                        os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True)
                    )
                connection.close()


def import_packages():
    """Imports the packages quietly."""
    import gc
    import importlib

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    for name in PACKAGES:
        importlib.import_module(name)
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(nowhere)
    gc.freeze()


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A request, and the standard input, output and error of its client."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    content, size = b"", int.from_bytes(head, "big")
    while len(content) < size:
        content += connection.recv(size - len(content))
    return json.loads(content), files


def become(request: dict):
    """Turns this process into a Python just started with the arguments of a request."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    unbuffered = request["argv"][0] == "-u"
    argv = request["argv"][unbuffered:]
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    for number in FORWARDED:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)
    sys.argv = argv
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [os.path.dirname(os.path.realpath(argv[0])), *paths]
    del sys.modules["__main__"]


if __name__ == "__main__" and sys.argv[1:] != ["--serve"]:
    sys.exit(client(sys.argv[1:]))

if __name__ == "__main__" and (request := serve()):
    import runpy

    become(request)
    runpy.run_path(sys.argv[0], run_name="__main__")
