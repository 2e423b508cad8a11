"""EPUB books: the chapters that the spine names, in its order, read one at a time."""

import posixpath
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.blocks import Block
from indexmem_cli.documents.passages import ByteSource, Damaged
from indexmem_cli.documents.unzip import Zip
from indexmem_cli.documents.web import MAX_HTML_BYTES, blocks_of, parse_html

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MAX_XML_BYTES = 10_000_000
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGE_TYPES = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml"}
_FONT_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_epub(stream: ByteSource, config: ReadConfig) -> Iterator[Block]:
    """Yield the blocks of a book; without its navigation page.

    A chapter is named by the table of contents, else by the headings in it.
    """
    archive = Zip(stream)
    _refuse_locked(archive)
    package = _package_name(archive)
    root = _xml(archive, package)
    folder = posixpath.dirname(package)
    items = {item.get("id"): item for item in root.iterfind(".//{*}item")}
    refs = [items.get(ref.get("idref")) for ref in root.iterfind(".//{*}itemref")]
    titles = _titles(archive, folder, items.values())
    heading = None
    for item in refs:
        if item is None or item.get("media-type") not in _PAGE_TYPES:
            continue
        if "nav" in (item.get("properties") or "").split():
            continue
        name = _resolve(folder, item.get("href"))
        if name not in archive.names:
            raise Damaged(f"{name!r}, which its spine names, is missing")
        page = parse_html(archive.read(name, MAX_HTML_BYTES))
        if page.title is not None:
            page.title.decompose()  # most books put the same into every page
        named = titles.get(name, [])
        heading = named[0] if named else heading
        for block in blocks_of(page, heading):
            # A page of several chapters is told apart by its own headings.
            heading = heading if len(named) == 1 else block.heading
            yield Block(block.text, heading, block.end)


def _refuse_locked(archive: Zip) -> None:
    """Refuse a book whose pages are encrypted; obfuscated fonts do not matter."""
    if _ENCRYPTION not in archive.names:
        return
    methods = [
        method.get("Algorithm", "")
        for method in _xml(archive, _ENCRYPTION).iterfind(".//{*}EncryptionMethod")
    ]
    if not all(method.startswith(_FONT_METHODS) for method in methods):
        raise Damaged("the book is encrypted (DRM)", reason="encrypted")


def _package_name(archive: Zip) -> str:
    if _CONTAINER not in archive.names:
        raise Damaged(f"the book has no {_CONTAINER}")
    for rootfile in _xml(archive, _CONTAINER).iterfind(".//{*}rootfile"):
        name = rootfile.get("full-path") or ""
        if name in archive.names:
            return name
    raise Damaged("the package file that the book names is missing")


def _titles(archive: Zip, folder: str, items: Iterable["Element"]) -> dict[str, list[str]]:
    """Map pages to their titles in the table of contents; empty where there is none."""
    titles: dict[str, list[str]] = {}
    for item in items:
        name = _resolve(folder, item.get("href"))
        if name not in archive.names:
            continue
        base = posixpath.dirname(name)
        if "nav" in (item.get("properties") or "").split():
            nav = parse_html(archive.read(name, MAX_HTML_BYTES)).find("nav")
            links = (
                [(str(a.get("href") or ""), a.get_text()) for a in nav.find_all("a")] if nav else []
            )
        elif item.get("media-type") == "application/x-dtbncx+xml":
            links = [
                (content.get("src") or "", _label(point))
                for point in _xml(archive, name).iterfind(".//{*}navPoint")
                if (content := point.find(".//{*}content")) is not None
            ]
        else:
            continue
        for href, text in links:
            title = " ".join((text or "").split())
            if href and title:
                titles.setdefault(_resolve(base, href), []).append(title)
    return titles


def _label(point: "Element") -> str:
    return next((text.text or "" for text in point.iterfind(".//{*}text")), "")


def _resolve(folder: str, href: str | None) -> str:
    """Return the member that a link names; nothing outside the zip can be one."""
    path = unquote((href or "").split("#", 1)[0])
    return posixpath.normpath(posixpath.join(folder, path)).lstrip("/")


def _xml(archive: Zip, name: str) -> "Element":
    """Parse a small XML file, without entities and anything from outside."""
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(archive.read(name, _MAX_XML_BYTES))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Damaged(f"{name!r} in it is damaged ({error})") from error
    return root
