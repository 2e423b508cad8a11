"""Tell what a file is by its content, and open it with the reader of its kind."""

import io
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.apart import ParsedApart
from indexmem_cli.documents.blocks import BlockDocument
from indexmem_cli.documents.chats import detect_messages
from indexmem_cli.documents.chats.messages import MessageDocument, Reader
from indexmem_cli.documents.chats.telegram_html import is_telegram_html, read_telegram_html
from indexmem_cli.documents.codebase import is_generated
from indexmem_cli.documents.passages import Blob, Damaged, Document, Unreadable
from indexmem_cli.documents.text import (
    SNIFF_BYTES,
    TextDocument,
    clean,
    decode_blocks,
    is_binary,
    is_pdf,
    kind_of,
)
from indexmem_cli.documents.web import read_html
from indexmem_cli.errors import DocumentError

LOADERS = "indexmem.loaders"
"""Entry points of other packages: functions from a `Blob` and a `ReadConfig` to a `Document`, or
None for what is not theirs. They are asked first."""

_ZIP = b"PK\x03\x04"
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--.{0,2000}?-->\s*)?"
    rb"<(?:!doctype\s+html|html)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(rb"\{\{|\{%|<\?php|<%")


def is_plain_text(head: bytes, config: ReadConfig) -> bool:
    """Tell whether a source can be read as it comes, without going back in it."""
    if is_pdf(head) or head.startswith(_ZIP):
        return False
    is_text = config.encoding is not None or not is_binary(head)
    return is_text and not _HTML.match(head) and not _messages(head, config)


def open_blob(blob: Blob, config: ReadConfig, in_folder: bool = False) -> Document:
    """Open a source by what it begins with; all but text is taken apart in a process of its own.

    Raises:
        DocumentError: it is binary, or of a kind that it cannot be read as; or generated, in a
            folder.
    """
    for loader in _loaders():
        if document := _load(loader, blob, config):
            return document
    kind, _ = _sniff(blob, config, in_folder)
    if kind == "text":
        return _open_text(blob, config, in_folder)
    if kind == "binary":
        raise Unreadable(
            "binary",
            f"{blob.name}: not a text",
            "text, source code, PDF, EPUB, DOCX, HTML, mail and chat logs can be read",
        )
    return ParsedApart(blob, config, in_folder)


def open_parsed(blob: Blob, config: ReadConfig, in_folder: bool = False) -> Document:
    """Open what is no plain text, with the parsers in this process."""
    name, size_bytes, reopen = blob.name, blob.size_bytes, blob.reopen
    kind, reader = _sniff(blob, config, in_folder)
    if kind == "pdf":
        from indexmem_cli.documents.pdf import PdfDocument  # 0.15 s, for those who have PDFs

        return PdfDocument(name, size_bytes, reopen, config, exact_pages=not in_folder)
    if kind == "zip":
        from indexmem_cli.documents.zips import open_zip

        try:
            return open_zip(name, size_bytes, reopen, config)
        except Damaged as error:
            raise Unreadable(error.reason, f"{name}: {error}", error.hint) from error
    if kind == "html":
        return BlockDocument(name, kind, size_bytes, reopen, read_html, config)
    return MessageDocument(name, kind, size_bytes, reopen, reader, config)


def _sniff(blob: Blob, config: ReadConfig, in_folder: bool) -> tuple[str, Reader | None]:
    """Return the kind of a source, with the reader of its messages where it holds messages."""
    head = blob.head
    if is_pdf(head):
        return "pdf", None
    if head.startswith(_ZIP):
        return "zip", None
    if config.encoding is None and is_binary(head):
        return "binary", None
    if _HTML.match(head) and is_telegram_html(head):
        return "telegram", read_telegram_html
    if found := _messages(head, config):
        return found
    # In a folder, pages that programs fill in are source code.
    if _HTML.match(head) and not (in_folder and _TEMPLATE.search(head)):
        return "html", None
    return "text", None


def _open_text(blob: Blob, config: ReadConfig, in_folder: bool) -> Document:
    kind = kind_of(blob.file_name)
    if in_folder and is_generated(blob.file_name, kind, blob.head):
        raise Unreadable("generated", f"{blob.name}: a generated file")
    return TextDocument(blob.name, kind, blob.size_bytes, blob.reopen, config.encoding)


@cache
def _loaders() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=LOADERS))


def _load(loader: EntryPoint, blob: Blob, config: ReadConfig) -> Document | None:
    try:
        document: Document | None = loader.load()(blob, config)
    except DocumentError:
        raise
    except Exception as error:  # whatever the code of others raises
        message = f"{blob.name}: the loader {loader.value} failed ({type(error).__name__}: {error})"
        raise Unreadable("malformed", message, f"uninstall {loader.name}, or report it") from error
    return document


def _messages(head: bytes, config: ReadConfig) -> tuple[str, Reader] | None:
    """Tell whether a text holds messages; its last line may be cut off where the head ends."""
    try:
        text = clean("".join(decode_blocks(io.BytesIO(head), config.encoding)))
    except Damaged:  # which is said when it is read
        return None
    if len(head) >= SNIFF_BYTES:
        text = text.rpartition("\n")[0]
    return detect_messages(head, text.removeprefix("\ufeff"))
