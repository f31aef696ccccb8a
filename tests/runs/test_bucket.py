"""Runs in Google Cloud Storage: real clients with a local server.

The server only has the JSON API. Requests over gRPC, for folders of a bucket, are turned off.
"""

import json
import os
import re
import threading
import time
import urllib.parse
import urllib.request
from types import SimpleNamespace

import aiohttp
import fsspec
import gcsfs
import gcsfs.retry
import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from google.api_core.exceptions import BadGateway

from benchmarks.bucket import served
from metajax.cli.main import main
from metajax.errors import InputError, StoppedError
from metajax.runs.paths import bucket_errors, children, to_path, write_object
from metajax.training import checkpoint
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState
from tests.stage_commands import metatrain_command, pretrain_command


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A server with one bucket, `gs://bucket`, which all clients use."""

    def request(method, name, query=""):
        where = (
            f"{url}/storage/v1/b/bucket/o{name and '/'}{urllib.parse.quote(name, safe='')}{query}"
        )
        with urllib.request.urlopen(urllib.request.Request(where, method=method)) as answer:
            return answer.read()

    def objects(run):
        """Return the objects below a name: the rest of each name, and its size."""
        found = json.loads(request("GET", "", f"?prefix={run}/")).get("items", [])
        return {item["name"].removeprefix(f"{run}/"): int(item["size"]) for item in found}

    def download(run, directory):
        for name in objects(run):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(request("GET", f"{run}/{name}", "?alt=media"))
        return directory

    with (
        served(tmp_path_factory.mktemp("server")) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = environment["STORAGE_EMULATOR_HOST"]
        for name, value in environment.items():
            patch.setenv(name, value)
        yield SimpleNamespace(
            objects=objects,
            download=download,
            delete=lambda name: request("DELETE", name),
        )


def whole(objects):
    """Return the steps of complete checkpoints, the newest first."""
    found = [re.fullmatch(r"checkpoints/(\d+)/commit_success.txt", name) for name in objects]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def losses(workdir):
    timed = ("seconds", "data_wait", "peak_memory_bytes", "compiled")
    return [{k: v for k, v in row.items() if k not in timed} for row in tiny.rows_of(workdir)]


@pytest.mark.slow
def test_killed_torn_and_damaged(material, compiled, bucket, tmp_path):
    settings = {"steps": 80, "save_every": 10, "keep": 3}
    command = pretrain_command(material, "gs://bucket/run", **settings)
    process = tiny.start(*command, cache=compiled)
    while process.poll() is None and len(whole(bucket.objects("run"))) < 3:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert "results.json" not in bucket.objects("run")

    # The newest one is as after a kill during saving. The next one has lost an array.
    torn, damaged, good = whole(bucket.objects("run"))[:3]
    bucket.delete(f"run/checkpoints/{torn}/commit_success.txt")
    arrays = bucket.objects(f"run/checkpoints/{damaged}/params")
    bucket.delete(f"run/checkpoints/{damaged}/params/{max(arrays, key=arrays.get)}")
    done = tiny.finish(tiny.start(*command, cache=compiled))
    assert done.status == 0, done.err
    assert f"checkpoint {damaged} cannot be read" in done.err
    assert f"starts from step {good} of 80" in done.err
    assert any(name.startswith(f"damaged-{damaged}/") for name in bucket.objects("run"))
    assert whole(bucket.objects("run")) == [80, 70, 60]

    local = tmp_path / "local"
    tiny.succeed(*pretrain_command(material, local, **settings))
    copy = bucket.download("run", tmp_path / "copy")
    tiny.assert_same_bits(tiny.training_state(copy), tiny.training_state(local))
    assert losses(copy) == losses(local)
    for name in ("results.json", "model/config.json"):
        assert (copy / name).read_bytes() == (local / name).read_bytes()
    names = {path.name for path in local.iterdir()} | {f"damaged-{damaged}"}
    assert {path.name for path in copy.iterdir()} == names
    assert set(os.listdir(copy / "model")) == set(os.listdir(local / "model"))


def test_a_checkpoint_is_whole_once_it_says_so(bucket):
    directory = to_path("gs://bucket/few/checkpoints")
    params, optimizer = {"w": jnp.arange(3.0)}, optax.adam(0.1)
    with Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints:
        for step in (1, 2):
            scaled = {"w": step * params["w"]}
            state = OuterState(jnp.int32(step), scaled, optimizer.init(params), jax.random.key(0))
            checkpoints.save(state)
    saved = checkpoint.load(directory)
    assert (saved.step, saved.record) == (2, {"stage": "test"})
    tiny.assert_same_bits(saved.params, state.meta_params)
    with Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints:
        tiny.assert_same_bits(checkpoints.restore(state), state)
    for step in (2, 1):  # As during a save.
        assert checkpoint.load(directory).step == step
        bucket.delete(f"few/checkpoints/{step}/commit_success.txt")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        checkpoint.load(directory)


def few_state(step):
    params, optimizer = {"w": step * jnp.arange(3.0)}, optax.adam(0.1)
    return OuterState(jnp.int32(step), params, optimizer.init(params), jax.random.key(0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned")
def test_a_kill_while_a_checkpoint_is_set_aside(bucket, monkeypatch):
    """The kill comes while the original is removed. The next run must not move its remains."""
    directory = to_path("gs://bucket/aside/checkpoints")
    with Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(few_state(step))
    arrays = bucket.objects("aside/checkpoints/2/params")
    bucket.delete(f"aside/checkpoints/2/params/{max(arrays, key=arrays.get)}")
    damaged = set(bucket.objects("aside/checkpoints/2"))

    def killed(system, path, recursive=False):
        if not recursive:
            return remove(system, path, recursive=False)
        if "damaged" in str(path) or "tmp" in str(path):
            return remove(system, path, recursive=True)
        bucket.delete("aside/checkpoints/2/" + min(damaged - {"commit_success.txt"}))
        raise KeyboardInterrupt

    remove = gcsfs.GCSFileSystem.rm
    with monkeypatch.context() as patch:
        patch.setattr(gcsfs.GCSFileSystem, "rm", killed)
        with (
            pytest.raises(KeyboardInterrupt),
            Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints,
        ):
            checkpoints.restore(few_state(0))
    with Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints:
        assert int(checkpoints.restore(few_state(0)).step) == 1
    assert set(bucket.objects("aside/damaged-2")) == damaged


def test_a_save_that_never_ends(bucket, monkeypatch):
    """The message names the last step that is known to be saved."""
    directory = to_path("gs://bucket/hangs/checkpoints")

    class Hangs:
        def result(self, timeout):
            assert timeout == 600
            raise TimeoutError("timed out")

    said = r"gs://bucket/hangs/checkpoints: .* \(timed out\), step 1 is safe"
    with Checkpoints(directory, keep=2, record={"stage": "test"}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(few_state(step))
        checkpoints._pending.result(60)
        checkpoints._pending = Hangs()
        with pytest.raises(StoppedError, match=said):
            checkpoints.save(few_state(3))
        checkpoints._orbax.close()


def test_no_request_waits_for_ever(bucket):
    to_path("gs://bucket/any")
    system = fsspec.filesystem("gs")
    silence = system.session_kwargs["timeout"]
    assert (silence.sock_connect, silence.sock_read, silence.total) == (60, 60, None)
    assert os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"] == "60"


@pytest.mark.parametrize(
    "error",
    [gcsfs.retry.HttpError({"code": 503}), aiohttp.ServerTimeoutError("none"), BadGateway("bad")],
)
def test_a_bucket_that_fails_in_the_middle_is_one_line(monkeypatch, capsys, error):
    def fail(settings):
        raise error

    monkeypatch.setattr("metajax.commands.lineage.lineage", fail)
    assert main(["lineage", "--model", "gs://bucket/run"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"metajax: the bucket does not answer \(.+\); existing checkpoints are .+\n", said
    )
    with pytest.raises(KeyError), bucket_errors():
        raise KeyError("a fault of ours")


@pytest.mark.slow
def test_every_stage_reads_a_bucket(chain, material, bucket, tmp_path):
    """Each stage gives the same bits, and the same answers, as with directories."""
    places = {name: f"gs://bucket/chain/{name}" for name in ("pretrain", "metatrain", "adapt")}
    tiny.succeed(*pretrain_command(material, places["pretrain"]))
    tiny.succeed(*metatrain_command(material, places["metatrain"], places["pretrain"]))
    adapt = ("adapt", "--model", places["metatrain"], "--tasks", material.new)
    tiny.succeed(*adapt, "--workdir", places["adapt"])
    for name, place in places.items():
        ours = checkpoint.load(to_path(place) / "checkpoints").params
        tiny.assert_same_bits(ours, checkpoint.load(getattr(chain, name) / "checkpoints").params)
        assert losses(bucket.download(f"chain/{name}", tmp_path / name)) == losses(
            getattr(chain, name)
        )

    def answers(adapted, metatrained, output):
        labels = tiny.succeed("predict", "--model", adapted, stdin=b"w50 w51\nw56\n")
        tiny.succeed("export", "--model", adapted, "--output", output)
        tiny.succeed(
            *("evaluate", "--model", metatrained, "--tasks", material.intents, "--ways", 3),
            *("--queries", 3, "--episodes", 4, "--output", output / "rows.json"),
        )
        rows = json.loads((output / "rows.json").read_text())
        exported = (output / "model.safetensors").read_bytes()
        return labels, exported, [(row["method"], row["accuracy"]) for row in rows]

    ours = answers(places["adapt"], places["metatrain"], tmp_path / "ours")
    assert ours == answers(chain.adapt, chain.metatrain, tmp_path / "theirs")
    tiny.succeed("report", "--runs", *places.values(), "--output", tmp_path / "report.html")
    assert "gs://bucket/chain/adapt" in (tmp_path / "report.html").read_text()
    lines = tiny.succeed("lineage", "--model", places["adapt"])
    for stage, step in (("adapt", ""), ("metatrain", ", step 4"), ("pretrain", ", step 6")):
        assert f"{stage}  {places[stage]}{step}\n" in lines


@pytest.mark.parametrize(
    ("option", "address", "said"),
    [
        *(
            (option, *wrong)
            for option in ("--model", "--workdir")
            for wrong in (
                ("s3://bucket/run", "is an address; give a directory, or gs://BUCKET/NAME"),
                ("gs://bucket", "is an address; give a directory, or gs://BUCKET/NAME"),
                ("gs://another/run", "gs://another: there is no bucket of this name; check"),
            )
        ),
        (
            "--model",
            "gs://bucket/none",
            "has no run; in a bucket, give the working directory of a run",
        ),
    ],
)
def test_addresses_of_no_use(material, bucket, tmp_path, option, address, said):
    if option == "--model":
        done = tiny.run(*metatrain_command(material, tmp_path / "run", address))
    else:
        done = tiny.run(*pretrain_command(material, address))
    assert done.status == 2
    assert re.fullmatch("metajax: error: .+\n", done.err), done.err
    assert said in done.err


def test_only_workdirs_are_in_buckets(material, chain, bucket):
    for command in (
        ("export", "--model", chain.adapt, "--output", "gs://bucket/weights"),
        ("demo", "--workdir", "gs://bucket/demo"),
    ):
        done = tiny.run(*command)
        assert done.status == 2
        assert f"{command[-1]}: is an address; give a directory" in done.err


def test_an_object_stands_for_the_directory(bucket, monkeypatch, tmp_path):
    """This server refuses an object of this name; Google's lists it as a child."""
    place = to_path("gs://bucket/marked")
    (place / "a.txt").write_text("mine")
    listed = [place / "marked", place / "a.txt"]
    monkeypatch.setattr(type(place), "iterdir", lambda path: iter(listed))
    assert children(place) == [place / "a.txt"]
    (tmp_path / tmp_path.name).mkdir()
    assert children(tmp_path) == [tmp_path / tmp_path.name]


def test_a_bucket_that_takes_nothing(material, bucket, monkeypatch):
    def refuse(path, content):
        raise OSError("Forbidden")

    place = to_path("gs://bucket/refused")
    monkeypatch.setattr(type(place), "write_bytes", refuse)
    done = tiny.run(*pretrain_command(material, str(place)))
    assert done.status == 1
    assert "gs://bucket/refused/run.json: cannot be written (Forbidden)" in done.err
    assert "Traceback" not in done.err


def test_a_bucket_that_never_answers(bucket, monkeypatch):
    place, over = to_path("gs://bucket/silent"), threading.Event()
    monkeypatch.setattr(type(place), "write_bytes", lambda path, content: over.wait(60))
    monkeypatch.setattr("metajax.runs.paths._PATIENCE", 0.01)
    with pytest.raises(StoppedError, match=r"gs://bucket/silent: cannot be written \(TimeoutError"):
        write_object(place, b"x")
    assert not over.is_set()
    over.set()


def test_something_else_is_there(material, bucket):
    (to_path("gs://bucket/notes") / "a.txt").write_text("mine")
    done = tiny.run(*pretrain_command(material, "gs://bucket/notes"))
    assert done.status == 2
    assert "gs://bucket/notes: is not empty and has no run" in done.err
    assert list(bucket.objects("notes")) == ["a.txt"]


def test_without_the_extra(material, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = tiny.run(*pretrain_command(material, "gs://bucket/run"))
    assert done.status == 2
    assert "needs gcsfs; install it with `pip install gcsfs google-cloud-storage`" in done.err
