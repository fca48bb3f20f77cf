"""Typed configuration: a method's own signature is its schema, its docstring its help. Parsed by jsonargparse."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..identity import arguments, normal
from ..records.source_digest import class_paths, source_digest
from ..registry import GROUPS, entries, find, load_path, name_of
from .shipped import shipped_configs

__all__ = ["build", "config_file", "parse", "plan_from"]

_ROOTS = {"scenario": "cl_bench.scenarios", "method": "cl_bench.methods", "backbone": "cl_bench.backbones"}
# A parameter that wraps another scenario is called "of", one that wraps another method "host".
_NESTED = {"of": "cl_bench.scenarios", "host": "cl_bench.methods"}
_BASES = {f"cl_bench.{path}" for path in ("Method", "method.Method", "Scenario", "scenario.Scenario")}


def config_file(name: str) -> Path:
    """A config by path, or one that ships with cl-bench by name ("quickstart", "run/split_digits_codyra").

    Raises:
        UserError: where there is no such file, with the nearest names.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    for key, file in shipped.items():
        if name in (key, f"{key}.yaml", f"configs/{key}.yaml", key.partition("/")[2]):
            return file
    short = [k.partition("/")[2] for k in shipped]
    near = difflib.get_close_matches(name, [*shipped, *short], n=3)
    raise UserError(f"there is no config {name!r}; " + (f"did you mean {' or '.join(near)}?" if near else
                    f"give a file, or one of {', '.join(sorted(short))}."))


def read_yaml(path: Path) -> Any:
    """A YAML file, safe-loaded.

    Raises:
        UserError: where it cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise UserError(f"cannot read {path}: {fault.strerror}.") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(fault).split())}.") from fault


def _resolve(group: str, name: str) -> str:
    """A registered name or ``file.py:Class`` to the dotted class path that jsonargparse wants."""
    if re.fullmatch(r"[\w]+(\.[\w]+)+", name) and not name.endswith(".py") and name not in entries(group):
        name = ":".join(name.rsplit(".", 1))
    target = find(group, name)
    from .. import backbones, method, scenario

    base: type = {"method": method.Method, "scenario": scenario.Scenario, "backbone": backbones.Backbone}[_kind(group)]
    function = callable(target) and not isinstance(target, type) and group == _ROOTS["backbone"]
    if not function and not (isinstance(target, type) and issubclass(target, base)):
        raise UserError(f"{name} is no {_kind(group)}: it is not a subclass of cl_bench.{base.__name__}.")
    return f"{target.__module__}.{target.__qualname__}"


def _kind(group: str) -> str:
    return group.rpartition(".")[2].removesuffix("s")


def _names_to_paths(value: Any, group: str) -> Any:
    """Short names inside one of the three roots to class paths; everything else unchanged."""
    if isinstance(value, str):
        return {"class_path": _resolve(group, value)}
    form = f"{_kind(group)} must be a name, or a mapping with class_path and init_args, not "
    if not isinstance(value, Mapping):
        raise UserError(f"{form}{value!r}.")
    if "class_path" not in value or not set(value) <= {"class_path", "init_args"}:
        raise UserError(f"{form}one with {', '.join(map(str, value)) or 'nothing in it'}.")
    given = value.get("init_args") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"init_args of {value['class_path']} must be a mapping of options, not {given!r}.")
    args = {k: _names_to_paths(v, _NESTED[k]) if k in _NESTED and v is not None else v for k, v in given.items()}
    return {**value, "class_path": _resolve(group, str(value["class_path"])), **({"init_args": args} if args else {})}


def _argv_to_paths(argv: Sequence[str]) -> list[str]:
    """The same for command-line tokens ``--method codyra`` and ``--scenario.of=digits_c``."""
    out: list[str] = []
    expect: str | None = None
    for token in argv:
        if expect is not None and not token.startswith("--"):
            out.append(_resolve(expect, token))
            expect = None
            continue
        expect = None
        option, equals, value = token.partition("=")
        if option.startswith("--"):
            parts = option[2:].split(".")
            group = None
            if parts[0] in _ROOTS:
                group = _ROOTS[parts[0]] if len(parts) == 1 else _NESTED.get(parts[-1])
                if parts[-1] == "help":
                    group = _ROOTS[parts[0]]
            if group is not None and equals:
                token = f"{option}={_resolve(group, value)}"
            elif group is not None:
                expect = group
        out.append(token)
    if expect is not None:
        raise UserError(f"{out[-1]} needs a name; see `cl-bench list {expect.rpartition('.')[2]}`.")
    return out


def parser() -> Any:
    """The parser of ``cl-bench run``; imports torch, because its types are the contracts themselves."""
    from jsonargparse import ArgumentParser

    from ..backbones import Backbone
    from ..engine.compute import Compute
    from ..engine.source_training import SourceRecipe
    from ..method import Method
    from ..scenario import Scenario

    p = ArgumentParser(prog="cl-bench run", exit_on_error=False, description="Run one method on one scenario.")
    p.add_argument("--config", action="config", help="a YAML file with any of these keys; later options win")
    p.add_argument("--scenario", type=Scenario, help="a name of `cl-bench list scenarios`, or a class path")
    p.add_argument("--method", type=Callable[[Backbone], Method], help="a name, package.module:Class or file.py:Class")
    p.add_argument("--backbone", type=Backbone | None, default=None, help="default: the scenario's own")
    p.add_argument("--seed", type=int, default=0, help="one seed makes every random draw")
    p.add_argument("--checkpoint", type=bool, default=True, help="keep what it takes to resume after a stop")
    p.add_argument("--checkpoint_every", type=float, default=10.0,
                   help="seconds between two checkpoints inside of an experience or a stream, at least")
    p.add_dataclass_arguments(Compute, "compute", help="where and how to compute")
    p.add_dataclass_arguments(SourceRecipe, "source", help="how the source of a test stream is trained")
    return p


def parse(argv: Sequence[str], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain data of a run: class paths and resolved arguments, every default filled in.

    Args:
        argv: options; ``--config FILE`` may be among them.
        config: a config as a mapping, applied before ``argv``.

    Raises:
        UserError: for anything that does not fit, in one sentence.
    """
    argv, base = _split_config(list(argv), dict(config or {}))
    for root, group in _ROOTS.items():
        if base.get(root) is not None:
            base[root] = _names_to_paths(base[root], group)
    p = parser()
    tokens = _argv_to_paths(_short(argv))
    _help_on_function(tokens)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            if base:
                start = p.parse_object(base, defaults=False)
                found = p.parse_args(tokens, namespace=start)
            else:
                found = p.parse_args(tokens)
    except SystemExit:
        raise
    except UserError:
        raise
    except Exception as fault:
        raise UserError(_sentence(str(fault), p)) from fault
    for need in ("scenario", "method"):
        # options without a name would otherwise be those of the contract's own base class
        if found.get(need) is None or found[need].class_path in _BASES:
            raise UserError(f"name a {need} with --{need} NAME; `cl-bench list {need}s` shows them.")
    if found.get("backbone") is None:
        scenario = _instances(p, {"scenario": found.scenario.as_dict()}).scenario
        found.backbone = p.parse_args(["--backbone", _resolve(_ROOTS["backbone"], scenario.backbone)]).backbone
    return {k: _portable(v) for k, v in found.as_dict().items() if k not in ("config", "help")}


def _portable(value: Any) -> Any:
    """Classes of a user's own file by that file, so that another process can build the run again."""
    if isinstance(value, list):
        return [_portable(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    plain = {k: _portable(v) for k, v in value.items()}
    module, _, name = str(plain.get("class_path", "")).rpartition(".")
    if module.startswith("cl_bench_user_"):
        plain["class_path"] = f"{sys.modules[module].__file__}:{name}"
    return plain


def _help_on_function(tokens: Sequence[str]) -> None:
    """``--backbone.help NAME`` where the name is a function's: jsonargparse itself shows classes only."""
    from jsonargparse import ArgumentParser

    for option, path in itertools.pairwise(tokens):
        if option == "--backbone.help" and not isinstance(target := _class(path), type):
            p = ArgumentParser(prog="cl-bench run", add_help=False)
            p.add_function_arguments(target, "backbone")
            p.print_help()
            raise SystemExit(0)


def _split_config(argv: list[str], base: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--config FILE`` out of ``argv``; later files win key by key."""
    rest: list[str] = []
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
        base.update(data)
    return rest, base


def _short(argv: Sequence[str]) -> list[str]:
    """``--device cpu`` for ``--compute.device cpu``, and so for the other fields of Compute."""
    from ..engine.compute import Compute

    names = {f"--{f.name}" for f in fields(Compute)}
    return [f"--compute.{t[2:]}" if t.partition("=")[0] in names else t for t in argv]


def _sentence(message: str, p: Any) -> str:
    """jsonargparse's nested message as one sentence that says what to do."""
    text = " ".join(message.split())
    option = (re.search(r"class_path '(?P<cls>[\w.]+)': Option '(?P<key>[\w.]+)' is not accepted", text)
              or re.search(r"Option '(?P<key>[\w.]+)' is not accepted.*?class_path='(?P<cls>[\w.]+)'", text))
    if option is not None:
        where, key = option["cls"], option["key"]
        if where == "cl_bench.Backbone":
            return "name a backbone with --backbone NAME where you give it options; `cl-bench list backbones` shows them."
        if where in _BASES:  # the base class stands in where options come without a name
            kind = where.rpartition(".")[2].lower()
            return f"name the {kind} that option {key!r} is for; `cl-bench list {kind}s` shows them."
        accepted = [n for n in inspect.signature(_class(where)).parameters if n != "backbone"]
        near = difflib.get_close_matches(key, accepted, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(accepted) or 'no options'}."
        return f"{where.rpartition('.')[2]} has no option {key!r}; {hint}"
    lacking = re.search(r'Parser key "([\w.]+)".*?class_path \'([\w.]+)\': the following arguments are required: (\w+)', text)
    if lacking:
        return f"{lacking[2].rpartition('.')[2]} needs {lacking[3]}: give --{lacking[1]}.{lacking[3]} VALUE."
    untyped = re.search(r"Parameter '(\w+)' from '([\w.]+?)(?:\.__init__)?' does not specify a type", text)
    if untyped:
        return (f"{untyped[2].rpartition('.')[2]} must give its parameter {untyped[1]!r} a type and a default, "
                f"such as {untyped[1]}: float = 0.1.")
    inside = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    unknown = re.search(r"(?:[Uu]nrecognized arguments:|Key|Option) ['\"]?(-{0,2}[\w.]+)['\"]?", text)
    if inside or (unknown and re.search("nrecognized|not expected|does not exist|not accepted", text)):
        key = f"{inside[1]}.{inside[2]}" if inside else unknown[1].lstrip("-") if unknown else ""
        keys = [a.dest for a in p._actions if a.dest not in ("help", "config")]
        near = difflib.get_close_matches(key, dict.fromkeys([*keys, *(k.rpartition(".")[2] for k in keys)]), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `cl-bench run --help`."
        return f"there is no option {key!r}; {hint}"
    wrong = re.search(r'Parser key "(\w[\w.]*)": Expected an? (.*?)\.? Got value: (\S+?)[.,]? ', text + " ")
    if wrong:
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", wrong[2]).replace("__main__.", "")
        kind = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", kind)
        return f"{wrong[1]} must be {kind}, not {wrong[3]!r}."
    return text.rstrip(".") + "."


def _class(path: str) -> Any:
    from jsonargparse._util import import_object

    return load_path(path) if ":" in path else import_object(path)


def build(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(scenario, backbone, backbone -> method) from what :func:`parse` returned."""
    made = _instances(parser(), {k: config[k] for k in ("scenario", "backbone", "method")})
    return made.scenario, made.backbone, made.method


def _instances(p: Any, parts: Mapping[str, Any]) -> Any:
    """Objects from plain data; an error that a constructor meant for the user comes out unwrapped."""
    try:
        return p.instantiate(p.parse_object({root: _names_to_paths(part, _ROOTS[root]) for root, part in parts.items()}))
    except UserError:
        raise
    except (ValueError, TypeError) as fault:
        inner = fault
        while inner.__cause__ is not None or inner.__context__ is not None:
            inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
            if isinstance(inner, UserError):
                raise inner from fault
        raise UserError(_sentence(str(fault), p)) from fault


def preflight(config: Mapping[str, Any]) -> None:
    """Find what can be found wrong without reading weights or data.

    Raises:
        UserError: for a scenario that cannot be built, a method that needs what it does not give, a missing device.
    """
    from ..engine.compute import Compute, resolve_device
    from ..engine.optimizers import check_optimizers
    from ..engine.protocol import check_needs

    compute = Compute(**dict(config.get("compute") or {}))
    check_optimizers(compute.optimizers, resolve_device(compute.device))
    scenario = _instances(parser(), {"scenario": config["scenario"]}).scenario
    names = {root: _named(config, root) for root in ("scenario", "method")}
    check_needs(_class(config["method"]["class_path"]), scenario, names)


def _named(config: Mapping[str, Any], root: str) -> dict[str, Any]:
    """What a record calls one of the three parts."""
    part = config[root]
    cls = _class(part["class_path"])
    label = _label(part, _ROOTS[root])
    facts = {"name": name_of(_ROOTS[root], cls), "class_path": part["class_path"], "args": dict(part.get("init_args") or {}),
             "label": label, "source_digest": source_digest(*map(_class, class_paths(part)))}
    if root == "method":
        facts.update(family=cls.family, paper=cls.paper, summary=" ".join((cls.__doc__ or "").split("\n\n")[0].split()))
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


def plan_from(config: Mapping[str, Any], suite: str | None = None) -> Any:
    """A :class:`cl_bench.engine.runner.Plan` from the plain data of :func:`parse`."""
    from ..engine.compute import Compute
    from ..engine.runner import Plan
    from ..engine.source_training import SourceRecipe

    scenario, backbone, method = build(config)
    return Plan(
        scenario=scenario, backbone=backbone, build=method, method=_class(config["method"]["class_path"]),
        names={root: _named(config, root) for root in _ROOTS}, seed=int(config.get("seed", 0)),
        compute=Compute(**dict(config.get("compute") or {})), recipe=SourceRecipe(**dict(config.get("source") or {})),
        suite=suite, checkpoint=bool(config.get("checkpoint", True)),
        checkpoint_every=float(config.get("checkpoint_every", 10.0)), config=dict(config),
    )
