"""Scenarios, methods and backbones as plain data: a class path with every option filled in, read from a signature."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from ..errors import UserError
from ..ranges import hints
from ..registry import GROUPS, entries, find, load_path
from . import typed
from .files import brief

__all__ = ["NESTED", "ROOTS", "bases", "class_of", "kind_of", "make", "portable", "read_part", "resolve", "same_class", "takes"]

ROOTS = {"scenario": GROUPS["scenarios"], "method": GROUPS["methods"], "backbone": GROUPS["backbones"]}
# A parameter that wraps another scenario is called "of", one that wraps another method "host".
NESTED = {"of": GROUPS["scenarios"], "host": GROUPS["methods"]}


@dataclass(frozen=True)
class Parameter:
    """What a signature says of one option; ``default`` is ``inspect.Parameter.empty`` where a value must be given."""

    hint: Any
    default: Any
    typed: bool


def class_of(path: str) -> Any:
    """The class or function at ``package.module.Class``, ``package.module:Class`` or ``path/to/file.py:Class``.

    Raises:
        UserError: if there is none.
    """
    if ":" in path:
        return load_path(path)
    steps = path.split(".")
    for k in range(len(steps) - 1, 0, -1):
        module = ".".join(steps[:k])
        try:
            there = module in sys.modules or importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            continue
        if there:
            return load_path(f"{module}:{'.'.join(steps[k:])}")
    return load_path(f"{'.'.join(steps[:-1]) or path}:{steps[-1]}")


def bases() -> dict[str, type]:
    """What every class of a group is."""
    from ..backbones import Backbone
    from ..method import Method
    from ..scenario import Scenario

    return {GROUPS["scenarios"]: Scenario, GROUPS["methods"]: Method, GROUPS["backbones"]: Backbone}


def _group(base: type) -> str:
    return next(group for group, ours in bases().items() if issubclass(base, ours))


def kind_of(group: str) -> str:
    """``method`` for ``cl_bench.methods``."""
    return group.rpartition(".")[2].removesuffix("s")


def resolve(group: str, name: str) -> str:
    """A registered name, a class path or ``file.py:Class`` to the dotted class path.

    Raises:
        UserError: where there is no such class, or it is none of this group.
    """
    dotted = "." in name and all(step.isidentifier() for step in name.split("."))
    target = class_of(name) if dotted and not name.endswith(".py") and name not in entries(group) else find(group, name)
    base = bases()[group]
    function = callable(target) and not isinstance(target, type) and group == GROUPS["backbones"]
    if not function and not (isinstance(target, type) and issubclass(target, base)):
        raise UserError(f"{name} is no {kind_of(group)}: it is not a subclass of cl_bench.{base.__name__}.")
    return f"{target.__module__}.{target.__qualname__}"


def same_class(group: str, a: Any, b: Any) -> bool:
    """Whether two names of a group are one class; False where either is none."""
    try:
        return resolve(group, str(a)) == resolve(group, str(b))
    except UserError:
        return False


def takes(target: Any, group: str) -> dict[str, Parameter]:
    """The options of a class or function: its keywords, and through ``**kwargs`` those of its bases.

    A method's first parameter is the backbone, which the harness provides.
    """
    found: dict[str, Parameter] = {}
    makers = [c for c in target.__mro__ if "__init__" in vars(c)] if isinstance(target, type) else [target]
    for maker in makers:
        known, more = hints(maker), False
        signature = list(inspect.signature(maker).parameters.values())
        for p in signature[1:] if group == GROUPS["methods"] else signature:
            more = more or p.kind is p.VAR_KEYWORD
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, Parameter(known.get(p.name, Any), p.default, p.annotation is not p.empty))
        if not more:
            break
    return found


def read_part(name: str, base: type, given: Any) -> dict[str, Any]:
    """``{"class_path": ..., "init_args": {...}}`` with every option, from a name or a mapping of the same form.

    A ``preset`` beside them, or among the options, stands for published values that the class names so (``presets``); options
    that are given count for more, and the part keeps the preset's name.

    Args:
        name: where it stands, such as ``scenario.of``.
        base: the class that it must be of.

    Raises:
        UserError: for anything that does not fit, in one sentence with the option's name.
    """
    group = _group(base)
    kind = kind_of(group)
    if isinstance(given, type) or (callable(given) and hasattr(given, "__qualname__")):
        given = f"{given.__module__}.{given.__qualname__}"
    if isinstance(given, str):
        given = {"class_path": str(given)}
    form = f"{name} must be a name, or a mapping with class_path and init_args, not "
    if not isinstance(given, Mapping):
        raise UserError(f"{form}{brief(given)}.")
    if not set(given) <= {"class_path", "init_args", "preset"} or not given:
        raise UserError(f"{form}one with {', '.join(map(str, given)) or 'nothing in it'}.")
    options = given.get("init_args")
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"init_args of {given.get('class_path', name)} must be a mapping of options, "
                        f"not {brief(options)}.")
    options = dict(options or {})
    path = given.get("class_path")
    if path is None or path in (f"cl_bench.{base.__name__}", f"{base.__module__}.{base.__name__}"):
        raise UserError(f"name a {kind} with --{name} NAME" + (f" where you give it options ({next(iter(options))!r})"
                        if options else "") + f"; `cl-bench list {kind}s` shows them.")
    if not isinstance(path, str):
        raise UserError(f"{form}one with class_path: {brief(path)}.")
    target = class_of(found := resolve(group, path))
    if isinstance(target, type) and not issubclass(target, base):
        raise UserError(f"{name} must be a {base.__name__}, and {path} is none.")
    accepted = takes(target, group)
    if "preset" not in accepted and (chosen := options.pop("preset", given.get("preset"))) is not None:
        options = {**_preset(target, chosen), **options}
        return {"class_path": found, "init_args": _options(name, target, accepted, options), "preset": str(chosen)}
    return {"class_path": found, "init_args": _options(name, target, accepted, options)}


def _preset(target: Any, chosen: Any) -> dict[str, Any]:
    """The published values that a method names so."""
    is_method = isinstance(target, type) and issubclass(target, bases()[GROUPS["methods"]])
    presets: Mapping[str, Any] = getattr(target, "presets") if is_method else {}  # noqa: B009
    if not isinstance(chosen, str) or chosen not in presets:
        raise UserError(f"{target.__name__} has no preset {brief(chosen)}; "
                        + (f"there is {', '.join(presets)}." if presets else "it has none, give the options themselves."))
    return dict(presets[chosen])


_PLAIN = typed.Reader(read_part)


def _options(name: str, target: Any, accepted: Mapping[str, Parameter], given: Mapping[Any, Any]) -> dict[str, Any]:
    for key in given:
        if key not in accepted:
            near = difflib.get_close_matches(str(key), accepted, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(accepted) or 'no options'}."
            raise UserError(f"{target.__name__} has no option {brief(key)}; {hint}")
    options: dict[str, Any] = {}
    for key, parameter in accepted.items():
        if key in given:
            value = given[key] if key not in NESTED else _bare(f"{name}.{key}", parameter.hint, given[key])
            options[key] = _PLAIN.read(f"{name}.{key}", parameter.hint, value)
        elif parameter.default is inspect.Parameter.empty:
            if not parameter.typed:
                raise UserError(f"{target.__name__} must give its parameter {key!r} a type and a default, "
                                f"such as {key}: float = 0.1.")
            raise UserError(f"{target.__name__} needs {key}: give --{name}.{key} VALUE.")
        elif (base := typed.made_of(parameter.hint)) is not None and parameter.default is not None:
            options[key] = read_part(f"{name}.{key}", base, parameter.default)
        elif _is_plain(parameter.default):
            options[key] = parameter.default
    return options


def _bare(name: str, hint: Any, value: Any) -> Any:
    """The name alone of a part that a class builds itself: where its parameter takes text, and no part."""
    takes_text = (get_args(hint)[0] if get_origin(hint) is Annotated else hint) is str
    if not takes_text or not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        return value
    if options := value.get("init_args"):
        raise UserError(f"{name} is a name and takes no options such as {next(iter(options))}; its class says where they go.")
    return value["class_path"]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else value is None or isinstance(
        value, (str, int, float))


def make(part: Mapping[str, Any], group: str) -> Any:
    """The object that a part describes; of a method its maker, ``backbone -> method``, since a run provides the backbone.

    Raises:
        UserError: what a constructor says against its options, or that it fails.
    """
    target = class_of(str(part["class_path"]))
    accepted = takes(target, group)
    options = {k: _BUILT.read(k, accepted[k].hint, v) if k in accepted else v
               for k, v in (part.get("init_args") or {}).items()}
    if group == GROUPS["methods"]:
        return functools.partial(target, **options)
    try:
        made = target(**options)
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{kind_of(group)} {target.__name__} cannot be built: "
                        f"{' '.join(str(fault).split()) or type(fault).__name__}.") from fault
    if not isinstance(made, bases()[group]):  # a function that was named as a backbone may make anything
        raise UserError(f"{target.__name__} made no {kind_of(group)}, but {brief(made)}.")
    return made


def _inner(name: str, base: type, value: Any) -> Any:
    return make(read_part(name, base, value), _group(base))


_BUILT = typed.Reader(_inner, builds=True)


def portable(value: Any) -> Any:
    """Classes of a user's own file by that file, so that another process can build the run again."""
    if isinstance(value, (list, tuple)):
        return type(value)(portable(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    plain = {k: portable(v) for k, v in value.items()}
    module, _, name = str(plain.get("class_path", "")).rpartition(".")
    if module.startswith("cl_bench_user_"):
        plain["class_path"] = f"{sys.modules[module].__file__}:{name}"
    return plain

