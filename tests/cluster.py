"""Starts several workers on this machine, as a cluster would on several machines.

    python tests/cluster.py 2 ./train.sh --model_name=together
"""

import json
import os
import socket
import subprocess
import sys


def start(workers: int, command: list[str], **settings) -> list[subprocess.Popen]:
    """Starts a command once for each worker, with its TF_CONFIG. `settings` are those of Popen."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        environment = os.environ | {"TF_CONFIG": config}
        processes.append(subprocess.Popen(command, env=environment, **settings))
    return processes


if __name__ == "__main__":
    sys.exit(max(process.wait() for process in start(int(sys.argv[1]), sys.argv[2:])))
