"""The sandbox: where chat templates out of model files run, without reach and within bounds.

A template is a program that somebody put into a file from the net. Jinja's immutable sandbox keeps it from
Python's attributes and from changing what it is given; this environment also makes it pay, in characters,
for everything that grows: each turn of a loop, each call, each text made or said. A template whose purse is
empty raises `Spent`, so no template holds up the front or fills its memory.

Owns the environment and what templates may use. What they are given is the neighbour `templates`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Final  # Any: a template handles values of any kind

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# A turn of a loop costs this much beside what it says, a call (8 µs) as its time is to that of a turn.
STEP_COST: Final = 16
CALL_COST: Final = 256
ITEM_COST: Final = 8
# About a second of empty turns or calls.
PURSE: Final = 32 * 2**20
POWER_MAX: Final = 64
DIGITS_MAX_BITS: Final = 4_096
INDENT_MAX: Final = 64
FILTERS: Final = frozenset(
    "abs capitalize count d default dictsort e escape first float forceescape indent int items join last "
    "length list lower map max min pprint reject rejectattr replace reverse round safe select selectattr "
    "sort string sum title tojson trim unique upper wordcount".split()
)
GLOBALS: Final = frozenset({"dict", "joiner", "namespace", "range"})
TEXT_METHODS: Final = frozenset(
    "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace "
    "isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
    "rstrip split splitlines startswith strip title upper".split()
)
# `%5000000d` makes a long text out of a short one; nothing but plain places is allowed.
_WIDE: Final = re.compile(r"%[^%a-zA-Z]*[\d*]")


class Spent(SecurityError):
    """The template did more than any template needs to."""


class Sandbox(ImmutableSandboxedEnvironment):
    """One template's environment. It renders one thing at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation])
        self.left = 0
        self._call_cost = CALL_COST
        self.filters = {name: made for name, made in self.filters.items() if name in FILTERS}
        self.filters["tojson"] = tojson
        self.filters["join"] = self._joined(self.filters["join"])
        self.filters["replace"], self.filters["indent"] = self._replaced, self._indented
        self.filters[_WALKED], self.filters[_PAID] = self._walked, self._paid
        self.globals = {name: made for name, made in self.globals.items() if name in GLOBALS}

    def fill_purse(self, amount: int) -> None:
        """Before rendering."""
        self.left = amount

    def pay(self, cost: int) -> None:
        """Take this much out of the purse. Raises `Spent`."""
        self.left -= cost
        if self.left < 0:
            raise Spent("it does too much")

    # --- what Jinja asks for

    def wrap_str_format(self, value: Any) -> None:
        """Formats can be as wide as they like, and no template needs them."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Texts have the methods that cannot make much out of little."""
        if isinstance(obj, str) and attr not in TEXT_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # The names are Jinja's own, so that keyword arguments of the template never meet them.
        """Call something, for its price."""
        __self.pay(__self._call_cost)
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) > 1:
            __self._pay_for_replacing(owner, str(args[0]), str(args[1]))
        if isinstance(owner, str) and name == "join":
            args = (__self._measured(args[0], owner), *args[1:])
        made = super().call(__context, __obj, *args, **kwargs)
        return __self._paid(made) if isinstance(made, str) else made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make much out of little."""
        match operator:
            case "*" if isinstance(left, Sized) or isinstance(right, Sized):
                some, times = (left, right) if isinstance(left, Sized) else (right, left)
                self.pay(_size(some) * max(0, times))
            case "**" if abs(right) > POWER_MAX:
                raise Spent("a power is too high")
            case "%" if isinstance(left, str) and _WIDE.search(left):
                raise Spent("a place in a text is too wide")
            case _:
                pass
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and made.bit_length() > DIGITS_MAX_BITS:
            raise Spent("a number is too long")
        return self._paid(made) if isinstance(made, str | list | tuple) else made

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        # Jinja's own place for changing how a template becomes code: what grows is made to pay.
        if any(source.find_all((nodes.Macro, nodes.CallBlock))):
            self._call_cost = CALL_COST + _said_by(source)
        _Charged().visit(source)
        return str(super()._generate(source, *args, **kwargs))

    # --- filters of our own

    def _walked(self, values: Any, said_characters: int = 0) -> Any:
        """What a loop goes over, paid for all its turns beforehand."""
        if isinstance(values, Undefined):
            return values
        if not isinstance(values, Sized):
            values = self._counted(values, STEP_COST + said_characters)
        else:
            self.pay(len(values) * (STEP_COST + said_characters))
        return values

    def _counted(self, values: Iterable[Any], cost: int) -> list[Any]:
        found = []
        for value in values:
            self.pay(cost)
            found.append(value)
        return found

    def _paid(self, value: Any) -> Any:
        """A text or list that was made or is said."""
        self.pay(_size(value) if isinstance(value, str | list | tuple) else STEP_COST)
        return value

    def _replaced(self, text: object, old: object, new: object, count: int | None = None) -> str:
        self._pay_for_replacing(str(text), str(old), str(new))
        return str(text).replace(str(old), str(new), -1 if count is None else count)

    def _pay_for_replacing(self, text: str, old: str, new: str) -> None:
        self.pay(len(text) + (len(text) // max(1, len(old)) + 1) * len(new))

    def _indented(self, text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:  # noqa: FBT001, FBT002
        # A filter's arguments have no names in most templates.
        before = width if isinstance(width, str) else " " * min(max(0, width), INDENT_MAX)
        self.pay(len(str(text)) + (str(text).count("\n") + 1) * len(before))
        lines = str(text).split("\n")
        return "\n".join(
            before + line if (number or first) and (line or blank) else line
            for number, line in enumerate(lines)
        )

    def _joined(self, join: Callable[..., Any]) -> Callable[..., Any]:
        def joined(context: Any, values: Any, d: str = "", attribute: str | int | None = None) -> Any:
            return join(context, self._measured(values, str(d)), d, attribute)

        # Jinja's filter is given the evaluation context, and so must be the one in front of it.
        joined.jinja_pass_arg = join.jinja_pass_arg  # type: ignore[attr-defined]  # as its decorators do
        return joined

    def _measured(self, values: Any, between: str) -> list[Any]:
        found = self._counted(values, STEP_COST + len(between))
        self.pay(sum(len(value) for value in found if isinstance(value, str)))
        return found


_WALKED: Final = "tidegate_walked"
_PAID: Final = "tidegate_paid"


class _Charged(NodeTransformer):
    """Puts our filters around what a template goes over, joins and says."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named after Jinja's node
        said = nodes.Const(_said_by(node))
        node.iter = _filtered(node.iter, _WALKED, said)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named after Jinja's node
        return _filtered(self.generic_visit(node), _PAID)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802 - named after Jinja's node
        self.generic_visit(node)
        node.nodes = [
            one if isinstance(one, nodes.TemplateData) else _filtered(one, _PAID) for one in node.nodes
        ]
        return node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _said_by(node: nodes.Node) -> int:
    """How many characters stand in this part of a template."""
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def _size(value: Sized) -> int:
    return len(value) * (1 if isinstance(value, str) else ITEM_COST)


class Generation(Extension):
    """`{% generation %}` marks, for training, what the model says; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja's extensions have it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body as it is."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def tojson(
    value: object,
    indent: int | None = None,
    *,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the authors of chat templates expect it: nothing escaped for HTML, keys in their order."""
    if indent is not None and not 0 <= indent <= INDENT_MAX:
        raise Spent("an indent is too wide")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compiled(environment: Environment, source: str) -> Callable[[Mapping[str, object]], str]:
    """A template ready to be rendered. Raises TemplateSyntaxError."""
    try:
        return environment.from_string(source).render
    except RecursionError as error:
        raise TemplateSyntaxError("it is nested too deeply", 1) from error
