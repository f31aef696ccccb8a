"""Workdirs in Google Cloud Storage: the real client libraries, and a server of it on loopback."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest
import tiny

from metajax import checkpoint
from tests.stages.commands import metatrain_command, pretrain_command


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A server that holds an empty bucket, and the environment that leads the libraries to it."""
    port = tiny.free_port()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory"),
            *("--host=127.0.0.1", f"--port={port}", "--default-bucket=bucket"),
        ],
        cwd=tmp_path_factory.mktemp("server"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_CLOUD_PROJECT": "none",
    }

    def objects(prefix):
        """The names of what the bucket holds below a folder."""
        with urllib.request.urlopen(f"{url}/storage/v1/b/bucket/o?prefix={prefix}/") as answer:
            found = json.load(answer).get("items", [])
        return {item["name"].removeprefix(f"{prefix}/"): item["size"] for item in found}

    def request(method, name, query=""):
        where = f"{url}/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}{query}"
        with urllib.request.urlopen(urllib.request.Request(where, method=method)) as answer:
            return answer.read()

    while True:
        try:
            objects("any")
            break
        except urllib.error.URLError:
            assert server.poll() is None
            time.sleep(0.05)
    yield SimpleNamespace(
        environment=environment,
        objects=objects,
        read=lambda name: request("GET", name, "?alt=media"),
        delete=lambda name: request("DELETE", name),
    )
    server.kill()
    server.wait()


def steps_of(objects):
    """The steps of the checkpoints that are whole."""
    found = [re.fullmatch(r"checkpoints/(\d+)/commit_success.txt", name) for name in objects]
    return {int(match[1]) for match in found if match}


@pytest.mark.slow
def test_a_run_in_a_bucket(material, compiled, bucket, tmp_path):
    """Killed, resumed, damaged, resumed, and the start of another: as on a disk."""
    settings = {"steps": 200, "save_every": 10, "keep": 3}
    run = pretrain_command(material, "gs://bucket/run", **settings)
    process = tiny.start(*run, cache=compiled, **bucket.environment)
    while process.poll() is None and len(steps_of(bucket.objects("run"))) < 2:
        time.sleep(0.05)
    assert process.poll() is None, tiny.finish(process)
    process.kill()
    process.communicate()
    assert "results.json" not in bucket.objects("run")

    # The newest one loses a file.
    newest = max(steps_of(bucket.objects("run")))
    held = bucket.objects(f"run/checkpoints/{newest}/params")
    bucket.delete(f"run/checkpoints/{newest}/params/{max(held, key=lambda name: int(held[name]))}")
    done = tiny.finish(tiny.start(*run, cache=compiled, **bucket.environment))
    assert done.status == 0, done.err
    assert f"checkpoint {newest} cannot be read" in done.err
    assert any(name.startswith(f"damaged-{newest}/") for name in bucket.objects("run"))
    assert steps_of(bucket.objects("run")) == {180, 190, 200}

    # What is there is what a disk would hold, but for the damaged one.
    local = tmp_path / "local"
    tiny.finish(tiny.start(*pretrain_command(material, local, **settings), cache=compiled))
    besides = {str(file.relative_to(local)) for file in local.glob("*") if file.is_file()}
    besides |= {str(file.relative_to(local)) for file in local.glob("model/*")}
    names = bucket.objects("run")
    assert {name for name in names if not name.startswith(("checkpoints/", "damaged"))} == besides

    copy = tmp_path / "copy"
    for name in bucket.objects("run"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(bucket.read(f"run/{name}"))
    assert [row["step"] for row in tiny.rows_of(copy)] == list(range(201))
    ours, theirs = (checkpoint.load(each / "checkpoints").params for each in (copy, local))
    tiny.assert_same_bits(ours, theirs)

    start = metatrain_command(material, "gs://bucket/meta", "gs://bucket/run", steps=2)
    done = tiny.finish(tiny.start(*start, cache=compiled, **bucket.environment))
    assert done.status == 0, done.err
    assert "results.json" in bucket.objects("meta")
    came = tiny.start(
        "lineage", "--model", "gs://bucket/meta", cache=compiled, **bucket.environment
    )
    out = tiny.finish(came).out
    assert "metatrain  gs://bucket/meta" in out
    assert "pretrain  gs://bucket/run, step 200" in out


def test_no_such_bucket(material, compiled, bucket):
    command = pretrain_command(material, "gs://another/run")
    done = tiny.finish(tiny.start(*command, cache=compiled, **bucket.environment))
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("metajax: error: gs://another/run: cannot be read")


def test_without_the_extra(material, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = tiny.run(*pretrain_command(material, "gs://bucket/run"))
    assert done.status == 2
    assert "needs gcsfs: install it with `pip install 'metajax[gcs]'`" in done.err
