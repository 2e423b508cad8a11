"""Conversations with assistants: ChatGPT, Claude, and lists of `role` and `content`."""

from collections.abc import Iterator
from typing import Any

from indexmem_cli.documents.chats.messages import Message, epoch, wall_clock

_HIDDEN_CONTENT = {
    "thoughts",
    "reasoning_recap",
    "model_editable_context",
    "user_editable_context",
}
_CLAUDE_ROLES = {"human": "user"}


def from_chatgpt(record: dict[str, Any], around: dict[str, Any]) -> Iterator[Message]:
    """Yield the branch of a conversation that is shown: from its last node up to the root."""
    nodes = record["mapping"]
    node_id = record.get("current_node") or next(reversed(nodes), None)
    branch: dict[str, dict[str, Any]] = {}
    # A broken file may go in circles.
    while node_id is not None and node_id in nodes and node_id not in branch:
        branch[node_id] = nodes[node_id]
        node_id = nodes[node_id].get("parent")
    for node_id, node in reversed(branch.items()):
        message = node.get("message")
        if not message or _is_hidden(message):
            continue
        author = message["author"].get("name") or message["author"]["role"]
        yield Message(
            _chatgpt_text(message.get("content") or {}),
            author,
            epoch(message.get("create_time")),
            channel=record.get("title"),
            id=node_id,
        )


def from_claude(record: dict[str, Any], around: dict[str, Any]) -> Iterator[Message]:
    """Yield the messages of a conversation, with the text of what was attached."""
    for message in record["chat_messages"]:
        blocks = [
            block["text"]
            for block in message.get("content") or []
            if block.get("type") == "text" and block.get("text")
        ]
        parts = blocks or [message.get("text") or ""]
        for attached in message.get("attachments") or []:
            parts += [f"[{attached.get('file_name')}]", attached.get("extracted_content") or ""]
        parts += [f"[{file.get('file_name')}]" for file in message.get("files") or []]
        sender = message.get("sender")
        yield Message(
            "\n".join(filter(None, parts)),
            _CLAUDE_ROLES.get(sender, sender),
            wall_clock(message.get("created_at")),
            channel=record.get("name"),
            id=message.get("uuid"),
        )


def from_roles(record: dict[str, Any], around: dict[str, Any]) -> Iterator[Message]:
    """Yield a message whose content is a text or a list of parts."""
    ts = record.get("timestamp") or record.get("created_at")
    yield Message(
        _join_parts(record.get("content")),
        record.get("name") or record.get("role"),
        wall_clock(ts) if isinstance(ts, str) else epoch(ts),
        channel=around.get("title") or around.get("item.title"),
    )


def _is_hidden(message: dict[str, Any]) -> bool:
    content = message.get("content") or {}
    return (
        bool((message.get("metadata") or {}).get("is_visually_hidden_from_conversation"))
        or message["author"]["role"] == "system"
        or content.get("content_type") in _HIDDEN_CONTENT
    )


def _chatgpt_text(content: dict[str, Any]) -> str:
    if "parts" in content:
        return _join_parts(content["parts"])
    return str(content.get("text") or content.get("result") or "")


def _join_parts(content: Any) -> str:
    """Join texts; what is no text is named by its type, as `[image_url]`."""
    if isinstance(content, str) or content is None:
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = part.get("type") or part.get("content_type")
            texts.append(part.get("text") or (f"[{kind}]" if kind else ""))
    return "\n".join(filter(None, texts))
