"""Every format of docs/formats.md: a fact is asked of it, and answered from the right place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_blocks import BOOK, STYLES, make_zip, para, word
from test_chats import telegram_message, zip_of
from test_documents_pdf import make_pdf

from indexmem_cli import Memory
from indexmem_cli.config import ModelConfig
from indexmem_cli.events import Source
from indexmem_cli.language_model import LanguageModel, load_language_model

QUESTION = "Who is the keeper of the lighthouse?"
FACT = "The keeper of the lighthouse is Marta Quell."
SAID = [
    ("Bob", "The ferry leaves at noon with the herring."),
    ("Ann", "Nobody mended the nets by the harbour wall."),
    ("Bob", "Rain is expected on Friday, so bring a coat."),
    ("Ann", "The baker sold out of rye bread again."),
    ("Zoe", FACT),
    ("Bob", "A seal slept on the slipway all morning."),
    ("Ann", "The museum opens in April after the repairs."),
    ("Bob", "Somebody left a red bicycle at the pier."),
]
TEXTS = [text for _, text in SAID]
ZOE = {"time": "2024-03-05 14:04", "author": "Zoe"}
"""When and by whom the fact is said in every chat, as its fifth message."""
EPOCH = 1709647200  # 2024-03-05 14:00 UTC

Place = dict[str, Any]
Make = Callable[[Path], Path]


@pytest.fixture(scope="module")
def engine() -> LanguageModel:
    return load_language_model(ModelConfig(device="cpu", offline=True))


def text_file(name: str, text: str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def json_file(name: str, content: object) -> Make:
    return text_file(name, json.dumps(content))


def zip_file(name: str, members: dict[str, object]) -> Make:
    return lambda folder: zip_of(folder / name, members)


def lines(form: str) -> str:
    """Every message in a form of `{n}`, `{who}` and `{text}`."""
    return "".join(form.format(n=n, who=who, text=text) for n, (who, text) in enumerate(SAID))


def listed(form: Callable[[int, str, str], object]) -> list[object]:
    return [form(n, who, text) for n, (who, text) in enumerate(SAID)]


def check(make: Make, place: Place, folder: Path, engine: LanguageModel) -> Source:
    path = make(folder)
    memory = Memory.read(path)
    memory.engine = engine
    answer = memory.ask(QUESTION)
    assert "Marta Quell" in answer.text
    assert answer.coverage.complete and answer.supported
    source = answer.sources[0]
    assert Path(source.file).name == path.name
    assert FACT in " ".join(source.quote.split())
    assert {name: getattr(source, name) for name in place} == place
    return source


# --- texts, tables, documents

PLAIN = "\n".join(TEXTS)
NOTES = f"# Harbour\n\n{TEXTS[0]}\n\n## Lights\n\n{TEXTS[1]}\n{FACT}\n\n## Town\n\n{TEXTS[6]}\n"
CHAPTERS = {
    **BOOK,
    "O/text/b%20b.xhtml": None,
    "O/text/b b.xhtml": f"<html><body><p>{TEXTS[0]}</p><p>{TEXTS[1]}</p></body></html>",
    "O/text/a.xhtml": f'<html><body><p id="x">{TEXTS[2]}</p><p>{FACT}</p></body></html>',
}
PARTS = [para("Harbour", "berschrift1"), para(TEXTS[0]), para("Lights", "berschrift1")]
WORD = {"word/styles.xml": STYLES, "word/document.xml": word(*PARTS, para(FACT), para(TEXTS[6]))}
PAGE = (
    f"<!DOCTYPE html><html><body><nav>Home</nav><h1>Harbour</h1><p>{TEXTS[0]}</p>"
    f"<h2>Lights</h2><p>{FACT}</p><h2>Town</h2><p>{TEXTS[6]}</p></body></html>"
)
DOCUMENTS: dict[str, tuple[Make, Place]] = {
    "pdf": (
        lambda folder: make_pdf(folder / "a.pdf", [TEXTS[:3], [FACT], TEXTS[5:]]),
        {"page": 2, "line_start": 1},
    ),
    "text": (text_file("a.log", PLAIN), {"line_start": 5, "line_end": 5, "unit": "line"}),
    "markdown": (text_file("a.md", NOTES), {"member": "Lights", "line_end": 8, "unit": "line"}),
    "csv": (
        text_file("a.csv", "day,note\n" + lines('{n},"{text}"\n')),
        {"line_start": 6, "unit": "row"},
    ),
    "tsv": (
        text_file("a.tsv", "day\tnote\n" + lines("{n}\t{text}\n")),
        {"line_start": 6, "unit": "row"},
    ),
    "json-lines": (
        text_file("a.jsonl", lines('{{"day": {n}, "note": "{text}"}}\n')),
        {"line_start": 5, "unit": "row"},
    ),
    "epub": (
        lambda folder: make_zip(
            folder / "a.epub", {name: text for name, text in CHAPTERS.items() if text is not None}
        ),
        {"member": "Two", "line_end": 4, "unit": "paragraph"},
    ),
    "docx": (
        lambda folder: make_zip(folder / "a.docx", WORD),
        {"member": "Lights", "line_start": 4, "unit": "paragraph"},
    ),
    "html": (text_file("a.html", PAGE), {"member": "Lights", "line_start": 4, "unit": "paragraph"}),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_answers_with_its_own_kind_of_place(name, tmp_path, engine):
    check(*DOCUMENTS[name], tmp_path, engine)


# --- source code

CODE = {
    ".py": "def light():\n    # {}\n    pass\n",
    ".js": "function light() {{\n  // {}\n}}\n",
    ".jsx": "function light() {{\n  // {}\n  return <a/>;\n}}\n",
    ".ts": "function light(): void {{\n  // {}\n}}\n",
    ".tsx": "function light(): void {{\n  // {}\n}}\n",
    ".go": "func light() {{\n\t// {}\n}}\n",
    ".rs": "fn light() {{\n    // {}\n}}\n",
    ".java": "class light {{\n  // {}\n}}\n",
    ".c": "int light(void)\n{{ // {}\n}}\n",
    ".cpp": "int light()\n{{ // {}\n}}\n",
    ".rb": "def light\n  # {}\nend\n",
    ".php": "function light() {{\n  // {}\n}}\n",
    ".cs": "class light {{\n  // {}\n}}\n",
    ".sh": "light() {{\n  # {}\n  true\n}}\n",
    ".zig": "fn light() void {{\n  // {}\n}}\n",
}


@pytest.mark.parametrize("suffix", CODE)
def test_source_code_answers_with_its_line_and_function(suffix, tmp_path, engine):
    other = CODE[suffix].replace("light", "ferry").format(TEXTS[0])
    text = ("<?php\n" if suffix == ".php" else "") + other + CODE[suffix].format(FACT)
    line = 1 + text[: text.index(FACT)].count("\n")
    symbol = None if suffix == ".zig" else "light"
    place = {"symbol": symbol, "unit": "line"}
    source = check(text_file(f"a{suffix}", text), place, tmp_path, engine)
    assert source.line_start <= line <= source.line_end


# --- chats, mail, subtitles


def discord(n: int, who: str, text: str) -> dict[str, object]:
    return {"id": str(n), "type": "Default", "timestamp": f"2024-03-05T14:0{n}:00+01:00",
            "content": text, "author": {"id": who, "name": who}}  # fmt: skip


def telegram(n: int, who: str, text: str) -> dict[str, object]:
    return telegram_message(n, text, date=f"2024-03-05T14:0{n}:00") | {"from": who, "from_id": who}


def telegram_page(n: int, who: str, text: str) -> str:
    return (
        f'<div class="message default clearfix" id="message{n}"><div class="body">'
        f'<div class="date" title="05.03.2024 14:0{n}:00 UTC+01:00">x</div>'
        f'<div class="from_name">{who}</div><div class="text">{text}</div></div></div>'
    )


def facebook(n: int, who: str, text: str) -> dict[str, object]:
    return {"sender_name": who, "timestamp_ms": (EPOCH + 60 * n) * 1000, "content": text}


def chatgpt(n: int, who: str, text: str) -> tuple[str, object]:
    message = {"author": {"role": "user" if n == 4 else "assistant"},
               "create_time": EPOCH + 60 * n,
               "content": {"content_type": "text", "parts": [text]}}  # fmt: skip
    return str(n), {"id": str(n), "parent": str(n - 1) if n else None, "message": message}


def claude(n: int, who: str, text: str) -> dict[str, object]:
    return {"uuid": str(n), "sender": "human" if n == 4 else "assistant", "text": text,
            "created_at": f"2024-03-05T14:0{n}:00Z"}  # fmt: skip


def slack_day(n: int, who: str, text: str) -> dict[str, object]:
    return {"type": "message", "user": who, "ts": f"{EPOCH + 60 * n}.000100", "text": text}


SLACK = {
    "users.json": [{"id": who, "name": who} for who in ("Ann", "Bob", "Zoe")],
    "channels.json": [{"id": "C1", "name": "harbour"}],
    "harbour/2024-03-05.json": listed(slack_day),
}


def slack_folder(folder: Path) -> Path:
    for name, content in SLACK.items():
        path = folder / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        json_file(name, content)(folder / "export")
    return folder / "export"


DISCORD = {
    "guild": {"id": "1", "name": "Sea"},
    "channel": {"id": "2", "name": "harbour"},
    "messages": listed(discord),
}
TELEGRAM = {"name": "Harbour", "type": "personal_chat", "id": 1, "messages": listed(telegram)}
TELEGRAM_PAGE = (
    "<!DOCTYPE html><html><head><title>Exported Data</title></head><body>"
    '<div class="page_wrap"><div class="page_header"><div class="text bold">Harbour</div></div>'
    + "".join(listed(telegram_page))
)
FACEBOOK = {"participants": [], "messages": listed(facebook)[::-1], "title": "Harbour"}
CHATGPT = [{"title": "Harbour", "current_node": "7", "mapping": dict(listed(chatgpt))}]
CLAUDE = [{"uuid": "u", "name": "Harbour", "chat_messages": listed(claude)}]
ROLES = listed(lambda n, who, text: {"role": "user" if n == 4 else "assistant", "content": text})
MAIL = (
    "From: {who} <{who}@sea.example>\nTo: Eve <eve@sea.example>\nSubject: Harbour {n}\n"
    "Date: Tue, 05 Mar 2024 14:0{n}:00 +0100\nMessage-ID: <{n}@sea.example>\n\n{text}\n"
)
CUE = "00:14:0{n}.000 --> 00:14:0{n}.900\n"
IRSSI = "--- Log opened Tue Mar 05 09:12:41 2024\n"

MESSAGE = {"line_start": 5, "unit": "message"}
HARBOUR = MESSAGE | ZOE | {"member": "Harbour"}
CHANNEL = MESSAGE | ZOE | {"member": "#harbour"}
USER = HARBOUR | {"author": "user"}
POSTED = {"author": "Zoe <Zoe@sea.example>", "time": "2024-03-05 14:04", "member": "Harbour 4"}
MESSAGES: dict[str, tuple[Make, Place]] = {
    "whatsapp": (text_file("a.txt", lines("[3/25/24, 2:0{n}:00 PM] {who}: {text}\n")),
                 ZOE | {"time": "2024-03-25 14:04", "line_start": 5, "unit": "line"}),
    "signal": (text_file("a.txt", lines("[2024-03-05, 14:0{n}] {who}: {text}\n")),
               ZOE | {"line_start": 5, "unit": "line"}),
    "slack-zip": (zip_file("a.zip", SLACK), CHANNEL),
    "slack-folder": (slack_folder, CHANNEL),
    "slack-day": (json_file("2024-03-05.json", SLACK["harbour/2024-03-05.json"]), MESSAGE | ZOE),
    "discord": (json_file("a.json", DISCORD), CHANNEL),
    "telegram": (json_file("result.json", TELEGRAM), HARBOUR),
    "telegram-page": (text_file("messages.html", TELEGRAM_PAGE), HARBOUR),
    "facebook": (json_file("message_1.json", FACEBOOK), HARBOUR),
    "instagram": (json_file("a.json", {"messages": listed(facebook)[::-1]}), MESSAGE | ZOE),
    "chatgpt": (json_file("conversations.json", CHATGPT), USER),
    "chatgpt-zip": (zip_file("a.zip", {"conversations.json": CHATGPT}), USER),
    "claude": (json_file("conversations.json", CLAUDE), USER),
    "claude-zip": (zip_file("a.zip", {"conversations.json": CLAUDE}), USER),
    "roles": (json_file("a.json", ROLES), MESSAGE | {"author": "user", "time": None}),
    "roles-lines": (text_file("a.jsonl", "\n".join(map(json.dumps, ROLES))),
                    MESSAGE | {"author": "user", "time": None}),
    "irssi": (text_file("a.log", IRSSI + lines("14:0{n} <@{who}> {text}\n")),
              ZOE | {"line_start": 6, "unit": "line"}),
    "weechat": (text_file("a.log", lines("2024-03-05 14:0{n}:00\t@{who}\t{text}\n")),
                ZOE | {"line_start": 5, "unit": "line"}),
    "irc": (text_file("a.log", lines("[14:0{n}] <{who}> {text}\n")),
            {"author": "Zoe", "time": "14:04", "line_start": 5, "unit": "line"}),
    "eml": (text_file("a.eml", MAIL.format(n=4, who="Zoe", text=FACT)), POSTED),
    "mbox": (text_file("a.mbox", lines("From x Tue Mar 5 14:00:00 2024\n" + MAIL + "\n")),
             MESSAGE | POSTED),
    "vtt": (text_file("a.vtt", "WEBVTT\n\n" + lines(CUE + "<v {who}>{text}</v>\n\n")),
            {"author": "Zoe", "time": "00:14:04"}),
    "srt": (text_file("a.srt", lines("{n}\n" + CUE.replace(".", ",") + "{who}: {text}\n\n")),
            {"author": "Zoe", "time": "00:14:04"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_answers_with_its_time_and_author(name, tmp_path, engine):
    check(*MESSAGES[name], tmp_path, engine)
