"""Telegram's other export: pages of HTML."""

from collections.abc import Iterator
from datetime import datetime

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.messages import Message
from indexmem_cli.documents.passages import ByteSource, read_whole
from indexmem_cli.documents.web import MAX_HTML_BYTES, parse_html


def is_telegram_html(head: bytes) -> bool:
    """Tell by the first bytes of a page whether it is such an export."""
    return b"<title>Exported Data</title>" in head and b"page_wrap" in head


def read_telegram_html(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the messages of a page; one without a name is by the author of the one before."""
    soup = parse_html(read_whole(stream, MAX_HTML_BYTES, "the page"), config.encoding)
    title = soup.select_one(".page_header .text")
    chat = " ".join(title.get_text().split()) if title else None
    author = None
    for message in soup.select("div.message.default"):
        name = message.select_one(".body > .from_name")
        if name is not None:
            author = " ".join(name.get_text().split())
        date = message.select_one(".date[title]")
        reply = message.select_one(".reply_to a[href]")
        parts = [message.select_one(".body > .text"), message.select_one(".media_wrap")]
        for line in message.find_all("br"):
            line.replace_with("\n")
        text = "\n".join(part.get_text().strip() for part in parts if part is not None)
        yield Message(
            text,
            author,
            _moment(str(date["title"])) if date else None,
            chat,
            reply_to=str(reply["href"]).rpartition("message")[2] if reply else None,
            id=str(message.get("id") or "").removeprefix("message") or None,
        )


def _moment(title: str) -> datetime | None:
    """Read `23.08.2023 13:11:23 UTC-08:00`."""
    try:
        return datetime.strptime(title[:19], "%d.%m.%Y %H:%M:%S")
    except ValueError:
        return None
