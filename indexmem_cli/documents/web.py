"""HTML as headings, paragraphs and rows, without menus, scripts and styles."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.blocks import Block
from indexmem_cli.documents.passages import ByteSource, Damaged, read_whole

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

MAX_HTML_BYTES = 20_000_000
"""The tree of a page takes some ten times its size."""

_LEFT_OUT = {
    *("script", "style", "template", "noscript", "svg", "math", "iframe", "object", "head"),
    *("nav", "button", "select", "dialog", "footer"),
}
_LEFT_OUT_ROLES = {"navigation", "search", "banner", "contentinfo", "menu", "menubar", "dialog"}
_MENU = re.compile(
    r"(?:^|[-_])(?:menu|dropdown|navbar|navbox|sidebar|breadcrumbs?|cookies?|editsection|noprint)"
    r"(?:$|[-_])",
    re.IGNORECASE,
)
_UNSEEN = re.compile(r"display:\s*none", re.IGNORECASE)
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_BLOCKS = {
    *("address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div"),
    *("dl", "dt", "fieldset", "figcaption", "figure", "header", "hgroup", "hr", "html", "li"),
    *("main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr"),
    *("ul", *_HEADINGS),
}


def read_html(stream: ByteSource, config: ReadConfig) -> Iterator[Block]:
    """Yield the blocks of a page."""
    data = read_whole(stream, MAX_HTML_BYTES, "the page")
    yield from blocks_of(parse_html(data, config.encoding), has_menus=True)


def text_of_html(data: bytes, encoding: str | None = None) -> str:
    """Return the text of a page or of a piece of one."""
    return "\n".join(block.text for block in blocks_of(parse_html(data, encoding)))


def parse_html(data: bytes, encoding: str | None = None) -> "BeautifulSoup":
    """Parse a page, whatever its faults are.

    Raises:
        Damaged: it is nested too deeply to be walked.
    """
    import warnings

    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what looks like XML, or like an address
            return BeautifulSoup(data, "lxml", from_encoding=encoding)
    except (ParserRejectedMarkup, RecursionError, AssertionError) as error:
        raise Damaged("the HTML cannot be parsed") from error


def blocks_of(
    soup: "BeautifulSoup", heading: str | None = None, has_menus: bool = False
) -> Iterator[Block]:
    """Yield the blocks of the main part of a page, in order, the title as their first heading.

    Args:
        has_menus: leave out what is called a menu, a sidebar or the like.
    """
    if heading is None and soup.title is not None:
        heading = _tidy(soup.title.get_text(), is_pre=False) or None
    mains = soup.find_all(["main", "article"])
    if len(mains) != 1:
        mains = soup.find_all(None, {"role": "main"})
    root = mains[0] if len(mains) == 1 else soup
    line: list[str] = []
    for kind, value in _walk(root, has_menus):
        if kind == "text":
            line.append(value)
            continue
        if kind == "cell":
            if "".join(line).strip():
                line.append(" | ")
            continue
        text = _tidy("".join(line), is_pre=value == "pre").removesuffix(" |")
        line = []
        if text:
            if value in _HEADINGS:
                heading = " ".join(text.split())
            yield Block(text, heading, "\n\n" if value in ("p", "pre", *_HEADINGS) else "\n")


def _is_left_out(tag: "Tag", has_menus: bool) -> bool:
    attributes = tag.attrs
    if (
        tag.name in _LEFT_OUT
        or "hidden" in attributes
        or attributes.get("role") in _LEFT_OUT_ROLES
        or _UNSEEN.search(str(attributes.get("style", "")))
    ):
        return True
    if not has_menus or tag.name in ("html", "body"):
        return False
    names = attributes.get("class") or ()
    # Some call the whole page by what is in it.
    return any(map(_MENU.search, names)) and not tag.find(["main", "article", "h1"])


def _walk(root: "Tag", has_menus: bool) -> Iterator[tuple[str, str]]:
    """Yield text, cells and the ends of blocks in order; without recursion, for deep pages."""
    from bs4.element import Comment, NavigableString, PreformattedString, Tag

    stack: list[tuple[object, str, bool]] = [(root, "", False)]
    while stack:
        node, outer, is_end = stack.pop()
        if isinstance(node, (Comment, PreformattedString)):
            continue
        if isinstance(node, NavigableString):
            is_pre = outer == "pre"
            yield "text", str(node) if is_pre else str(node).replace("\n", " ")
        elif isinstance(node, Tag) and node.name == "br":
            yield "text", " " if outer == "tr" else "\n"
        elif isinstance(node, Tag):
            if is_end:
                yield "end", node.name
                continue
            if _is_left_out(node, has_menus):
                continue
            name = outer
            if outer == "tr":
                yield ("cell", "") if node.name in ("td", "th") else ("text", " ")
            elif node.name in _BLOCKS:
                yield "end", outer
                stack.append((node, outer, True))
                # A row with a table in it is there for the layout.
                name = "div" if node.name == "tr" and node.table else node.name
            stack += [(child, name, False) for child in reversed(node.contents)]
    yield "end", ""


def _tidy(text: str, is_pre: bool) -> str:
    if is_pre:
        return text.strip("\n")
    rows = (" ".join(row.split()) for row in text.split("\n"))
    return "\n".join(row for row in rows if row)
