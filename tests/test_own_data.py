"""docs/own-data.md does what it says; prepare's options on the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from test_cli import call
from test_inputs import archive, texts_of
from test_log_format import COMMON, SCHEMA, SKELETON, files_of

DOCS = Path(__file__).resolve().parent.parent / "docs" / "own-data.md"
BAD = Path(__file__).parent / "logs" / "bad"
GOOD = Path(__file__).parent / "logs" / "good"


def blocks() -> list[tuple[str, str, str]]:
    """Returns (language, file name, text) of every block that has a language."""
    found = re.findall(r"^```(\w+)( \S+)?\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    return [(language, name.strip(), text) for language, name, text in found]


def test_the_examples_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for language, name, text in blocks():
        ran.append(language)
        if name:
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, str(DOCS), "exec"), {})
        elif language == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
                status, out, error = call(capsys, *shlex.split(command)[1:])
                assert (status, error) == (0, ""), command
                assert out == expected
    assert ran.count("console") == 2 and ran.count("python") == 1 and len(ran) == 7


def test_every_key_of_the_schema_file_is_explained():
    from esmm_fast.data.log_format import SchemaFile

    rows = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.M)
    assert rows == list(SchemaFile.__struct_fields__)


def test_archives(tmp_path, capsys):
    paths = []
    for seed, half in enumerate(("train", "test")):
        names = (f"sample_skeleton_{half}.csv", f"common_features_{half}.csv")
        members = dict(zip(names, texts_of(seed), strict=True))
        paths.append(archive(tmp_path / f"sample_{half}.tar.gz", members))
    status, shown, error = call(capsys, "prepare", *paths, "--out", tmp_path / "out")
    assert (status, shown, error) == (0, f"{tmp_path / 'out'}\n", "")
    status, shown, _ = call(capsys, "info", tmp_path / "out" / "test")
    assert status == 0
    assert re.search(r"^public test file: \d+ of 16 published totals are equal$", shown, re.M)
    assert "  impressions: 40 here, 43,016,840 published" in shown
    paths[0].write_bytes(paths[0].read_bytes()[:-300])
    status, _, error = call(capsys, "prepare", *paths, "--out", tmp_path / "new")
    assert status == 1 and error.startswith("Error: ") and error.count("\n") == 1
    assert "sample_train.tar.gz" in error and "EOFError" in error
    assert not (tmp_path / "new").exists()


def test_check_lists_every_class_and_fails_if_a_line_is_bad(tmp_path, capsys):
    files = ["--skeleton", GOOD / "skeleton_crlf.csv", "--common", GOOD / "common.csv"]
    status, shown, error = call(capsys, "prepare", *files, "--check")
    assert (status, error) == (0, "")
    assert f"crlf: count 2, first {GOOD}/skeleton_crlf.csv:1 (byte 108), note lines end" in shown
    assert "errors: none" in shown
    bad = ["--skeleton", BAD / "skeleton_click_2.csv", "--skeleton", BAD / "skeleton_value_nan.csv"]
    status, shown, error = call(capsys, "prepare", *files, *bad, "--check", "--threads", 2)
    assert (status, error) == (1, "Error: 2 bad lines, listed above under errors\n")
    assert f"bad_label: count 1, first {BAD}/skeleton_click_2.csv:2 (byte 111)" in shown
    assert re.search(r"bad_value: count 1, first .*message .*got 'nan'", shown)
    both = tmp_path / "log"
    both.mkdir()
    for half in ("train", "test"):
        (both / f"sample_skeleton_{half}.csv").write_bytes((GOOD / "skeleton.csv").read_bytes())
        (both / f"common_features_{half}.csv").write_bytes((GOOD / "common.csv").read_bytes())
    status, shown, _ = call(capsys, "prepare", both, "--check")
    assert status == 0 and "train:" in shown and "test:" in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


def test_skip_and_rejects(tmp_path, capsys):
    bad = "x\t\n7\tnobody\t0\t0\t0\t0\t0\t0\t0\t\n"
    paths = files_of(tmp_path / "log", skeleton=SKELETON + bad)
    files = ["--skeleton", paths["skeleton"], "--common", paths["common"]]
    files += ["--schema", paths["schema"]]
    status, _, error = call(capsys, "prepare", *files, "--out", tmp_path / "out")
    assert status == 1 and f"{paths['skeleton']}:4 (byte " in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    options = ["--on-error", "skip", "--rejects", tmp_path / "rejects", "--out", tmp_path / "out"]
    status, shown, error = call(capsys, "prepare", *files, *options)
    assert (status, shown) == (0, f"{tmp_path / 'out'}\n")
    assert f"1 x missing_common_row skipped, first {paths['skeleton']}:5 (byte " in error
    assert "1 x bad_column skipped" in error
    assert (tmp_path / "rejects").read_text() == bad
    status, shown, _ = call(capsys, "info", tmp_path / "out", "--json")
    facts = json.loads(shown)
    assert {n: r["count"] for n, r in facts["rejected"].items()} == {
        "bad_column": 1,
        "missing_common_row": 1,
    }
    assert facts["labels"] == {"click": 2, "cart": 2, "buy": 2}


def test_tables(tmp_path, capsys):
    rows = pa.table({"user": [1, 2, 1], "item": [5, 6, 7], "click": [1, 0, 1], "order": [0, 0, 1]})
    pq.write_table(rows.slice(0, 2), tmp_path / "a.parquet")
    pq.write_table(rows.slice(2), tmp_path / "b.parquet")
    users = pa.table({"user": [2, 1], "age": [[3], [4, 5]]})
    pq.write_table(users, tmp_path / "users.parquet")
    schema = tmp_path / "schema.yaml"
    schema.write_text(
        "fields: [{name: age, side: common}, {name: item}]\nlabels: [click, order]\nkey: user\n"
    )
    given = ["--table", tmp_path / "a.parquet", "--table", tmp_path / "b.parquet"]
    given += ["--common", tmp_path / "users.parquet", "--schema", schema]
    status, shown, error = call(capsys, "prepare", *given, "--out", tmp_path / "out")
    assert (status, shown, error) == (0, f"{tmp_path / 'out'}\n", "")
    status, shown, _ = call(capsys, "head", tmp_path / "out")
    assert "sample_id 3  click 1  order 1  common_row 1" in shown and "age     4 5" in shown
    status, shown, _ = call(capsys, "prepare", *given, "--check")
    assert status == 0 and "impressions: 3" in shown and "age: multi" not in shown
    schema.write_text("fields: [{name: agee, side: common}]\nlabels: [click, order]\nkey: user\n")
    status, _, error = call(capsys, "prepare", *given, "--out", tmp_path / "new")
    message = "no column 'agee' for a field; did you mean 'age'?"
    assert (status, error) == (1, f"Error: {tmp_path / 'users.parquet'}: {message}\n")


def test_usage(tmp_path, capsys):
    paths = files_of(tmp_path / "log", SCHEMA, SKELETON, COMMON)
    file = paths["skeleton"]
    for arguments, message in [
        (["--skeleton", file, "--table", file, "--out", "x"], "one of them"),
        (["--table", file, "--out", "x"], "expected --schema with --table"),
        (["--skeleton", file, "--out", "x", "--rejects", "y"], "--on-error skip with --rejects"),
        (["--skeleton", file, "--check", "--on-error", "skip", "--rejects", "y"], "and no --check"),
        (["--skeleton", file], "expected --out"),
        (["--skeleton", tmp_path / "none", "--out", "x"], "does not exist"),
    ]:
        status, _, error = call(capsys, "prepare", *arguments)
        assert status == 2 and message in error, arguments
    paths["schema"].write_text("feilds: []\n")
    status, _, error = call(
        capsys, "prepare", "--skeleton", file, "--schema", paths["schema"], "--out", tmp_path / "x"
    )
    expected = f"Error: {paths['schema']}: feilds: unknown key; did you mean 'fields'?\n"
    assert (status, error) == (1, expected)
