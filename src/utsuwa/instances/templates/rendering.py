"""Rendering of templates by Jinja2's sandbox.

As images are not trusted, templates are limited to the nodes, filters and the function listed here; each loop
and filter uses up a budget of time and steps, and sizes are limited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from utsuwa.core.errors import InvalidImage
from utsuwa.instances.templates.filters import FILTERS, bounded
from utsuwa.instances.templates.plain import MAX_OUTPUT
from utsuwa.instances.templates.pongo2 import LOOP_NAMES, translate

MAX_STEPS = 100_000
MAX_DEPTH = 40
TIME_LIMIT = 5.0
"""Maximum number of seconds to render a template."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """Render a template. Raises InvalidImage with the reason.

    Blocking, for at most TIME_LIMIT seconds if there is no gap in the sandbox; `server` limits it further.
    """
    try:
        environment = _Environment(_Budget())
        template = environment.template_class.from_code(environment, _compile(source), {})
        parts, size = [], 0
        for part in template.generate(values):
            size += len(part)
            if size > MAX_OUTPUT:
                raise InvalidImage(f"its output has more than {MAX_OUTPUT} characters")
            parts.append(part)
        text = "".join(parts)
        text.encode()  # which a lone surrogate of an escape sequence cannot be
        return text
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InvalidImage(f"{'' if line is None else f'line {line}: '}{error.message}") from error
    except RecursionError:
        raise InvalidImage("it is nested too deeply") from None
    except (TypeError, ValueError, KeyError, AttributeError, SyntaxError, MemoryError) as error:
        raise InvalidImage(f"{type(error).__name__}: {str(error)[:200]}") from error


def _compile(source: str) -> CodeType:
    """Compile a template; the code uses the budget of the environment that runs it."""
    environment = _Environment(_Budget())
    tree = environment.parse(translate(source))
    _check(tree, environment, 0)
    return environment.compile(tree)


class _Budget:
    """Limits time and steps of one rendering."""

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
    """A sandbox with only `_NODES`, `FILTERS` and `variables`."""

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
        self.filters |= {name: self._limited(function) for name, function in FILTERS.items()}
        self.filters[_LOOP] = budget.loop
        self.filters[_PAIRS] = _pairs

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._budget.step()
            return function(*arguments)

        return call

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up a key: attributes of objects are not accessible."""
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, LoopContext) and argument in LOOP_NAMES.values():
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
        return bounded(str(left) + str(right))


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
    nodes.With,
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
    """Reject all nodes that are not in `_NODES`, and limit every loop by the budget."""
    if depth > MAX_DEPTH:
        raise InvalidImage("it is nested too deeply")
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
            if node.name not in FILTERS or node.kwargs or node.dyn_args or node.dyn_kwargs:
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
    """Return the items of a loop with two variables: keys and values of a mapping."""
    return sorted(items.items()) if isinstance(items, Mapping) else items
