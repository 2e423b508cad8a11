"""Which function or class a line of source code is in, by tree-sitter's grammars."""

import importlib
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

MAX_PARSED_BYTES = 2_000_000
"""Larger files, which no person wrote, have no symbols."""

_MAX_DEPTH = 10


class _Language(NamedTuple):
    module: str
    definitions: frozenset[str]
    """Types of nodes that define something with a name."""
    function: str = "language"


def _language(module: str, definitions: str, function: str = "language") -> _Language:
    return _Language(f"tree_sitter_{module}", frozenset(definitions.split()), function)


_JAVASCRIPT = (
    "function_declaration generator_function_declaration class_declaration method_definition"
    " variable_declarator"
)
_TYPESCRIPT = (
    f"{_JAVASCRIPT} abstract_class_declaration interface_declaration enum_declaration"
    " type_alias_declaration internal_module function_signature"
)
_C = "function_definition struct_specifier union_specifier enum_specifier preproc_function_def"
_LANGUAGES = {
    ".py .pyi": _language("python", "function_definition class_definition assignment"),
    ".js .mjs .cjs .jsx": _language("javascript", _JAVASCRIPT),
    ".ts .mts .cts": _language("typescript", _TYPESCRIPT, "language_typescript"),
    ".tsx": _language("typescript", _TYPESCRIPT, "language_tsx"),
    ".go": _language("go", "function_declaration method_declaration type_spec const_spec"),
    ".rs": _language(
        "rust",
        "function_item struct_item enum_item trait_item impl_item mod_item union_item"
        " macro_definition function_signature_item const_item static_item",
    ),
    ".java": _language(
        "java",
        "class_declaration interface_declaration enum_declaration record_declaration"
        " method_declaration constructor_declaration annotation_type_declaration",
    ),
    ".c .h": _language("c", _C),
    ".cc .cpp .cxx .hh .hpp .hxx .cu .cuh": _language(
        "cpp", f"{_C} class_specifier namespace_definition concept_definition"
    ),
    ".rb": _language("ruby", "method singleton_method class module"),
    ".php": _language(
        "php",
        "function_definition class_declaration interface_declaration trait_declaration"
        " enum_declaration method_declaration",
        "language_php",
    ),
    ".cs": _language(
        "c_sharp",
        "class_declaration interface_declaration struct_declaration record_declaration"
        " enum_declaration method_declaration constructor_declaration property_declaration"
        " local_function_statement namespace_declaration",
    ),
    ".sh .bash": _language("bash", "function_definition"),
}
_BY_SUFFIX = {suffix: language for row, language in _LANGUAGES.items() for suffix in row.split()}
_FUNCTION_VALUES = {"arrow_function", "function_expression", "function", "class"}


def has_symbols(suffix: str) -> bool:
    """Tell whether files of a suffix are of a language that is known."""
    return suffix.lower() in _BY_SUFFIX


def find_symbols(source: bytes, suffix: str) -> dict[int, str]:
    """Map the lines of a source file, from 1, to the innermost definition each is in.

    Code that does not parse as a whole is taken as far as it does.

    Args:
        source: UTF-8, with line ends as in the file.
        suffix: of a language for which `has_symbols`.
    """
    language = _BY_SUFFIX[suffix.lower()]
    symbols: dict[int, str] = {}
    # Without recursion: code can be nested deeply. Outer definitions come first.
    stack = [(_parser(language).parse(source).root_node, "", 0)]
    while stack:
        node, outer, depth = stack.pop()
        is_named = node.type in language.definitions and depth < _MAX_DEPTH
        if is_named and (name := _name(node)):
            outer, depth = f"{outer}.{name}" if outer else name, depth + 1
            lines = range(_first_line(node), node.end_point[0] + 2)
            symbols.update(dict.fromkeys(lines, outer))
        stack += [(child, outer, depth) for child in reversed(node.named_children)]
    return symbols


@cache
def _parser(language: _Language) -> "Parser":
    from tree_sitter import Language, Parser

    grammar = getattr(importlib.import_module(language.module), language.function)
    return Parser(Language(grammar()))


def _name(node: "Node") -> str | None:
    """Return what a node defines; None for what only looks so, as a variable that is no function.

    A method of Go or Rust that stands outside of its type is named with it.
    """
    if node.type == "variable_declarator":
        value = node.child_by_field_name("value")
        if value is None or value.type not in _FUNCTION_VALUES:
            return None
    named = node.child_by_field_name("name")
    if node.type == "assignment":
        named = node.child_by_field_name("left")
        if named is None or named.type != "identifier" or not _is_constant(node):
            return None
    elif node.type == "impl_item":
        named = node.child_by_field_name("type")
    elif node.type.endswith("_specifier") and node.child_by_field_name("body") is None:
        return None  # a type that is only mentioned
    elif named is None:
        named = _declared(node)
    if named is None:
        return None
    name = _text_of(named)
    receiver = node.child_by_field_name("receiver") if node.type == "method_declaration" else None
    if receiver is not None and (types := _of_type(receiver, "type_identifier")):
        name = f"{_text_of(types[0])}.{name}"
    return name if len(name) <= 200 and "\n" not in name else None


def _text_of(node: "Node") -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _is_constant(assignment: "Node") -> bool:
    """Tell whether something is assigned in a module or a class of Python, not in a function."""
    outer = assignment.parent and assignment.parent.parent
    if outer is not None and outer.type == "block":
        outer = outer.parent
    return outer is not None and outer.type in ("module", "class_definition")


def _declared(node: "Node") -> "Node | None":
    """Follow the declarator of a C function, through pointers, to its name."""
    inner = node.child_by_field_name("declarator")
    while inner is not None and inner.child_by_field_name("declarator") is not None:
        inner = inner.child_by_field_name("declarator")
    return inner


def _of_type(node: "Node", wanted: str) -> list["Node"]:
    found, stack = [], [node]
    while stack:
        inner = stack.pop()
        if inner.type == wanted:
            found.append(inner)
        stack += reversed(inner.named_children)
    return found


def _first_line(node: "Node") -> int:
    """Decorators belong to what they decorate."""
    if node.parent is not None and node.parent.type == "decorated_definition":
        node = node.parent
    return node.start_point[0] + 1
