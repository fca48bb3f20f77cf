"""YAML that would hang or fool a run is refused in one sentence; plain YAML means what it says."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from cl_bench.command.cli import main
from cl_bench.command.files import config_file, read_yaml, yaml_value
from cl_bench.command.sweep import read_suite
from cl_bench.errors import UserError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]\n" for before, here in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(("text", "said"), [
    ("a: &a {b: *a}", "an alias to what it stands in (line 1)"), ("&a [*a]", "an alias to what it stands in"),
    (BOMB, "more than 20,000 values"), ("a: [" + "1, " * 20_001 + "1]", "more than 20,000 values"),
    ("[" * 40 + "]" * 40, "nested too deeply"), ("[" * 20_000 + "]" * 20_000, "nested too deeply"),
    ("seed: 1\nmethod: ncm\nseed: 2\n", "the key 'seed' stands here twice (line 3)"),
    ("a: {x: {y: 1, y: 2}}", "the key 'y' stands here twice"), ("a: {<<: {b: 1}, <<: {c: 1}}", "'<<' stands here twice"),
    ("1: a", "a key must be a word"), ("? [a]\n: b", "a key must be a word"), ("null: a", "a key must be a word"),
    ("a: !!python/object/apply:os.system [true]", "a config has no tag:yaml.org,2002:python/object/apply:os.system"),
    ("a: !!binary aaaa", "a config has no tag"), ("a: !!int x", "this is no int"), ("a: !!bool maybe", "this is no bool"),
    ("a: !!float x", "this is no float"), ("a: " + "9" * 5000, "this is no int"), ("a: *b", "undefined alias 'b'"),
    ("a: 1\n---\nb: 1", "another document"), ("a: b: c", "mapping values are not allowed"), ("a: [1", "line"),
    ("a: \x01", "special characters"), ("c: {<<: 3}", "only mappings can be merged"),
    ("c: {<<: [1]}", "only mappings can be merged"), ("%YAML 9.1\n---\na: 1", "version"),
], ids=lambda v: v[:40] if isinstance(v, str) else None)
def test_what_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        read_yaml(file)
    assert time.monotonic() - began < 20, "no file of a config's size takes long"
    sentence = str(refused.value)
    assert said in sentence and sentence.startswith(str(file)) and sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(("text", "value"), [
    ("a: 1e-3", {"a": 0.001}), ("a: 012", {"a": 12}), ("a: +5", {"a": 5}), ("a: .5", {"a": 0.5}),
    ("a: -.inf", {"a": -math.inf}),
    ("a: 1:30", {"a": "1:30"}), ("a: 2020-01-01", {"a": "2020-01-01"}), ("a: no", {"a": "no"}), ("a: True", {"a": True}),
    ("a: 0x10", {"a": "0x10"}), ("a: ~", {"a": None}), ("a:", {"a": None}), ("", None), ("a: 1.5.2", {"a": "1.5.2"}),
    ("x: &x {a: 1}\nb: &b {<<: *x, a: 2}\nc: {<<: *b, d: 1}\ne: *b",
     {"x": {"a": 1}, "b": {"a": 2}, "c": {"a": 2, "d": 1}, "e": {"a": 2}}),
    ("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}",
     {"a": {"x": 1, "y": 1}, "b": {"y": 2, "z": 2}, "c": {"x": 1, "y": 1, "z": 3}}),
    ("\ufeffa: 1", {"a": 1}), ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
])
def test_what_it_means(text: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode())
    assert read_yaml(file) == value


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(yaml_value("a: .nan", "it")["a"])


@pytest.mark.parametrize(("data", "said"), [
    (b"\xff\xfea\x00", "no UTF-8 text (byte 0); save it as UTF-8"), (b"a: \xe9\n", "no UTF-8 text (byte 3)"),
    (b"# " + b"x" * 128 * 1024, "larger than 128 KiB"),
])
def test_files_that_are_no_text(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(UserError) as refused:
        read_yaml(tmp_path / "c.yaml")
    assert said in str(refused.value)


def test_names_of_files_that_cannot_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("x" * 5000, "~nobody_of_this_name/x.yaml", "a\0b", "", ".", "/", str(tmp_path), str(tmp_path / "pipe")):
        with pytest.raises(UserError) as refused:
            config_file(name)
        assert "there is no config" in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(("text", "said"), [
    ("a: &a {b: *a}", "an alias to what it stands in"),
    ("runs: [{scenario: split_digits, methods: [ncm]}]\nseeds: [0]\nseeds: [1]\n", "'seeds' stands here twice"),
])
def test_suites_are_read_as_strictly(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=said.replace("'", ".")):
        read_suite(tmp_path / "s.yaml")
    assert main(["suite", str(tmp_path / "s.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["[*a, &a 1]", "&a [*a]", "[" * 50 + "]" * 50])
def test_yaml_on_the_command_line_is_read_as_strictly(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "--scenario", "split_digits", "--method", "ncm", "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    assert main([*argv, "--scenario.order", value]) == 2
    err = capsys.readouterr().err
    assert "the value of scenario.order" in err and err.count("\n") == 1 and not (tmp_path / "runs").exists()
