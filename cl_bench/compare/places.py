"""Pages, exports and figures travel; where files lie on the machine that made them does not.

An absolute path in any text becomes ``…/its name`` (of a record's own file ``…/run/run.json``): what is left says which
file is meant, and neither whose machine it was nor how its disks are laid out.
"""

from __future__ import annotations

import json
import re

__all__ = ["hide_places", "hide_places_in_json"]

_PART = r"[^\s/\\\"'<>|:;,()\[\]{}]+"
# A path stands alone or after a sign that can come before one: a quote, a bracket, = : , ; or a space. URLs are none: their
# slashes follow letters and a colon; "and/or", "1/2" and "train/0" have no slash at the beginning.
_INSIDE = re.compile(
    rf"(?:(?:file|sqlite)(?::|%3A)/{{2,}}|(?:(?<=^)|(?<=[\s\"'=(\[{{,;|>]))(?:~[\w.-]*/|/)|(?<=local-dir:)(?:~[\w.-]*/|/)|"
    rf"(?<=\w[:.])(?:~[\w.-]*/|/)(?!/)|(?<![A-Za-z])[A-Za-z]:(?:\\\\?|/)(?!/))(?:{_PART}(?:\\\\?|/)+)*{_PART}/?")
_OWN = ("run.json", "events.jsonl", "arrays.npz", "DONE", "LOCK")
_STRING = re.compile(r'"[^"\\/]*(?:\\.|/)(?:[^"\\]|\\.)*"')  # strings of JSON that hold a slash of either kind
_WHOLE = re.compile(r"(?:~[\w.-]*[/\\]|/(?=[^/\s])|[A-Za-z]:[/\\]|(?:file|sqlite):/{2,})[^\n]*")


def hide_places(text: str) -> str:
    """``text`` without absolute paths. A text that is a path as a whole may hold spaces; one among words may not."""
    if "/" not in text and "\\" not in text:
        return text
    if _WHOLE.fullmatch(text) and not re.search(r"\s[/~]|[:;,]\s|\.\s", text):
        return _short(text)
    return _INSIDE.sub(lambda found: _short(found[0]), text)


def _short(path: str) -> str:
    parts = [p for p in re.split(r"[/\\]+", re.sub(r"^(?:file|sqlite)(?::|%3A)", "", path)) if p and p != "~"]
    if not parts:
        return path
    trailing = parts[-1].rstrip(".!?")
    return "…/" + "/".join(parts[-2:] if trailing in _OWN and len(parts) > 1 else parts[-1:])


def hide_places_in_json(text: str) -> str:
    """The same of every string, keys too, in JSON text; strings without a path stay byte for byte."""
    def one(found: re.Match[str]) -> str:
        held = found[0]
        said = json.loads(held)
        short = hide_places(said)
        return held if short == said else json.dumps(short, ensure_ascii=False)

    return _STRING.sub(one, text)
