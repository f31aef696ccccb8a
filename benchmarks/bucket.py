"""A server of Google Cloud Storage on loopback, and what leads the clients to it."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def listens(port: int) -> bool:
    """Whether there is a server."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def served(directory: Path) -> Iterator[dict[str, str]]:
    """Serves one empty bucket, `gs://bucket`, from memory.

    It speaks the JSON API alone; what asks over gRPC whether a bucket has folders is off.

    Args:
        directory: where the server runs.

    Yields:
        The environment for this process and those that use the bucket.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory"]
    command += ["--host=127.0.0.1", f"--port={port}", "--default-bucket=bucket"]
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=directory, stdout=nowhere, stderr=nowhere)
    try:
        deadline = time.perf_counter() + 60
        while not listens(port):
            assert server.poll() is None, "the server has ended"
            assert time.perf_counter() < deadline, "the server does not start"
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.kill()
        server.wait()
