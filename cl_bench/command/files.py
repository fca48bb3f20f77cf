"""Configs on disk: found by path or name, and read as plain YAML with limits, so that no file can hang or fool a run."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..errors import UserError
from .shipped import shipped_configs

__all__ = ["config_file", "read_yaml", "yaml_value"]

LARGEST = 128 * 1024  # bytes of a file
DEEPEST = 32  # mappings and lists inside one another
MOST = 20_000  # values of a file, each alias counted with all that it stands for


class _Plain(yaml.SafeLoader):
    """YAML's mappings, lists, words, numbers, true, false and null. Not its tags, dates, sexagesimals or "yes"."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def scalar(self, node: yaml.Node) -> Any:
        """A word that reads as true, false or a number."""
        kind, text = node.tag.rpartition(":")[2], str(node.value).lower()
        try:
            if kind == "float":
                return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text))
            return int(text) if kind == "int" else {"true": True, "false": False}[text]
        except (ValueError, KeyError) as fault:  # after an explicit tag; and Python reads no more than 4,300 digits
            raise _fault(f"this is no {kind} that can be read", node) from fault


    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """``<<: *other``: what is written here wins over what is merged, and the first of several over the others."""
        own = {key.value: (key, value) for key, value in node.value if not _is_merge(key)}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            for source in (value.value if isinstance(value, yaml.SequenceNode) else [value]) if _is_merge(key) else ():
                if not isinstance(source, yaml.MappingNode):
                    raise _fault("only mappings can be merged", source)
                self.flatten_mapping(source)
                merged = {**{k.value: (k, v) for k, v in source.value}, **merged}
        node.value = [*(pair for key, pair in merged.items() if key not in own), *own.values()]


def _is_merge(key: yaml.Node) -> bool:
    return bool(key.tag == "tag:yaml.org,2002:merge")


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _unknown(loader: _Plain, node: yaml.Node) -> Any:
    raise _fault(f"a config has no {node.tag}", node)


for _tag in ("null", "str", "seq", "map"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{_tag}"])


for _tag in ("bool", "int", "float"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_tag}", _Plain.scalar)
_Plain.add_constructor(None, _unknown)  # type: ignore[type-var]
for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Plain.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_form})$"), list(_first))


def yaml_value(text: str, what: str) -> Any:
    """The one plain value that ``text`` holds.

    Raises:
        UserError: naming ``what``, where the text is no YAML, says a key twice, or holds more than a config can.
    """
    loader = None
    try:
        loader = _Plain(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, (), {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as fault:
        where = f" (line {fault.problem_mark.line + 1})" if fault.problem_mark is not None else ""
        raise UserError(f"{what} is not valid YAML: {fault.problem or fault.context}{where}.") from fault
    except yaml.YAMLError as fault:
        raise UserError(f"{what} is not valid YAML: {' '.join(str(fault).split())}.") from fault
    except RecursionError as fault:
        raise UserError(f"{what} is nested too deeply for a config; at most {DEEPEST} levels are read.") from fault
    except _TooMuch as fault:
        raise UserError(f"{what} {fault}") from fault
    finally:
        if loader is not None:
            loader.dispose()


class _TooMuch(Exception):
    pass


def _count(node: yaml.Node, above: tuple[int, ...], known: dict[int, int]) -> int:
    """How many values ``node`` stands for once its aliases are written out."""
    if id(node) in above:
        raise _TooMuch(f"holds an alias to what it stands in (line {node.start_mark.line + 1}); write it out instead.")
    if len(above) >= DEEPEST:
        raise _TooMuch(f"is nested too deeply for a config; at most {DEEPEST} levels are read.")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
            _different([key for key, _ in node.value])
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_count(part, (*above, id(node)), known) for part in inner)
        if known[id(node)] > MOST:
            raise _TooMuch(f"holds more than {MOST:,} values; a config needs fewer.")
    return known[id(node)]


def _different(keys: list[yaml.Node]) -> None:
    """Refuse keys that are no words, and one that stands twice: the last would win in silence."""
    seen: set[str] = set()
    for key in keys:
        if not _is_merge(key) and key.tag != "tag:yaml.org,2002:str":
            raise _fault("a key must be a word", key)
        if key.value in seen:
            raise _fault(f"the key {brief(key.value)} stands here twice", key)
        seen.add(key.value)


def read_yaml(path: Path) -> Any:
    """A YAML file: UTF-8, plain values, no key twice, of a config's size.

    Raises:
        UserError: where it cannot be read or is not that.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as fault:
        raise UserError(f"cannot read {path}: {fault.strerror}.") from fault
    if len(data) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST // 1024} KiB, which no config is; name another file.")
    try:
        return yaml_value(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as fault:
        raise UserError(f"{path} is not valid YAML: it is no UTF-8 text (byte {fault.start}); save it as UTF-8.") from fault


def config_file(name: str) -> Path:
    """A config by path, or one that ships with cl-bench by name ("quickstart", "run/split_digits_codyra").

    Raises:
        UserError: where there is no such file, with the nearest names.
    """
    path = Path(name)
    try:
        path = path.expanduser()
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # a name too long for a file, a character that none can have, no such user
        pass
    shipped = shipped_configs()
    for key, file in shipped.items():
        if name in (key, f"{key}.yaml", f"configs/{key}.yaml", key.partition("/")[2]):
            return file
    short = [k.partition("/")[2] for k in shipped]
    near = difflib.get_close_matches(name[:200], [*shipped, *short], n=3)
    raise UserError(f"there is no config {brief(name)}; " + (f"did you mean {' or '.join(near)}?" if near else
                    "give a file, or a name that `cl-bench list suites` or `cl-bench list configs` shows."))


def brief(value: object) -> str:
    """A value as a sentence quotes it, cut where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
