"""Runs ``fgssl`` for shells: a process that has imported torch once and forks for each command.

``python -m tests.shell_server SOCKET`` listens; ``CLIENT`` is the program that stands for fgssl, torchrun and pip on
the path of a shell. The client hands its arguments, folder, environment and standard streams over.
"""

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
program, *arguments = sys.argv
call = dict(program=os.path.basename(program), arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(call).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.makefile().readline() or 1))
"""


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """Serve on a socket while the context lasts."""
    line = [sys.executable, "-m", "tests.shell_server", str(path)]
    process = subprocess.Popen(line, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def serve(path: str) -> None:
    """Answer calls until the parent process ends."""
    import fgssl.cli.application  # noqa: F401
    from tests import shortened  # imports torch

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    listening.settimeout(5)
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
        while not message.endswith(b"\n"):
            message += connection.recv(2**20)
        if os.fork() == 0:  # so that commands run side by side
            os._exit(handle(json.loads(message), streams, connection, shortened.run))
        for stream in streams:
            os.close(stream)
        connection.close()


def handle(call: dict, streams: list[int], connection: socket.socket, run) -> int:
    """Run a command in a process of its own, and tell the client its exit status."""
    command = os.fork()
    if command == 0:
        os._exit(answer(call, streams, run))
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    connection.sendall(f"{status}\n".encode())
    return 0


def answer(call: dict, streams: list[int], run) -> int:
    """In the child: take over the caller's streams, folder and environment, and run its command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.path.append(call["folder"])  # as main does, for classes of the reader's own
    sys.argv = [call["program"], *call["arguments"]]
    try:
        status = run(call["program"], call["arguments"], os.environ["PAGES"])
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


if __name__ == "__main__":
    serve(sys.argv[1])
