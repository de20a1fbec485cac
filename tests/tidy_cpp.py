"""Finds the functions of a C++ file by its braces: enough for measuring lengths, far from a parser.

Owns: telling function bodies from namespaces, classes, enums and initialisers. Its neighbour is test_tidy.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Comments, literals and preprocessor lines may hold braces that open nothing.
NOISE = re.compile(
    r'R"([^(\s]{0,16})\(.*?\)\1"|//[^\n]*|/\*.*?\*/'
    r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*',
    re.DOTALL | re.MULTILINE,
)
SCOPE = re.compile(r"\b(?:namespace|class|struct|union|enum|extern)\b[^()]*$")
NAME = re.compile(r"([~\w]+(?:\s*\[\])?|operator\s*\S+)\s*\(")
# `(…) const noexcept override -> T : member(…)` may stand between the parameters and the body.
SIGNATURE_END = re.compile(r"\)[\s\w:&*<>,()\[\]{}.+\-/|]*$")
NOT_FUNCTIONS = frozenset({"if", "for", "while", "switch", "catch", "return", "sizeof", "do", "else"})


def without_noise(source: str) -> str:
    """The same text with comments, literals and preprocessor lines blanked, line breaks kept."""
    return NOISE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)


def cpp_functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length in lines of each outermost function body, in order."""
    text = without_noise(source)
    scopes: list[bool] = []  # for each open brace: does it only hold declarations?
    head = 0  # where the text that introduces the next brace begins
    name, began = "", 0
    for at, sign in enumerate(text):
        if sign == "{":
            before = text[head:at]
            inside = all(scopes)
            if inside and SCOPE.search(before):
                scopes.append(True)
            else:
                if inside and (found := function_name(before)):
                    name, began = found, head + len(before) - len(before.lstrip())
                scopes.append(False)
            if all(scopes):
                head = at + 1
        elif sign == "}" and scopes:
            scopes.pop()
            if all(scopes):
                if name:
                    yield name, text.count("\n", 0, began) + 1, text.count("\n", began, at) + 1
                name, head = "", at + 1
        elif sign == ";" and all(scopes):
            head = at + 1


def function_name(before: str) -> str:
    """The name of the function that `before` introduces, or nothing."""
    found = NAME.search(before)
    if found is None or found[1] in NOT_FUNCTIONS or not SIGNATURE_END.search(before):
        return ""
    return found[1]
