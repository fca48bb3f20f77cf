"""The words of a command line as the same mapping that a YAML file holds: one way to read both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..errors import UserError
from .files import brief, config_file, read_yaml
from .typed import Word

__all__ = ["Option", "merged", "options_of", "with_files"]

Option = tuple[tuple[str, ...], Word]  # ("method", "rank"), "8"


def with_files(argv: Sequence[str], base: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """``argv`` without its ``--config FILE`` pairs, and ``base`` under what these files hold; later files win key by key.

    Raises:
        UserError: for a file that is none, or holds no mapping.
    """
    rest: list[str] = []
    config = dict(base)
    tokens = iter(argv)
    for token in tokens:
        option, equals, value = token.partition("=")
        if option != "--config":
            rest.append(token)
            continue
        name = value if equals else next(tokens, "")
        data = read_yaml(config_file(name))
        if not isinstance(data, Mapping):
            raise UserError(f"{name} must hold a mapping with keys such as scenario and method.")
        config.update(data)
    return rest, config


def options_of(argv: Sequence[str], named: Mapping[str, str]) -> list[Option]:
    """``--method.rank 8``, ``--method.rank=8`` and ``--device cpu`` as paths and words.

    Args:
        named: roots that take a name, each with what `cl-bench list` calls its kind.

    Raises:
        UserError: for a word that is no option, or an option without its value.
    """
    from ..engine.compute import Compute

    short = {f.name for f in fields(Compute)}
    found: list[Option] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        option, equals, value = token.partition("=")
        path = tuple(option[2:].split("."))
        if not option.startswith("--") or not all(path):
            raise UserError(f"{token!r} is no option of a run; options look like --seed 3, see `cl-bench run --help`.")
        if not equals:
            if not tokens or tokens[0].startswith("--"):
                kind = named.get(path[0])
                named_part = kind is not None and (len(path) == 1 or path[-1] in ("help", "of", "host"))
                raise UserError(f"{option} needs a {'name' if named_part else 'value'}; see " + (
                    f"`cl-bench list {kind}`." if named_part else "`cl-bench run --help`."))
            value = tokens.pop(0)
        if path[0] in short:
            path = ("compute", *path)
        found.append((tuple(p for p in path if p != "init_args"), Word(value)))
    return found


def merged(base: Mapping[str, Any], options: Sequence[Option], nested: Mapping[str, str], roots: Mapping[str, str],
           same: Callable[[str, Any, Any], bool]) -> dict[str, Any]:
    """``base`` with ``options`` over it.

    A name first, wherever it stands, then what belongs to it. Where an option names another class than ``base`` does, the
    class's options in ``base`` go with it: they were another's.

    Args:
        nested, roots: parameters and top-level keys that hold a named part, each with its group.
        same: whether two names of a group are one class.
    """
    config = {k: _copied(v) for k, v in base.items()}
    parts = [(path[:-1] if path[-1] == "class_path" else path, word) for path, word in options]
    for path, word in sorted((p for p in parts if _is_name(p[0], nested, roots)), key=lambda p: len(p[0])):
        where = _descend(config, path[:-1], nested, roots)
        part = where.get(path[-1])
        group = nested[path[-1]] if len(path) > 1 else roots[path[0]]
        if isinstance(part, Mapping) and ("class_path" not in part or same(group, part["class_path"], str(word))):
            where[path[-1]] = {**part, "class_path": str(word)}
        else:
            where[path[-1]] = {"class_path": str(word)}
    for path, word in sorted((p for p in parts if not _is_name(p[0], nested, roots)), key=lambda p: len(p[0])):
        if len(path) == 1:
            config[path[0]] = word
        else:
            _descend(config, path[:-1], nested, roots)[path[-1]] = word
    return config


def _is_name(path: tuple[str, ...], nested: Mapping[str, str], roots: Mapping[str, str]) -> bool:
    return path[0] in roots and all(p in nested for p in path[1:])


def _descend(config: dict[str, Any], path: tuple[str, ...], nested: Mapping[str, str],
             roots: Mapping[str, str]) -> dict[str, Any]:
    """The mapping that holds the options at ``path``, made where it is not there yet."""
    here = config
    for k, step in enumerate(path):
        value = here.get(step)
        if isinstance(value, str) and path[0] in roots:
            value = {"class_path": value}
        is_part = _is_name(path[:k + 1], nested, roots) or (isinstance(value, Mapping) and "class_path" in value)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise UserError(f"{'.'.join(path[:k + 1])} is {brief(value)} and takes no option {'.'.join(path)}.")
        here[step] = here = dict(value)
        if is_part:
            args = here.get("init_args") or {}
            if not isinstance(args, Mapping):
                raise UserError(f"init_args of {'.'.join(path[:k + 1])} must be a mapping of options, not {brief(args)}.")
            here["init_args"] = here = dict(args)
    return here


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value
