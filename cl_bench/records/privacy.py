"""What a record says of the person and the machine that made it: taken out before it is shared, and looked for again after.

Three kinds of text are in a record. What identifies a run (its fingerprint, names, labels, rows and columns) is made
without places and stays word for word; a name of a person in it is refused, since a change would make another run of it.
Options that hold places become :data:`PLACE`, which whoever runs it again fills in. All other text is free, and is
rewritten: paths, the user's name and the machine's.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..identity import called_place, is_place

__all__ = ["PLACE", "clean", "clean_event", "findings", "is_placeholder", "names_of_this_machine", "places"]

PLACE = "<place>"
# Names that many machines share, and that tell nobody apart.
COMMON = frozenset({"root", "user", "users", "home", "localhost", "localdomain", "local", "ubuntu", "debian", "admin", "nobody",
                    "runner", "default", "docker", "public", "shared", "jovyan", "linux", "data", "work", "app", "test"})
# Where it stands in a record: text that identifies. "*" is any key or index.
KEPT = tuple(tuple(place.split(".")) for place in (
    "id", "status", "started", "finished", "scenario.name", "scenario.label", "scenario.kind", "method.name", "method.label",
    "backbone.name", "backbone.label", "backbone.sha256", "*.source_digest", "fingerprint.**", "metrics.**", "matrix.**",
    "stream.*.name", "stream.*.domain", "experiences.*.name", "test_sets.*.name", "cost.growth.*.experience",
))
STATED = ("paper", "summary", "family", "reference")  # by a class; those that came with cl-bench are public
OURS = ("cl_bench.", "cl_bench_methods.", "cl_bench_scenarios.")
_SEGMENT = r"[^\s\"'<>|*?:;,()\[\]{}]"
_PATH = re.compile(
    r"(?P<web>\bhttps?://[^\s\"'<>]*)"
    r"|(?P<url>\b[A-Za-z][A-Za-z0-9+.-]*:/{2,}[^\s\"'<>]*|\b(?:file|local-dir|sqlite):[^\s\"'<>]+)"
    r"|(?P<quoted>(?<=[\"'])(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)[^\"'\n]*(?=[\"']))"
    rf"|(?P<home>/(?:home|Users)/{_SEGMENT}+)"
    rf"|(?P<drive>(?<![A-Za-z0-9])[A-Za-z]:[\\/]{_SEGMENT}*|\\\\{_SEGMENT}+)"
    rf"|(?P<tilde>(?<![\w.])~[\w.-]*/{_SEGMENT}*)"
    rf"|(?P<plain>(?<![\w./~)\]>])/(?=[^\s/]){_SEGMENT}+)")
_HOMES = re.compile(r"(?:[/\\](?:home|Users|Documents and Settings)[/\\]+|~)([^\s/\\\"'<>|*?:;,()\[\]{}~]+)")


def names_of_this_machine() -> list[str]:
    """What the user of this process and its machine are called, but for names that many share."""
    found = [os.environ.get(key, "") for key in ("USER", "LOGNAME", "USERNAME")]
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
        found.append(getpass.getuser())
    with contextlib.suppress(OSError, RuntimeError):  # a user without a home
        found.append(Path.home().name)
    for host in (socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")):
        found += [host, host.partition(".")[0]]
    return _telling(found)


def _telling(names: Iterable[str]) -> list[str]:
    return sorted({n for n in names if len(n) > 1 and n.lower() not in COMMON and not n.isdigit()}, key=lambda n: (-len(n), n))


def is_placeholder(value: Any) -> bool:
    """Whether a value of a shared config stands for a place that is not told."""
    return isinstance(value, str) and value.startswith(PLACE)


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of every place in a config, told or not."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path":
                continue  # code, and no place of data
            held = called_place(key) and isinstance(inner, str) and bool(inner)
            yield from [((*at, str(key)), inner)] if held else places(inner, (*at, str(key)))
    elif isinstance(value, (list, tuple)):
        for k, inner in enumerate(value):
            yield from places(inner, (*at, str(k)))
    elif is_placeholder(value) or is_place(value):
        yield at, value


def clean(record: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A record that tells neither where it was made nor by whom; ``names`` are hidden, and those that its paths tell.

    Raises:
        UserError: where what identifies the run holds one of them.
    """
    hidden = _telling([*names, *_told_by_paths(record)])
    made = {key: _rewritten(value, (key,), hidden) for key, value in record.items()}
    _hide_places(made)
    for part in ("scenario", "method", "backbone"):
        given = record.get(part)
        if isinstance(given, Mapping) and str(given.get("class_path", "")).startswith(OURS):
            made[part].update({key: given[key] for key in STATED if key in given})
    if found := next(findings(made, hidden), None):
        raise UserError(f"the record {record.get('id')} would tell {found[1]!r} in {found[0]}, which identifies the run and "
                        "cannot be rewritten; rename it and run again, or allow the word with --allow WORD.")
    return made


def clean_event(event: Mapping[str, Any], names: Collection[str], record: Mapping[str, Any]) -> dict[str, Any]:
    """One line of events, rewritten like the free text of its record."""
    hidden = _telling([*names, *_told_by_paths(record), *_told_by_paths(event)])
    kept = ("kind", "name", "experience")
    made = {key: value if key in kept else _rewritten(value, (key,), hidden) for key, value in event.items()}
    if found := next(findings(made, hidden), None):
        raise UserError(f"an event of {record.get('id')} would tell {found[1]!r} in {found[0]}; rename it and run again, or "
                        "allow the word with --allow WORD.")
    return made


def findings(value: Any, names: Collection[str], at: str = "") -> Iterator[tuple[str, str]]:
    """(where, what) of every path and hidden name that a value still tells, keys of mappings among it."""
    if isinstance(value, Mapping):
        ours = str(value.get("class_path", "")).startswith(OURS)
        for key, inner in value.items():
            yield from findings(str(key), names, f"a key of {at or 'the record'}")
            if not (ours and key in STATED):
                yield from findings(inner, names, f"{at}.{key}" if at else str(key))
    elif isinstance(value, (list, tuple)):
        for k, inner in enumerate(value):
            yield from findings(inner, names, f"{at}.{k}")
    elif isinstance(value, str):
        for match in _PATH.finditer(value):
            if match.lastgroup != "web":
                yield at, match.group()
        for name in names:
            if (told := _named(name).search(value)) is not None:
                yield at, told.group()


def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE)


def _told_by_paths(value: Any) -> set[str]:
    """Names of users that the homes in a value's paths tell."""
    if isinstance(value, Mapping):
        return {name for pair in value.items() for part in pair for name in _told_by_paths(part)}
    if isinstance(value, (list, tuple)):
        return {name for part in value for name in _told_by_paths(part)}
    return set(_HOMES.findall(value)) if isinstance(value, str) else set()


def _rewritten(value: Any, at: tuple[str, ...], names: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _rewritten(inner, (*at, str(key)), names) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(inner, (*at, str(k)), names) for k, inner in enumerate(value)]
    if not isinstance(value, str) or any(_fits(at, place) for place in KEPT):
        return value
    # An option that is a place becomes one of no name later; only its file of code keeps its own.
    text = _PATH.sub(_pathless, value)
    for name in names:
        text = _named(name).sub("<name>", text)
    return text


def _pathless(match: re.Match[str]) -> str:
    text = match.group()
    if match.lastgroup == "web":
        return text
    last = re.split(r"[\\/]", text)[-1]
    return "<path>" + (last if re.fullmatch(r"[\w.-]+\.py", last) else "")


def _fits(at: tuple[str, ...], place: tuple[str, ...]) -> bool:
    if place and place[-1] == "**":
        return _fits(at[:len(place) - 1], place[:-1])
    return len(at) == len(place) and all(p in ("*", a) for a, p in zip(at, place, strict=True))


def _hide_places(record: dict[str, Any]) -> None:
    """Options that are places, in the config and in what the record says of each part, as :data:`PLACE`."""
    for root in ("scenario", "method", "backbone"):
        if isinstance(part := record.get(root), dict):
            record[root] = {key: _placeless(value, key) if key in ("args", "class_path") else value
                            for key, value in part.items()}
    if isinstance(config := record.get("config"), dict):
        record["config"] = {key: _placeless(value, key) for key, value in config.items()}


def _placeless(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {k: _placeless(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_placeless(v, "") for v in value]
    if not isinstance(value, str) or not value:
        return value
    if key == "class_path":
        return re.sub(r"^(?:.*[\\/])?(?:<path>)?([^\\/<>]*\.py):", rf"{PLACE}\1:", value)
    return PLACE if called_place(key) or value.startswith("<path>") or is_place(value) else value
