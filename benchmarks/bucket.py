"""A local server of Google Cloud Storage, and the settings of its clients."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def listens(port: int) -> bool:
    """Return whether the server is installed."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def served(directory: Path) -> Iterator[dict[str, str]]:
    """Serve one empty bucket, `gs://bucket`, from memory.

    The server only has the JSON API. Requests over gRPC, for folders of a bucket, are turned off.

    Args:
        directory: the working directory of the server.

    Yields:
        The environment variables for processes that use the bucket.
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
