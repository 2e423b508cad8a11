"""Zip files that are documents: books, office files, exports of chats."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.blocks import BlockDocument
from indexmem_cli.documents.blocks import Reader as BlockReader
from indexmem_cli.documents.chats.exports import detect_export
from indexmem_cli.documents.chats.messages import Message, MessageDocument
from indexmem_cli.documents.chats.messages import Reader as MessageReader
from indexmem_cli.documents.chats.phone import read_phone
from indexmem_cli.documents.chats.slack import is_slack, read_slack_zip
from indexmem_cli.documents.docx import read_docx
from indexmem_cli.documents.epub import read_epub
from indexmem_cli.documents.passages import ByteSource, Damaged, Document
from indexmem_cli.documents.text import SNIFF_BYTES
from indexmem_cli.documents.unzip import Zip

_CONVERSATIONS = re.compile(r"(?:.*/)?conversations(?:-\d+)?\.json")
_PHONE_CHAT = re.compile(r"(?:.*/)?(?:_chat|WhatsApp .*)\.txt")
_OFFICE = {
    "xl/workbook.xml": ("a spreadsheet", "save it as CSV"),
    "ppt/presentation.xml": ("a presentation", "save it as PDF"),
    "content.xml": ("an OpenDocument file", "save it as DOCX or PDF"),
}


def open_zip(
    name: str, size_bytes: int | None, reopen: Callable[[], BinaryIO], config: ReadConfig
) -> Document:
    """Open a zip by what is in it.

    Raises:
        Damaged: it is no zip that can be read, or holds nothing that is known.
    """

    def blocks(kind: str, reader: BlockReader) -> Document:
        return BlockDocument(name, kind, size_bytes, reopen, reader, config)

    def messages(kind: str, reader: MessageReader) -> Document:
        return MessageDocument(name, kind, size_bytes, reopen, reader, config)

    with reopen() as stream:
        archive = Zip(stream)
        names = archive.names
        if "META-INF/container.xml" in names:
            return blocks("epub", read_epub)
        if "word/document.xml" in names:
            return blocks("docx", read_docx)
        if is_slack(names):
            return messages("slack", read_slack_zip)
        if exports := sorted(filter(_CONVERSATIONS.fullmatch, names)):
            with archive.open(exports[0]) as member:
                found = detect_export(member.read(SNIFF_BYTES))
            if found:
                return messages(found[0], partial(_read_exports, exports))
        chats = list(filter(_PHONE_CHAT.fullmatch, names))
        if len(chats) == 1:
            return messages("whatsapp", partial(_read_phone, chats[0]))
    for office, (what, advice) in _OFFICE.items():
        if office in names:
            raise Damaged(f"it is {what}", advice, "binary")
    raise Damaged(
        "an archive without a book, a Word file or a chat in it",
        "unpack it and name the folder",
        "binary",
    )


def _read_exports(names: list[str], stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Read the parts of an export in order, each as what it is."""
    archive = Zip(stream)
    for name in names:
        with archive.open(name) as member:
            found = detect_export(member.read(SNIFF_BYTES))
        if found is None:
            raise Damaged(f"{name!r} in it is no list of conversations")
        with archive.open(name) as member:
            yield from found[1](member, config)


def _read_phone(name: str, stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    with Zip(stream).open(name) as member:
        yield from read_phone(member, config)
