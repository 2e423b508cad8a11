"""One message as Discord, Telegram, Facebook and Slack write it."""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from indexmem_cli.documents.chats.messages import Message, epoch, wall_clock

_DISCORD_TYPED = {
    "Default",
    "Reply",
    "ChatInputCommand",
    "ContextMenuCommand",
    "ThreadStarterMessage",
}
_SLACK_LINK = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")
_SLACK_UNSAID = {"channel_join", "channel_leave", "group_join", "group_leave"}


def from_discord(record: dict[str, Any], around: Mapping[str, Any]) -> Iterator[Message]:
    """Take a message of DiscordChatExporter, with the names of what was attached."""
    forwarded = record.get("forwardedMessage") or {}
    parts = [record.get("content"), forwarded.get("content")]
    for embed in record.get("embeds") or []:
        parts += [embed.get("title"), embed.get("description")]
    parts += [f"[{item.get('fileName')}]" for item in record.get("attachments") or []]
    parts += [f"[{item.get('name')}]" for item in record.get("stickers") or []]
    author = record.get("author") or {}
    name = author.get("nickname") or author.get("name")
    text = "\n".join(filter(None, parts))
    is_typed = record.get("type", "Default") in _DISCORD_TYPED
    yield Message(
        text if is_typed else f"{name} {text}",
        name if is_typed else None,
        wall_clock(record.get("timestamp")),
        channel=_channel(around.get("channel.name")),
        reply_to=(record.get("reference") or {}).get("messageId"),
        id=record.get("id"),
    )


def from_telegram(record: dict[str, Any], around: Mapping[str, Any]) -> Iterator[Message]:
    """Take a message of a chat, or of one of the chats of an account."""
    chat = around.get("chats.list.item.name") or around.get("name")
    ts = wall_clock(record.get("date")) or epoch(record.get("date_unixtime"))
    if record.get("type") == "service":
        about = (record.get("actor"), record.get("action"), record.get("title"))
        event = " ".join(str(part).replace("_", " ") for part in about if part)
        yield Message(event, None, ts, chat)
        return
    parts = [_telegram_text(record.get("text"))]
    if record.get("forwarded_from"):
        parts.insert(0, f"(forwarded from {record['forwarded_from']})")
    if poll := record.get("poll"):
        parts += [_telegram_text(poll.get("question"))]
        parts += [f"- {_telegram_text(answer.get('text'))}" for answer in poll.get("answers") or []]
    if record.get("file"):
        parts.append(f"[{record.get('file_name') or record.get('media_type') or record['file']}]")
    elif record.get("photo"):
        parts.append("[photo]")
    replied, number = record.get("reply_to_message_id"), record.get("id")
    yield Message(
        "\n".join(filter(None, parts)),
        record.get("from") or record.get("from_id"),
        ts,
        chat,
        reply_to=f"{chat}/{replied}" if replied else None,
        id=f"{chat}/{number}" if number else None,
    )


def from_facebook(record: dict[str, Any], around: Mapping[str, Any]) -> Iterator[Message]:
    """Take a file of Facebook or Instagram, whose messages stand newest first."""
    for message in sorted(record["messages"], key=lambda message: message["timestamp_ms"]):
        parts = [message.get("content"), (message.get("share") or {}).get("link")]
        for kind in ("photos", "videos", "audio_files", "files", "gifs"):
            parts += [
                f"[{kind.removesuffix('s').removesuffix('_file')}]" for _ in message.get(kind) or []
            ]
        if message.get("sticker"):
            parts.append("[sticker]")
        yield Message(
            _unmangle("\n".join(filter(None, parts))),
            _unmangle(message["sender_name"]),
            epoch(message["timestamp_ms"] / 1000),
            channel=_unmangle(record.get("title") or "") or None,
        )


def from_slack_file(record: dict[str, Any], around: Mapping[str, Any]) -> Iterator[Message]:
    """Take a message of a single day's file, which has no list of users with it."""
    yield from from_slack(record, {}, None)


def from_slack(
    record: dict[str, Any], users: Mapping[str, str], channel: str | None
) -> Iterator[Message]:
    """Take a message of a channel, with names in place of ids."""
    if record.get("type", "message") != "message" or record.get("subtype") in _SLACK_UNSAID:
        return
    profile = record.get("user_profile") or {}
    user = record.get("user") or record.get("bot_id")
    author = (
        users.get(user or "")
        or profile.get("display_name")
        or profile.get("real_name")
        or record.get("username")
        or (record.get("bot_profile") or {}).get("name")
        or user
    )
    parts = [record.get("text")]
    if not parts[0]:  # what programs post
        for item in record.get("attachments") or []:
            parts += [item.get("text") or item.get("fallback")]
    parts += [f"[{item.get('name')}]" for item in record.get("files") or [] if item.get("name")]
    if (record.get("file") or {}).get("name"):
        parts.append(f"[{record['file']['name']}]")
    thread = record.get("thread_ts")
    yield Message(
        _slack_text("\n".join(filter(None, parts)), users),
        author,
        epoch(record.get("ts")),
        channel,
        reply_to=f"{channel}/{thread}" if thread != record.get("ts") and thread else None,
        id=f"{channel}/{record.get('ts')}",
    )


def _slack_text(text: str, users: Mapping[str, str]) -> str:
    """Write `<@U1>` as a name, links as their text and address, and entities as characters."""

    def name(match: re.Match[str]) -> str:
        mark, target, label = match.groups()
        if mark == "@":
            return "@" + (users.get(target) or label or target)
        if mark == "#":
            return "#" + (label or target)
        if mark == "!":
            return "@" + (label or target).split("^")[0].lstrip("@")
        return f"{label} ({target})" if label and label != target else target

    return html.unescape(_SLACK_LINK.sub(name, text))


def _telegram_text(text: Any) -> str:
    """Join a text that comes as pieces, some of them links or emphasis."""
    if isinstance(text, list):
        return "".join(piece if isinstance(piece, str) else piece.get("text", "") for piece in text)
    if isinstance(text, dict):
        return text.get("text") or ""
    return text or ""


def _unmangle(text: str) -> str:
    """Undo Facebook's export, which writes each byte of UTF-8 as a character of its own."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _channel(name: Any) -> str | None:
    return f"#{name}" if name else None
