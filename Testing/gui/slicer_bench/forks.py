"""Commands of the library as forks of a process that has imported it, behind the `PythonSlicer` stand-in.

A start of Python with numpy and SimpleITK takes a third of a second of processor time, and nearly every test has
several; one with PyTorch takes five. The launcher stays a process of its own: asking it (SIGTERM) asks the fork, and
its end is the fork's end. This file is the server, the fork and the launcher's part (run without `site`, so it imports little).
"""

import json
import os
import signal
import socket
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
FORKED = {
    ("MedSSLLib.images.thumbnails",): ("add", "facts", "pack", "phantoms", "results", "unpack"),
    ("MedSSLLib.inference.predict", "MedSSLLib.selftraining.selftrain"): (
        *("complete", "import", "predict", "pretrain", "selftrain", "share", "suggest", "take"),
    ),
}
"""What is forked, by the modules that are imported for it first. Live is not: its whole tree of processes is tested."""
REAL = "MEDSSL_BENCH_REAL"
"""In the environment of a job: start a Python of its own for it, as the application does."""
_SERVERS = []  # their pipes stay open


def script(folder):
    """Text of the `PythonSlicer` stand-in: a launcher that starts the interpreter as its child."""
    python = f'"{sys.executable}"'
    if sys.platform != "linux":
        return f'#!/bin/sh\n{python} "$@"\n'
    lines = ["#!/bin/sh", f'case "${REAL}$1 $2 $3" in']
    for modules, commands in FORKED.items():
        words = "|".join(f'"-m MedSSLLib {name}"' for name in commands)
        address = _serve(folder, modules)
        lines.append(f'{words}) {python} -I -S "{__file__}" {address} "$@" ;;')
    return "\n".join([*lines, f'*) {python} "$@" ;;', "esac", ""])


def _serve(folder, modules):
    """Start a server; the name of its socket. It ends with this process, whose pipe it reads."""
    listener = socket.socket(socket.AF_UNIX)
    address = f"medssl-bench-{os.getpid()}-{os.urandom(8).hex()}"
    listener.bind(f"\0{address}")
    listener.listen()
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    flags = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, "--serve", str(listener.fileno()), *modules],
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        cwd=folder,
        env={**os.environ, **flags, "PYTHONPATH": path},
    )
    listener.close()
    _SERVERS.append(server)
    return address


def _server(listener, modules):
    """Fork for each that connects. Nothing is imported before the first one does."""
    import importlib
    import select

    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        for module in ("MedSSLLib.cli.main", *modules):
            importlib.import_module(module)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _forked(connection)
        connection.close()
        _bury()


def _bury():
    """Take note of the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _forked(connection):
    """Become what the launcher was asked for."""
    text, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while b"\n" not in text:
        text += connection.recv(1 << 20)
    text, _, stop = text.partition(b"\n")
    if stop:  # asked to stop before it began
        os.kill(os.getpid(), signal.SIGTERM)
    asked = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, closefd=False)
    os.chdir(asked["folder"])
    assert asked["environment"]["PYTHONPATH"] == os.environ["PYTHONPATH"], "another library"
    os.environ.clear()
    os.environ.update(asked["environment"])
    connection.sendall(b"%d\n" % _run(connection, asked["words"]))
    os._exit(0)


def _run(connection, words):
    """The exit code of `python -m MedSSLLib ...`."""
    import runpy
    import threading
    import traceback

    threading.Thread(target=_listen, args=[connection], daemon=True).start()
    sys.argv = words[1:]
    code = 0
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):  # a text is printed, as Python does
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _listen(connection):
    """The launcher passes on that it was asked to stop, and its end is the end of this process."""
    while connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)


def _launch(address, words):
    """The launcher: ask the server for a fork with these streams, wait for its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{address}")
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
    signal.signal(signal.SIGTERM, lambda *_: connection.sendall(b"t"))
    answer = b""
    while not answer.endswith(b"\n"):
        part = connection.recv(16)
        if not part:
            os.kill(os.getpid(), signal.SIGKILL)  # as the fork ended
        answer += part
    return int(answer)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _server(socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    else:
        sys.exit(_launch(sys.argv[1], sys.argv[2:]))
