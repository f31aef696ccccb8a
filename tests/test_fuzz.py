"""Any file is read or refused with one line, and the fuzzer finds faults."""

import json
import random
import subprocess
import sys

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from fuzz import __main__ as fuzzer
from fuzz import mutate, readers, seeds, worker
from fuzz.watch import Hung, Watch
from metajax import data
from metajax.cli.logging import input_error_line
from metajax.commands import predict
from metajax.config.files import read_config
from metajax.config.settings import PretrainSettings
from metajax.data.readers import read_table
from metajax.errors import InputError
from metajax.models.config import TransformerConfig
from metajax.models.files import read_json
from metajax.models.metadata import read_head_metadata
from metajax.reporting import data as report_data
from metajax.runs.record import read_record

pytestmark = pytest.mark.xdist_group("fuzz")  # The first example of hypothesis takes a second.
CHECKED = hypothesis.settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.fixed_dictionaries({"text": JSON, "label": JSON}), min_size=1, max_size=6)


def read_or_refused(read, *arguments):
    """Return what was read, or None if it was refused with a printable line."""
    try:
        return read(*arguments)
    except InputError as error:
        line = input_error_line(error)
        assert line
        assert not readers.controls(line)
        return None


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
@CHECKED
@hypothesis.given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_as_tasks(tmp_path, suffix, content):
    file = tmp_path / f"tasks.{suffix}"
    file.write_bytes(content)
    read_or_refused(data.load_tasks, [str(file)])


@CHECKED
@hypothesis.given(rows=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6))
def test_a_table_that_is_read_is_what_was_written(tmp_path, rows):
    file = tmp_path / "tasks.csv"
    quoted = [
        [f'"{field}"' for field in (a.replace('"', '""'), b.replace('"', '""'))] for a, b in rows
    ]
    lines = ["text,label", *map(",".join, quoted)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    table = read_or_refused(read_table, str(file))
    assert (table is None) == any("\0" in field for row in rows for field in row)
    if table is not None:
        assert list(zip(table.column("text"), table.column("label"))) == rows


@CHECKED
@hypothesis.given(rows=ROWS)
def test_values_of_any_type_as_tasks(tmp_path, rows):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_or_refused(data.load_tasks, [str(file)])


@CHECKED
@hypothesis.given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_bytes_as_text(tmp_path, content):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    read_or_refused(data.read_lines, str(file))
    read_or_refused(predict.read_texts, str(file))
    read_or_refused(data.load_tasks, [f"smlmt:{file}"])


@pytest.mark.parametrize("name", ["run.yaml", "run.toml"])
@CHECKED
@hypothesis.given(content=st.text(max_size=100) | JSON.map(lambda value: yaml.safe_dump(value)))
def test_text_as_settings(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    given = read_or_refused(read_config, tmp_path / name, PretrainSettings)
    if given is not None:
        required = {"model": "m", "text": ("t",), "workdir": "w"}
        read_or_refused(lambda: PretrainSettings(**required | given))


@CHECKED
@hypothesis.given(
    changes=st.dictionaries(
        st.sampled_from(["metajax", "id2label", "num_labels", *TransformerConfig().to_dict()]), JSON
    )
)
def test_values_of_any_type_in_a_model_s_config(tmp_path, changes):
    (tmp_path / "config.json").write_text(json.dumps(TransformerConfig().to_dict() | changes))
    values = read_json(tmp_path / "config.json")
    read_or_refused(read_head_metadata, tmp_path, values)
    read_or_refused(TransformerConfig.from_dict, values, "config.json")


@CHECKED
@hypothesis.given(
    content=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode())
)
def test_bytes_as_a_run_s_files(tmp_path, content):
    for name in ("run.json", "rows.json", "config.json"):
        (tmp_path / name).write_bytes(content)
    read_or_refused(read_record, tmp_path)
    read_or_refused(report_data.read_evaluation, tmp_path / "rows.json")
    read_or_refused(read_json, tmp_path / "config.json")


QUICK = ("csv", "jsonl", "yaml", "predict")


@pytest.fixture
def no_model(monkeypatch):
    """The seeds of the quick readers need no model."""
    monkeypatch.setattr(fuzzer.seeds, "build", lambda root: (root / "outside").mkdir())


def test_the_fuzzer_on_the_quick_readers(no_model, monkeypatch, capsys, tmp_path):
    output = tmp_path / "fuzz.json"
    arguments = ["fuzz", "--only", *QUICK, "--inputs", "80", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        fuzzer.main()
    assert not end.value.code, capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [row["reader"] for row in rows] == list(QUICK)
    for row in rows:
        assert row["accepted"] + row["refused"] == row["inputs"]
        assert row["refused"] > 0
    assert len(capsys.readouterr().out.splitlines()) == len(QUICK) + 2


def test_inputs_are_a_function_of_seed_reader_and_number(tmp_path):
    valid = [{"a.json": b'{"a": [1, 2], "b": "text"}', "b.bin": bytes(range(100))}]

    def made(*which):
        worker.make(*which, valid, tmp_path / "input")
        return [
            (path.name, path.read_bytes() if path.is_file() and not path.is_symlink() else None)
            for path in sorted((tmp_path / "input").rglob("*"))
        ]

    assert all(made("x", 0, case) == made("x", 0, case) for case in range(20))
    assert made("x", 0, 1) != made("x", 0, 2)
    assert made("x", 0, 1) != made("x", 1, 1)


def test_each_kind_of_mutation_leaves_something_to_read():
    draw, changed = random.Random(0), 0
    for name, content in (("a.json", b'{"a": 1}'), ("a.csv", b"a,b\n1,2\n"), ("a.toml", b"a = 1")):
        found = {mutate.mutate(draw, name, content, b"other") for _ in range(200)}
        changed += len(found - {content})
    assert changed > 300


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    root = tmp_path_factory.mktemp("watched")
    for name in ("scratch", "outside"):
        (root / name).mkdir()
    (root / "outside" / "bait").touch()
    return Watch(root / "scratch", root / "outside"), root


FAULTS = {
    "write": lambda root: (root / "elsewhere").write_text("x"),
    "make a directory": lambda root: (root / "made").mkdir(),
    "rename": lambda root: (root / "scratch" / "file").rename(root / "moved"),
    "read": lambda root: (root / "scratch" / ".." / "outside" / "bait").read_bytes(),
    "run": lambda root: eval("1 + 1"),
    "unpickle": lambda root: __import__("pickle").loads(b"cos\ngetcwd\n."),
    "start": lambda root: __import__("subprocess").run(["true"]),
    "ask the network": lambda root: __import__("socket").getaddrinfo("localhost", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_reader_may_not_do_is_seen(watch, fault):
    watch, root = watch
    (root / "scratch" / "file").write_text("x")
    with watch.on(5):
        (root / "scratch" / "file").read_text()
        (root / "scratch" / "other").write_text("x")
    assert watch.seen == []
    with watch.on(5):
        FAULTS[fault](root)
    assert watch.seen


def test_a_reader_that_hangs_is_ended(watch):
    def hang():
        with watch[0].on(0.05):
            while True:
                pass

    with pytest.raises(Hung):
        hang()


def _judged(monkeypatch, tmp_path, watch, read):
    monkeypatch.setitem(readers.READERS, "spoilt", readers.Reader(1, seeds.csv, read))
    return worker.judge("spoilt", 0, tmp_path, tmp_path, watch[0])


def _refuse(line):
    raise InputError(line)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda *_: None, "accepted"),
        (lambda *_: _refuse("fix it"), "refused"),
        (lambda *_: int("x"), "failed"),
        (lambda *_: _refuse(""), "failed"),
        (lambda *_: bytearray(200_000_000).count(1), "failed"),
    ],
    ids=["sound", "bad", "raises", "says nothing", "takes all memory"],
)
def test_what_is_a_failure(monkeypatch, tmp_path, watch, read, kind):
    monkeypatch.setattr(worker, "MEGABYTES", 50)  # A tenth of the limits.
    for _ in range(2):  # The memory of the first input does not hide that of the second one.
        assert _judged(monkeypatch, tmp_path, watch, read).kind == kind


@pytest.mark.slow
def test_the_fuzzer_that_goes_by_coverage():
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "fuzz.guided", "--only", "csv", "--seconds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, inputs, reached, failed = done.stdout.splitlines()[-1].split()
    assert (name, failed) == ("csv", "0")
    assert int(inputs.replace(",", "")) > 100
    assert int(reached.replace(",", "")) > 20
