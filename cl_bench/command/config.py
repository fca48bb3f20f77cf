"""Typed configuration of a run: a class's own signature is its schema, its docstring its help.

A YAML file and a command line become the same mapping (``arguments``), whose parts are read by the signatures that they
name (``parts``, ``typed``); ``part_help`` tells what a part is; jsonargparse reads types that are none of ours.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..errors import Helped, UserError
from ..identity import arguments, normal
from ..ranges import Amount, Seed, hints
from ..records.source_digest import class_paths, source_digest
from ..registry import GROUPS, entries, name_of, spawnable
from . import typed
from .arguments import Option, merged, options_of, with_files
from .files import brief, config_file, read_yaml
from .parts import NESTED, bases, kind_of, make, portable, read_part, resolve, same_class
from .parts import ROOTS as _ROOTS
from .parts import class_of as _class

__all__ = ["build", "config_file", "named", "parse", "plan_from", "read_yaml"]

_KEYS = ("scenario", "method", "backbone", "label", "seed", "checkpoint", "checkpoint_every", "compute", "source")
_KINDS = {root: f"{kind_of(group)}s" for root, group in _ROOTS.items()}


def parse(argv: Sequence[str], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain data of a run: class paths and resolved arguments, every default filled in.

    Args:
        argv: options; ``--config FILE`` may be among them.
        config: a config as a mapping, applied before ``argv``.

    Raises:
        UserError: for anything that does not fit, in one sentence.
    """
    rest, base = with_files(list(argv), config or {})
    options = options_of(rest, _KINDS)
    _help(options)
    given = merged(base, options, NESTED, _ROOTS, same_class)
    _known(given, _KEYS)
    for need in ("scenario", "method"):
        if given.get(need) is None:
            raise UserError(f"name a {need} with --{need} NAME; `cl-bench list {need}s` shows them.")
    base = bases()
    read = {"scenario": read_part("scenario", base[_ROOTS["scenario"]], given["scenario"]),
            "method": read_part("method", base[_ROOTS["method"]], given["method"])}
    backbone = given.get("backbone")
    if backbone is None:
        backbone = make(read["scenario"], _ROOTS["scenario"]).backbone
    read["backbone"] = read_part("backbone", base[_ROOTS["backbone"]], backbone)
    plain: dict[str, Any] = {root: portable(part) for root, part in read.items()}
    if given.get("label") is not None:
        plain["label"] = _given_label(given["label"])
    plain["seed"] = _plain("seed", Seed, given.get("seed", 0))
    plain["checkpoint"] = _plain("checkpoint", bool, given.get("checkpoint", True))
    plain["checkpoint_every"] = _plain("checkpoint_every", Amount, given.get("checkpoint_every", 10.0))
    return {**plain, **{group: _settings(group, given.get(group)) for group in ("compute", "source")}}


def _given_label(value: Any) -> str:
    """What a user calls the runs of a method in one setting: a short line."""
    text = str(_plain("label", str, value)).strip()
    if not text or len(text) > 80 or not text.isprintable():
        raise UserError(f"label must be a line of 1 to 80 characters, not {brief(value)}.")
    return text


def _plain(name: str, hint: Any, value: Any) -> Any:
    return typed.Reader(read_part).read(name, hint, value)


def _records() -> dict[str, type]:
    from ..engine.compute import Compute
    from ..engine.source_training import SourceRecipe

    return {"compute": Compute, "source": SourceRecipe}


def _settings(group: str, given: Any) -> dict[str, Any]:
    """The fields of a settings record, those that were given and the defaults of the others."""
    record = _records()[group]
    if not isinstance(given, Mapping | None):
        raise UserError(f"{group} must be a mapping of options, not {brief(given)}.")
    _known(given or {}, [f.name for f in fields(record)], f"{group}.")
    known = hints(record)
    return asdict(record(**{k: _plain(f"{group}.{k}", known[k], v) for k, v in (given or {}).items()}))


def _known(given: Mapping[Any, Any], keys: Sequence[str], before: str = "") -> None:
    every = [*(f"{before}{k}" for k in keys),
             *(f"{group}.{f.name}" for group, record in _records().items() for f in fields(record))]
    words = dict.fromkeys([*every, *(k.rpartition(".")[2] for k in every)])
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(f"{before}{key}", words, n=2)
            raise UserError(f"there is no option {brief(f'{before}{key}')}; " + (
                f"did you mean {' or '.join(near)}?" if near else "see `cl-bench run --help`."))


def _help(options: Sequence[Option]) -> None:
    """``--method.help NAME``: what one part is and what its parameters mean."""
    for path, name in options:
        if path[-1] == "help" and path[0] in _ROOTS:
            from .part_help import part_help

            group = NESTED.get(path[-2], _ROOTS[path[0]])
            print(part_help(".".join(path[:-1]), name, _class(resolve(group, name))), end="")
            raise Helped(0)


def build(config: Mapping[str, Any], **built: Any) -> tuple[Any, Any, Any]:
    """(scenario, backbone, backbone -> method) from what :func:`parse` returned, but for what is built already."""
    scenario, backbone, method = (
        built[root] if root in built else make(config[root], _ROOTS[root]) for root in ("scenario", "backbone", "method"))
    return scenario, backbone, method


def named(config: Mapping[str, Any], root: str) -> dict[str, Any]:
    """What a record calls one of the three parts."""
    part = config[root]
    cls = _class(part["class_path"])
    label = _label(part, _ROOTS[root])
    if root == "method":
        label = config.get("label") or label
    facts = {"name": name_of(_ROOTS[root], cls), "class_path": part["class_path"], "args": dict(part.get("init_args") or {}),
             "label": label, "source_digest": source_digest(*map(_class, class_paths(part)))}
    if "preset" in part:
        facts["preset"] = part["preset"]
    if root == "method":
        facts.update(family=cls.family, paper=cls.paper, reference=vars(cls).get("reference", ""),
                     summary=" ".join((cls.__doc__ or "").split("\n\n")[0].split()))
    if root == "scenario":
        facts.update(name=label, family=cls.family, paper=cls.paper)
    return facts


def _label(part: Mapping[str, Any], group: str) -> str:
    """A name and, in brackets, the arguments that are not at their defaults, to any depth; places are not told.

    A scenario's drawn order is ``order=drawn``: runs over several draws stand in one table, and the record has the number.
    """
    from ..scenario import Scenario

    cls = _class(str(part["class_path"]))
    defaults = {k: v.default for k, v in inspect.signature(cls).parameters.items()}
    given = {k: _labelled(v) for k, v in (part.get("init_args") or {}).items()}
    told = arguments(cls, given, cls.places if isinstance(cls, type) and issubclass(cls, Scenario) else ())
    changed = {k: v for k, v in told.items() if k not in defaults or v != normal(defaults[k])}
    if group == GROUPS["scenarios"] and type(changed.get("order")) is int:
        if type(defaults.get("order")) is int:
            del changed["order"]
        else:
            changed["order"] = "drawn"
    inside = ", ".join(f"{k}={v}" for k, v in changed.items())
    return name_of(group, cls) + (f"({inside})" if inside else "")


def _labelled(value: Any) -> Any:
    """``value`` with the parts in it, which have a class and arguments, as their labels."""
    if isinstance(value, (list, tuple)):
        return [_labelled(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        return {k: _labelled(v) for k, v in value.items()}
    cls = _class(str(value["class_path"]))
    groups = [g for g in GROUPS.values() if name_of(g, cls) in entries(g)]
    return _label(value, groups[0] if groups else GROUPS["scenarios"])


def plan_from(config: Mapping[str, Any], suite: str | None = None, **built: Any) -> Any:
    """A :class:`cl_bench.engine.runner.Plan` from the plain data of :func:`parse`.

    built: its ``scenario`` or ``backbone``, where they are built already.

    Raises:
        UserError: for parts that cannot be built, or a method that needs what the scenario does not give.
    """
    from ..engine.compute import Compute
    from ..engine.runner import Plan
    from ..engine.source_training import SourceRecipe

    scenario, backbone, method = build(config, **built)
    compute = Compute(**dict(config.get("compute") or {}))
    if compute.workers:
        spawnable()
    return Plan(
        scenario=scenario, backbone=backbone, build=method, method=_class(config["method"]["class_path"]),
        names={root: named(config, root) for root in _ROOTS}, seed=int(config.get("seed", 0)),
        compute=compute, recipe=SourceRecipe(**dict(config.get("source") or {})),
        suite=suite, checkpoint=bool(config.get("checkpoint", True)),
        checkpoint_every=float(config.get("checkpoint_every", 10.0)), config=dict(config),
    )
