"""Tell what a file is by its content, and open it with the reader of its kind."""

import io
import re
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.blocks import BlockDocument
from indexmem_cli.documents.chats import detect_messages
from indexmem_cli.documents.chats.messages import MessageDocument
from indexmem_cli.documents.chats.telegram_html import is_telegram_html, read_telegram_html
from indexmem_cli.documents.codebase import is_generated
from indexmem_cli.documents.passages import Damaged, Document, Unreadable
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

_ZIP = b"PK\x03\x04"
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--.{0,2000}?-->\s*)?"
    rb"<(?:!doctype\s+html|html)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(rb"\{\{|\{%|<\?php|<%")


class Blob(NamedTuple):
    """Bytes that can be opened again and again, and what is known of them."""

    name: str
    """As the user knows it."""
    file_name: str
    """Without folders; it tells texts apart that are read in the same way."""
    size_bytes: int | None
    reopen: Callable[[], BinaryIO]
    head: bytes
    """The first `SNIFF_BYTES`."""


def is_plain_text(head: bytes, config: ReadConfig) -> bool:
    """Tell whether a source can be read as it comes, without going back in it."""
    if is_pdf(head) or head.startswith(_ZIP):
        return False
    is_text = config.encoding is not None or not is_binary(head)
    return is_text and not _HTML.match(head) and not _messages(head, config)


def open_blob(blob: Blob, config: ReadConfig, in_folder: bool = False) -> Document:
    """Open a source by what it begins with.

    Raises:
        DocumentError: it is binary, or of a kind that it cannot be read as; or generated, in a
            folder.
    """
    name, size_bytes, reopen, head = blob.name, blob.size_bytes, blob.reopen, blob.head
    if is_pdf(head):
        from indexmem_cli.documents.pdf import PdfDocument  # 0.15 s, for those who have PDFs

        return PdfDocument(name, size_bytes, reopen, config, exact_pages=not in_folder)
    if head.startswith(_ZIP):
        from indexmem_cli.documents.zips import open_zip

        try:
            return open_zip(name, size_bytes, reopen, config)
        except Damaged as error:
            raise Unreadable(error.reason, f"{name}: {error}", error.hint) from error
    if config.encoding is None and is_binary(head):
        raise Unreadable(
            "binary",
            f"{name}: not a text",
            "text, source code, PDF, EPUB, DOCX, HTML, mail and chat logs can be read",
        )
    if _HTML.match(head) and is_telegram_html(head):
        return MessageDocument(name, "telegram", size_bytes, reopen, read_telegram_html, config)
    if found := _messages(head, config):
        return MessageDocument(name, found[0], size_bytes, reopen, found[1], config)
    kind = kind_of(blob.file_name)
    # In a folder, pages that programs fill in are source code.
    if _HTML.match(head) and not (in_folder and _TEMPLATE.search(head)):
        return BlockDocument(name, "html", size_bytes, reopen, read_html, config)
    if in_folder and is_generated(blob.file_name, kind, head):
        raise Unreadable("generated", f"{name}: a generated file")
    return TextDocument(name, kind, size_bytes, reopen, config.encoding)


def _messages(head: bytes, config: ReadConfig):
    """Tell whether a text holds messages; its last line may be cut off where the head ends."""
    text = clean("".join(decode_blocks(io.BytesIO(head), config.encoding)))
    if len(head) >= SNIFF_BYTES:
        text = text.rpartition("\n")[0]
    return detect_messages(head, text.removeprefix("\ufeff"))
