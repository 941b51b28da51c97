"""Files of an instance that its image makes from templates: host name, hosts, seeds of cloud-init.

Templates are written for Pongo2, a relative of Django's; what images use of it is translated and
rendered by Jinja2's sandbox. A template comes from an image, so it is not trusted: only the kinds of
nodes, filters and the one function that are listed here exist, each loop and filter draws on a budget
of time and steps, and sizes are limited.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Literal, cast
from urllib.parse import quote

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from utsuwa.core.errors import HostError, InvalidImage, OutOfSpace, TooLarge, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.host.files.atomic import read_below
from utsuwa.host.files.filetree import FileTree
from utsuwa.images.metadata import Template, parse_metadata

Trigger = Literal["create", "copy", "rename", "start"]

MAX_METADATA = 1 << 20
MAX_TEMPLATE = 64 * 1024
MAX_OUTPUT = 1 << 20
KEPT_SIZE = 8 * 1024
"""Up to this size texts are kept with what was made of them."""
MAX_STEPS = 100_000
MAX_DEPTH = 40
TIME_LIMIT = 5.0
"""Seconds for one template."""


@dataclass(frozen=True)
class TemplateContext:
    """What templates may know of their instance."""

    name: str
    architecture: str
    ephemeral: bool
    privileged: bool
    config: Mapping[str, str]
    """The merged config."""
    devices: Mapping[str, Mapping[str, str]]
    idmap: IdMap
    """The map through which the root file system is mounted."""


async def apply(triggers: Sequence[Trigger], folder: Path, rootfs: Path, context: TemplateContext) -> None:
    """Make the files whose templates name one of `triggers`, taken one after the other.

    `folder` holds `metadata.yaml` and `templates/`; an instance without metadata has none. Raises
    InvalidImage that names the template, OutOfSpace or HostError where the file could not be written;
    files of templates before that one stay.
    """
    await asyncio.to_thread(_apply_all, triggers, folder, rootfs, context)


def _apply_all(triggers: Sequence[Trigger], folder: Path, rootfs: Path, context: TemplateContext) -> None:
    for trigger in triggers:
        _apply(trigger, folder, rootfs, context)


def _apply(trigger: Trigger, folder: Path, rootfs: Path, context: TemplateContext) -> None:
    wanted = _wanted(trigger, folder)
    if not wanted:
        return
    with FileTree(rootfs, context.idmap) as tree:
        for target, template in sorted(wanted.items()):
            try:
                if template.create_only and tree.exists(target):
                    continue
                source = _source(folder, template.template)
                values = variables(trigger, target, template.properties, context)
                tree.write(target, render(source, values).encode(), parents=True)
            except (OutOfSpace, HostError) as error:
                raise type(error)(_failed(template, target, error)) from error
            except UtsuwaError as error:
                raise InvalidImage(_failed(template, target, error)) from error


def _failed(template: Template, target: str, error: UtsuwaError) -> str:
    return f"The template {template.template!r} for {target} failed: {error}"


def _wanted(trigger: Trigger, folder: Path) -> dict[str, Template]:
    try:
        data = read_below(folder, "metadata.yaml", MAX_METADATA)
    except OSError as error:
        raise InvalidImage(f"The instance's metadata.yaml cannot be read: {error.strerror}") from error
    except TooLarge as error:
        raise InvalidImage(f"The instance's {error}") from error
    if data is None:
        return {}
    templates = _templates(data) if len(data) <= KEPT_SIZE else parse_metadata(data).templates
    return {target: template for target, template in templates.items() if trigger in template.when}


@functools.lru_cache(maxsize=32)
def _templates(metadata: bytes) -> Mapping[str, Template]:
    """Instances of one image have the same text, most of the time."""
    return parse_metadata(metadata).templates


def _source(folder: Path, name: str) -> str:
    try:
        data = read_below(folder, f"templates/{name}", MAX_TEMPLATE)
    except OSError as error:
        raise InvalidImage(f"it cannot be read: {error.strerror}") from error
    if data is None:
        raise InvalidImage("it is not in the image")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidImage("it is not UTF-8") from None


class Flag(str):
    """`true` or `false`: a string for templates that compare it, but as a condition what it says."""

    __slots__ = ()

    def __new__(cls, value: bool) -> Flag:
        return super().__new__(cls, "true" if value else "false")

    def __bool__(self) -> bool:
        return self == "true"


class _ConfigGet:
    """`config_get(key, default)`; shows nothing of itself."""

    def __init__(self, config: Mapping[str, str]) -> None:
        self._config = config

    def __call__(self, key: object, default: object = "") -> object:
        return self._config.get(str(key), default)

    def __str__(self) -> str:
        return ""


def variables(
    trigger: Trigger, path: str, properties: Mapping[str, str], context: TemplateContext
) -> dict[str, Any]:
    """The names that a template sees."""
    instance = {
        "name": context.name,
        "type": "container",
        "architecture": context.architecture,
        "ephemeral": Flag(context.ephemeral),
        "privileged": Flag(context.privileged),
    }
    return {
        "trigger": trigger,
        "path": path,
        "container": instance,
        "instance": instance,
        "config": dict(context.config),
        "devices": {name: dict(device) for name, device in context.devices.items()},
        "properties": dict(properties),
        "config_get": _ConfigGet(context.config),
    }


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template gives; raises InvalidImage with the reason for what does not work.

    Blocking, for TIME_LIMIT seconds at most: belongs into a worker thread.
    """
    try:
        environment = _Environment(_Budget())
        code = _compiled(source) if len(source) <= KEPT_SIZE else _compile(source)
        template = environment.template_class.from_code(environment, code, {})
        parts, size = [], 0
        for part in template.generate(values):
            size += len(part)
            if size > MAX_OUTPUT:
                raise InvalidImage(f"it makes more than {MAX_OUTPUT} characters")
            parts.append(part)
        return "".join(parts)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InvalidImage(f"{'' if line is None else f'line {line}: '}{error.message}") from error
    except RecursionError:
        raise InvalidImage("it is nested too deep") from None
    except (TypeError, ValueError, KeyError, AttributeError, SyntaxError, MemoryError) as error:
        raise InvalidImage(f"{type(error).__name__}: {str(error)[:200]}") from error


def _compile(source: str) -> CodeType:
    """The code for a template, which draws on the budget of the environment that it is run with."""
    environment = _Environment(_Budget())
    tree = environment.parse(translate(source))
    _check(tree, environment, 0)
    return environment.compile(tree)


_compiled = functools.lru_cache(maxsize=64)(_compile)


# ---- from Pongo2 to Jinja2


_OPENING = re.compile(r"\{[{%#]")
_CLOSINGS = {"{{": "}}", "{%": "%}", "{#": "#}"}
_COMMENT = re.compile(r"-?\s*comment\b")
_END_COMMENT = re.compile(r"\{%-?\s*endcomment\s*-?%\}")
_STRING = re.compile(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", re.DOTALL)
_ARGUMENT = re.compile(r"(\|\s*[A-Za-z_]\w*)\s*:\s*(-?[A-Za-z0-9_.]+|\x00[0-9]+\x00)")
_AUTOESCAPE = re.compile(r"-?\s*(?:autoescape\s+(?:on|off)|endautoescape)\s*-?\Z")
_EQUAL = re.compile(r"(-?\s*)if(not)?equal\s+(\S+)\s+(\S+)(\s*-?)\Z")
_END_EQUAL = re.compile(r"(-?\s*)endif(?:not)?equal(\s*-?)\Z")
_LOOP_NAMES = {"Counter": "index", "Counter0": "index0", "First": "first", "Last": "last"}


def translate(source: str) -> str:
    """Pongo2's spellings in Jinja2's: `|filter:argument`, `&&`, `||`, `!`, `ifequal`, `forloop`, `comment`.

    `autoescape` goes: nothing is escaped for HTML in either case, the files are none. Takes time in
    proportion to the length, whatever the source is.
    """
    parts: list[str] = []
    at = 0
    while opening := _OPENING.search(source, at):
        parts.append(source[at : opening.start()])
        end = _end(source, opening.end(), opening[0])
        if end < 0:
            raise InvalidImage(f"a {opening[0]!r} is not closed")
        at = end + 2
        body = source[opening.end() : end]
        if opening[0] == "{%" and _COMMENT.match(body):
            closing = _END_COMMENT.search(source, at)
            if closing is None:
                raise InvalidImage("a comment is not closed")
            at = closing.end()
        elif opening[0] != "{#":
            parts.append(_translate_tag(opening[0], body))
    return "".join([*parts, source[at:]])


def _end(source: str, at: int, opening: str) -> int:
    """Where the tag closes whose inside begins at `at`, texts in quotes passed over; -1: nowhere."""
    closing, quote_mark = _CLOSINGS[opening], ""
    if opening == "{#":
        return source.find(closing, at)
    while at < len(source):
        char = source[at]
        if quote_mark:
            at += char == "\\"
            quote_mark = "" if char == quote_mark else quote_mark
        elif char in "\"'":
            quote_mark = char
        elif source.startswith(closing, at):
            return at
        at += 1
    return -1


def _translate_tag(opening: str, body: str) -> str:
    strings: list[str] = []

    def put_away(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f"\0{len(strings) - 1}\0"

    body = _STRING.sub(put_away, body.replace("\0", ""))
    if opening == "{%":
        if _AUTOESCAPE.match(body):
            return ""
        body = _EQUAL.sub(lambda m: f"{m[1]}if {m[3]} {'!=' if m[2] else '=='} {m[4]}{m[5]}", body)
        body = _END_EQUAL.sub(r"\1endif\2", body)
    body = _ARGUMENT.sub(r"\1(\2)", body)
    body = re.sub(r"\bforloop\.(Counter0?|First|Last)\b", lambda m: f"loop.{_LOOP_NAMES[m[1]]}", body)
    body = body.replace("&&", " and ").replace("||", " or ")
    body = re.sub(r"!(?!=)", " not ", body)
    body = re.sub(r"\0([0-9]+)\0", lambda found: strings[int(found[1])], body)
    return f"{opening}{body}{_CLOSINGS[opening]}"


class _Budget:
    """Time and steps of one rendering."""

    def __init__(self) -> None:
        self._end = time.monotonic() + TIME_LIMIT
        self._steps = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS or time.monotonic() > self._end:
            raise InvalidImage("it takes too long")

    def loop(self, items: Any) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item


class _Environment(ImmutableSandboxedEnvironment):
    """Only what `_NODES`, `_FILTERS` and `variables` name."""

    intercepted_binops = frozenset("+-")

    def __init__(self, budget: _Budget) -> None:
        super().__init__(
            autoescape=False,
            keep_trailing_newline=True,
            optimized=False,
            cache_size=0,
            undefined=jinja2.ChainableUndefined,
        )
        self.globals.clear()
        self.tests.clear()
        self.filters.clear()
        self._budget = budget
        self.filters |= {name: self._limited(function) for name, function in _FILTERS.items()}
        self.filters[_LOOP] = budget.loop
        self.filters[_PAIRS] = _pairs

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._budget.step()
            return function(*arguments)

        return call

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Names after a dot are keys: no object's attributes are reached."""
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, LoopContext) and argument in _LOOP_NAMES.values():
            return getattr(obj, argument)
        if isinstance(obj, Mapping) and argument in obj:
            return obj[argument]
        if isinstance(obj, list | str) and str(argument).isdecimal() and int(argument) < len(obj):
            return obj[int(argument)]
        return self.undefined(name=str(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._budget.step()
        if isinstance(left, int) and isinstance(right, int):
            return left + right if operator == "+" else left - right
        if operator == "-":
            raise InvalidImage("only numbers can be subtracted")
        return _bounded(str(left) + str(right))


def _bounded(text: str) -> str:
    if len(text) > MAX_OUTPUT:
        raise InvalidImage("a text in it becomes too long")
    return text


_LOOP, _PAIRS = "_loop", "_pairs"
_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Const,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Call,
    nodes.Filter,
    nodes.If,
    nodes.For,
    nodes.Tuple,
    nodes.List,
    nodes.Assign,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Add,
    nodes.Sub,
)


def _check(node: nodes.Node, environment: _Environment, depth: int) -> None:
    """Refuse all that is not listed, and put every loop on the budget."""
    if depth > MAX_DEPTH:
        raise InvalidImage("it is nested too deep")
    if type(node) not in _NODES:
        raise InvalidImage(f"line {node.lineno}: {type(node).__name__} is not supported in templates")
    problem = _problem(node)
    if problem:
        raise InvalidImage(f"line {node.lineno}: {problem}")
    for child in node.iter_child_nodes():
        _check(child, environment, depth + 1)
    if isinstance(node, nodes.For):
        iterated = cast(nodes.Expr, node.iter)
        if isinstance(node.target, nodes.Tuple):
            iterated = _filtered(iterated, _PAIRS, environment)
        node.iter = _filtered(iterated, _LOOP, environment)


def _problem(node: nodes.Node) -> str:
    match node:
        case nodes.Call():
            plain = not (node.kwargs or node.dyn_args or node.dyn_kwargs)
            if not (isinstance(node.node, nodes.Name) and node.node.name == "config_get" and plain):
                return "the only function is config_get(key, default)"
        case nodes.Filter():
            if node.name not in _FILTERS or node.kwargs or node.dyn_args or node.dyn_kwargs:
                return f"the filter {node.name!r} is not supported"
        case nodes.Const(value=int() as number) if abs(number) > 2**63:
            return "a number is too large"
        case nodes.For(recursive=True):
            return "recursive loops are not supported"
        case _:
            pass
    return ""


def _filtered(node: nodes.Expr, name: str, environment: _Environment) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=environment)


def _pairs(items: Any) -> Iterable[Any]:
    """A loop with two names goes over a mapping's keys and values."""
    return sorted(items.items()) if isinstance(items, Mapping) else items


# ---- filters, with Pongo2's names and meanings


def _number(value: Any) -> int:
    try:
        return int(str(value)[:40])
    except ValueError:
        return 0


def _add(value: Any, other: Any) -> Any:
    if isinstance(value, int) and isinstance(other, int):
        return value + other
    return _bounded(f"{value}{other}")


def _default(value: Any, other: Any) -> Any:
    return value or other


def _default_if_none(value: Any, other: Any) -> Any:
    return other if value is None or isinstance(value, jinja2.Undefined) else value


def _join(value: Any, separator: Any) -> str:
    return _bounded(str(separator).join(str(item) for item in value))


def _truncate(value: Any, length: Any) -> str:
    text, limit = str(value), max(0, _number(length))
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."[:limit]


def _yesno(value: Any, choices: Any = "yes,no,maybe") -> str:
    words = str(choices).split(",")
    if value is None and len(words) > 2:
        return words[2]
    return words[0] if value else words[1] if len(words) > 1 else ""


def _first(value: Any) -> Any:
    return value[0] if value else ""


def _last(value: Any) -> Any:
    return value[-1] if value else ""


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "add": _add,
    "addslashes": lambda value: _bounded(re.sub(r"([\\'\"])", r"\\\1", str(value))),
    "capfirst": lambda value: str(value)[:1].upper() + str(value)[1:],
    "cut": lambda value, part: str(value).replace(str(part), "") if str(part) else str(value),
    "default": _default,
    "default_if_none": _default_if_none,
    "first": _first,
    "integer": _number,
    "join": _join,
    "last": _last,
    "length": len,
    "lower": lambda value: str(value).lower(),
    "safe": lambda value: value,
    "split": lambda value, separator: str(value).split(str(separator) or None),
    "title": lambda value: str(value).title(),
    "truncatechars": _truncate,
    "upper": lambda value: str(value).upper(),
    "urlencode": lambda value: _bounded(quote(str(value), safe="")),
    "wordcount": lambda value: len(str(value).split()),
    "yesno": _yesno,
}
