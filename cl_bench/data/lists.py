"""Text files that list images or classes, as data sets publish them and as people write them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import below, brief, existing_file, is_file
from .folder import Listing

__all__ = ["in_list", "lines_of", "one_label", "read_class_list", "with_labels"]

_LABELLED = re.compile(r"(.*[^\s,;])[\s,;]+([0-9]{1,9})")  # a path (spaces and all), then the label


def lines_of(path: str | Path, root: Path | None = None) -> list[str]:
    """The non-empty lines of a text file: UTF-8 or UTF-16, with or without a byte-order mark, any line ends.

    Args:
        root: the folder that the user names, where the file is one that lies in it.

    Raises:
        UserError: a missing, empty or unreadable file, a link that leads out of ``root``.
    """
    file = existing_file(path, root=root)
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as fault:
        raise UserError(f'"{file}" is not a text file in UTF-8: expected one entry per line.') from fault
    if "\0" in text:
        raise UserError(f'"{file}" is not a text file: expected one entry per line.')
    found = [line.strip() for line in re.split(r"\r\n|\r|\n", text.lstrip("\ufeff")) if line.strip()]
    if not found:
        raise UserError(f'"{file}" is empty: expected one entry per line.')
    return found


def in_list(folder: Path, file: str | Path, classes: Mapping[str, int]) -> Listing:
    """The images of ``folder`` that a list names, one ``class/file`` per line (folders before it are ignored), in its
    order.

    Raises:
        UserError: a line without a class that is there, or a file that is not.
    """
    files, labels = [], []
    for number, line in enumerate(lines_of(file), 1):
        parts = line.replace("\\", "/").split("/")
        name = parts[-2] if len(parts) > 1 else ""
        if name not in classes:
            raise UserError(f'line {number} of "{file}" names "{brief(line)}", but "{folder}" has no class folder '
                            f'"{brief(name)}".')
        files.append(below(folder, f"{name}/{parts[-1]}", f'line {number} of "{file}"'))
        labels.append(classes[name])
    _all_there(files, file)
    return files, labels


def with_labels(file: Path, root: Path, mapping: Sequence[int] = ()) -> Listing:
    """A list file of DomainNet's kind, a path below ``root`` and a label per line (space, tab or comma between them);
    ``mapping`` (or nothing) turns the file's labels into the head's.

    Raises:
        UserError: a line of another form, a label without a mapping, an image with two labels, a path that leaves ``root``, a
            missing image.
    """
    files, labels = [], []
    given: dict[Path, int] = {}
    for number, line in enumerate(lines_of(file, file.parent), 1):
        found = _LABELLED.fullmatch(line)
        if found is None:
            raise UserError(f'line {number} of "{file}" is {brief(line)!r}: expected an image\'s path and its label '
                            "(0, 1, ...).")
        label = int(found[2])
        if mapping and label >= len(mapping):
            raise UserError(f'line {number} of "{file}" has label {label}, where only 0 to {len(mapping) - 1} are mapped.')
        path = below(root, found[1], f'line {number} of "{file}"')
        one_label(given, path, label, f'line {number} of "{file}"')
        files.append(path)
        labels.append(mapping[label] if mapping else label)
    _all_there(files, file)
    return files, labels


def one_label(given: dict[Path, int], path: Path, label: int, told: str) -> None:
    """Note an image's label; a :class:`UserError` where it has had another. ``told``: what gives it now."""
    if (first := given.setdefault(path, label)) != label:
        raise UserError(f'{told} gives "{brief(str(path))}" label {label}, where it had label {first}: an image has one.')


def _all_there(files: Sequence[Path], file: str | Path) -> None:
    """One line per missing image would be long, and one missing file that is found in the third hour too late."""
    missing = [f for f in files if not is_file(f)]
    if missing:
        raise UserError(f'"{file}" names "{brief(str(missing[0]))}", which is not there ({len(missing)} of {len(files)} are '
                        "not): check root and the list.")


def read_class_list(path: str, folders: Collection[str] = ()) -> tuple[dict[str, int], tuple[str, ...]]:
    """Folder name of each class to its label, and readable names in label order (folder names where it has none).

    Takes the usual forms: text with a class per line, either its folder name alone (which may hold spaces) or its id
    first and a name after a tab or space (LOC_synset_mapping.txt); JSON {"0": ["n01440764", "tench"], ...}
    (imagenet_class_index.json), {"0": "tench", ...}, {"tench": 0, ...} or ["tench", ...]. Where a line could be read
    both ways, ``folders``, the class folders that are there, decide.

    Raises:
        UserError: none of them, or a class twice.
    """
    pairs = _from_json(path) if path.lower().endswith(".json") else _from_lines(lines_of(path), set(folders))
    labels = {pair[0]: k for k, pair in enumerate(pairs)}
    if len(labels) != len(pairs):
        again = next(pair[0] for k, pair in enumerate(pairs) if labels[pair[0]] != k)
        raise UserError(f'"{path}" lists the class "{again}" twice: expected every class once, in label order.')
    return labels, tuple(pair[1].split(",")[0].strip() if len(pair) > 1 else pair[0] for pair in pairs)


def _from_lines(lines: list[str], folders: set[str]) -> list[list[str]]:
    if any("\t" in line for line in lines):
        return [[part.strip() for part in line.split("\t", 1)] for line in lines]
    split = [line.split(maxsplit=1) for line in lines]
    whole = len(folders & set(lines)) > len(folders & {pair[0] for pair in split})
    return [[line] for line in lines] if whole else split


def _from_json(path: str) -> list[list[str]]:
    wanted = f'"{path}" is not a class index: expected {{"0": ["n01440764", "tench"], ...}}.'
    try:
        data: Any = json.loads("\n".join(lines_of(path)))
    except (ValueError, RecursionError) as fault:
        raise UserError(wanted) from fault
    if isinstance(data, dict) and sorted(map(repr, data.values())) == sorted(map(repr, range(len(data)))):  # class to index
        data = {str(k): name for name, k in data.items()}
    if isinstance(data, dict):
        data = [data.get(str(k)) for k in range(len(data))]
    entries = [[e] if isinstance(e, str) else e for e in data] if isinstance(data, list) else []
    if not entries or not all(isinstance(e, list) and e and all(isinstance(part, str) for part in e) for e in entries):
        raise UserError(wanted)
    return [e[:2] for e in entries]
