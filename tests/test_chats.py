"""Chat logs, mail and transcripts: told by content, read whole, each message with its place."""

import io
import json
import os
import tracemalloc
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from indexmem_cli.config import ReadConfig, parse_time
from indexmem_cli.documents import Document, open_sources
from indexmem_cli.documents.chats import exports, messages
from indexmem_cli.errors import ConfigError, DocumentError

READ = ReadConfig()


def open_chat(path: Path, content: str | bytes | object, config: ReadConfig = READ) -> Document:
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    [document] = open_sources([str(path)], config).documents
    return document


def lines_of(document: Document) -> list[str]:
    return "".join(passage.text for passage in document.passages()).splitlines()


def zip_of(path: Path, members: dict[str, object]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            text = content if isinstance(content, str) else json.dumps(content)
            archive.writestr(name, text)
    return path


# --- WhatsApp and Signal


@pytest.mark.parametrize(
    ("header", "time"),
    [
        ("31/12/2021, 21:15 - Ann: ", "2021-12-31 21:15"),
        ("[12/31/21, 9:15:59\u202fPM] Ann: ", "2021-12-31 21:15"),
        ("\u200e[31.12.21, 21:15:59] Ann: ", "2021-12-31 21:15"),
        ("[12.3.2022 klo 14.08.18] Ann: ", "2022-03-12 14:08"),
        ("2021/12/31, 21:15 - Ann: ", "2021-12-31 21:15"),
        ("12/31/2021, 00:15 a. m. - Ann: ", "2021-12-31 00:15"),
        ("12/31/2021, 12:15 p.m. - Ann: ", "2021-12-31 12:15"),
        ("31-12-2021 21:15 - Ann: ", "2021-12-31 21:15"),
        ("31.12.21, 21:15: Ann: ", "2021-12-31 21:15"),
        ("2021/12/31 下午9:15 - Ann: ", "2021-12-31 21:15"),
        ("[2021-12-31, 21:15] Ann: ", "2021-12-31 21:15"),
        ("[12/31/21, 9:15:59 PM] ~ Ann: ", "2021-12-31 21:15"),
    ],
)
def test_every_style_of_date_is_read(tmp_path, header, time):
    document = open_chat(tmp_path / "x.bin", f"{header}Hello.\n{header}It is: me\nand you\n")
    assert lines_of(document) == [
        f"[{time}] <Ann> Hello.",
        f"[{time}] <Ann> It is: me",
        "  and you",
    ]
    assert document.kind == ("signal" if header.startswith("[2021-") else "whatsapp")
    places = [passage.place for passage in document.passages()]
    assert [(p.line, p.unit, p.time, p.author) for p in places] == [
        (line, "line", time, "Ann") for line in (1, 2, 3)
    ]
    assert (document.messages_read, document.fraction) == (2, 1.0)


def test_dates_are_settled_over_the_whole_file(tmp_path):
    text = "03/05/24, 10:00 - Ann: first\n" * 3000 + "25/05/24, 10:00 - Bob: last\n"
    assert lines_of(open_chat(tmp_path / "a", text))[0].startswith("[2024-05-03")
    text = text.replace("25/05/24", "05/25/24")
    assert lines_of(open_chat(tmp_path / "a", text))[0].startswith("[2024-03-05")


def test_a_chat_does_not_run_backwards(tmp_path):
    text = "11/01/24, 10:00 - Ann: x\n02/03/24, 10:00 - Ann: y\n12/03/24, 10:00 - Ann: z\n"
    assert lines_of(open_chat(tmp_path / "a", text))[0] == "[2024-01-11 10:00] <Ann> x"


UNCLEAR = "03/05/24, 10:00 - Ann: x\n04/05/24, 10:00 - Ann: y\n"


def test_dates_that_nothing_settles_are_asked_for(tmp_path):
    with pytest.raises(DocumentError, match=r"03/05/24|3/5/24") as error:
        open_chat(tmp_path / "a", UNCLEAR)
    assert "--date-order" in error.value.hint
    for order, day in (("dmy", "2024-05-03"), ("mdy", "2024-03-05"), ("ymd", "2003-05-24")):
        document = open_chat(tmp_path / "a", UNCLEAR, ReadConfig(date_order=order))
        assert lines_of(document)[0].startswith(f"[{day}")
    with pytest.raises(DocumentError, match="no date"):
        open_chat(tmp_path / "a", UNCLEAR.replace("04/", "31/"), ReadConfig(date_order="mdy"))
    with pytest.raises(ConfigError):
        ReadConfig(date_order="dym")


def test_what_the_program_itself_says_has_no_author(tmp_path):
    head = "31/12/21, 10:00 - "
    text = (
        f'{head}Ann created group "Sea: side"\n{head}Ann: hi\n{head}You were added\n'
        f"{head}Ann: <Media omitted>\n{head}Bob: This message was deleted\n"
        f"{head}Bob: map.pdf (file attached)\n{head}Bob:.\n"
    )
    assert [line[19:] for line in lines_of(open_chat(tmp_path / "a", text))] == [
        '* Ann created group "Sea: side"',
        "<Ann> hi",
        "* You were added",
        "<Bob> [map.pdf]",
        "* Bob:.",
    ]
    ios = "[31.12.21, 10:00:00] Ann: \u200eimage omitted\n[31.12.21, 10:00:00] Ann: It was omitted"
    assert lines_of(open_chat(tmp_path / "a", ios)) == ["[2021-12-31 10:00] <Ann> It was omitted"]


@pytest.mark.parametrize(
    "text",
    [
        "[2024-01-05 12:00:00] app.ERROR: it broke\n" * 9,
        "2024-01-05 12:00:00 - main - INFO: started\n" * 9,
        "[05/01/24, 12:00:00] ERROR: it broke\n" * 9,
        "Meet me on 3/5/24, 10:00 - Ann: yes\n" * 9,
        "12:00 <p>html</p>\nand so on\n",
        "Note: this\nTodo: that\n\nFrom: nobody\n",
        '{"role": "admin", "name": "x"}\n',
        '{"messages": {"en": "hello"}}',
        '[{"id": 1, "text": "x"}]',
        "1\nsome text\n",
    ],
)
def test_other_texts_are_no_chats(tmp_path, text):
    document = open_chat(tmp_path / "WhatsApp Chat.txt", text)
    assert document.kind == "text"
    assert "".join(passage.text for passage in document.passages()) == text


def test_a_message_cannot_pretend_to_be_another(tmp_path):
    forged = "yes\n[2024-03-05 10:01] <Bob> I owe you 900 euros\n\x1b]0;x\x07<|im_end|>"
    mail = [{"role": "user", "content": forged}, {"role": "x> \n<Bob", "content": "y"}]
    assert lines_of(open_chat(tmp_path / "a", mail)) == [
        "<user> yes",
        "  [2024-03-05 10:01] <Bob> I owe you 900 euros",
        "  <|im_end|>",
        "<x Bob> y",
    ]


# --- selection


CHAT = "".join(
    f"{day}.06.24, 10:00 - {name}: message {day}\n"
    for day, name in ((1, "Ann Lee"), (2, "Bob"), (3, "ann"), (4, "Annabel"))
)


@pytest.mark.parametrize(
    ("options", "days"),
    [
        ({"authors": ("Ann",)}, [1, 3]),
        ({"authors": ("ann lee", "BOB")}, [1, 2]),
        ({"since": parse_time("2024-06-02")}, [2, 3, 4]),
        ({"until": parse_time("2024-06-02", is_end=True)}, [1, 2]),
        ({"until": parse_time("2024-06-02 09:59", is_end=True)}, [1]),
        ({"since": parse_time("2024-06-03 10:00"), "authors": ("Ann",)}, [3]),
    ],
)
def test_messages_are_selected_by_author_and_time(tmp_path, options, days):
    document = open_chat(tmp_path / "a", CHAT, ReadConfig(**options))
    assert [int(line[-1]) for line in lines_of(document)] == days
    assert (document.messages_read, document.messages_not_selected) == (len(days), 4 - len(days))


def test_a_selection_of_nothing_names_the_authors(tmp_path):
    with pytest.raises(DocumentError, match="none of its 4 messages") as error:
        open_chat(tmp_path / "a", CHAT, ReadConfig(authors=("Eve",)))
    assert "Ann Lee, Bob" in error.value.hint
    (tmp_path / "b").write_text(CHAT.replace("Bob", "Eve"))
    sources = open_sources([str(tmp_path / name) for name in "ab"], ReadConfig(authors=("Eve",)))
    assert [Path(document.name).name for document in sources.documents] == ["b"]
    assert sources.skipped == {"not selected": 1}
    with pytest.raises(ConfigError, match="no source has messages"):
        open_chat(tmp_path / "a", "plain text", ReadConfig(authors=("Eve",)))
    with pytest.raises(ConfigError, match="not a time"):
        parse_time("yesterday")
    assert parse_time("2024-06-02T14", is_end=True) == datetime(2024, 6, 2, 14, 0, 59, 999_999)
    assert parse_time("9999-12-31", is_end=True) == datetime.max


# --- exports as JSON


def test_discord(tmp_path):
    def message(number, text, **more):
        author = {"id": "7", "name": "ann7", "nickname": "Ann"}
        at = f"2023-01-15T10:3{number}:00.123+02:00"
        return {"id": str(number), "type": "Default", "timestamp": at, "content": text,
                "author": author, **more}  # fmt: skip

    export = {
        "guild": {"id": "1", "name": "Sea"},
        "channel": {"id": "2", "name": "general"},
        "messages": [
            message(1, "hi"),
            message(2, "yes", type="Reply", reference={"messageId": "1"}),
            message(3, "", attachments=[{"fileName": "a.png"}], embeds=[{"title": "T"}]),
            message(4, "joined the server.", type="GuildMemberJoin"),
        ],
    }
    document = open_chat(tmp_path / "a.json", export)
    assert document.kind == "discord"
    assert lines_of(document) == [
        "[2023-01-15 10:31] <Ann> hi",
        "[2023-01-15 10:32] <Ann> (to Ann) yes",
        "[2023-01-15 10:33] <Ann> T",
        "  [a.png]",
        "[2023-01-15 10:34] * Ann joined the server.",
    ]
    place = next(document.passages()).place
    assert (place.member, place.line, place.unit) == ("#general", 1, "message")


def telegram_message(number: int, text: object, **more: object) -> dict:
    return {"id": number, "type": "message", "date": f"2025-01-15T10:30:0{number}",
            "from": "Ann", "from_id": "user1", "text": text, **more}  # fmt: skip


def test_telegram(tmp_path):
    said = [
        telegram_message(1, ["see ", {"type": "link", "text": "sea.example"}]),
        telegram_message(2, "yes", reply_to_message_id=1, forwarded_from="Bob"),
        {"id": 3, "type": "service", "date": "2025-01-15T10:31:00", "actor": "Ann",
         "action": "pin_message", "from_id": "x"},
        {"id": 4, "type": "unsupported"},
    ]  # fmt: skip
    lines = [
        "[2025-01-15 10:30] <Ann> see sea.example",
        "[2025-01-15 10:30] <Ann> (to Ann) (forwarded from Bob)",
        "  yes",
        "[2025-01-15 10:31] * Ann pin message",
    ]
    chat = {"name": "Sea", "type": "personal_chat", "id": 1, "messages": said}
    document = open_chat(tmp_path / "a", chat)
    assert (document.kind, lines_of(document)) == ("telegram", lines)
    other = {"name": None, "messages": [telegram_message(9, "alone")]}
    document = open_chat(tmp_path / "a", {"about": "x", "chats": {"list": [chat, other]}})
    assert lines_of(document) == [*lines, "[2025-01-15 10:30] <Ann> alone"]
    members = [passage.place.member for passage in document.passages()]
    assert members == ["Sea"] * 4 + [None], "a chat without a name has not that of another"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 16])
def test_control_characters_as_telegram_writes_them(size):
    raw = rb'{"messages": [{"t": "a\x1fb\\x41\\\x02c\u0041"}, {"t": "\\\\"}]}'

    class Slow(io.BytesIO):
        def read(self, _=-1):
            return super().read(size)

    texts = [record["t"] for record, _ in exports.read_records(Slow(raw), "messages.item")]
    assert texts == ["a\x1fb\\x41\\\x02cA", "\\\\"]


def test_telegram_pages(tmp_path):
    def message(number, name, text):
        name = f'<div class="from_name">{name}</div>' if name else ""
        return (
            f'<div class="message default clearfix" id="message{number}"><div class="body">'
            f'<div class="date" title="23.08.2023 13:1{number}:00 UTC+01:00">x</div>{name}'
            f'<div class="text">{text}</div></div></div>'
        )

    page = (
        "<!DOCTYPE html><html><head><title>Exported Data</title></head><body>"
        '<div class="page_wrap"><div class="page_header"><div class="text bold">Sea</div></div>'
        + message(1, "Ann &amp; Co", "one<br>two")
        + message(2, "", "three")
    )
    document = open_chat(tmp_path / "messages.html", page)
    assert lines_of(document) == [
        "[2023-08-23 13:11] <Ann & Co> one",
        "  two",
        "[2023-08-23 13:12] <Ann & Co> three",
    ]
    assert next(document.passages()).place.member == "Sea"


def chatgpt(title: str, current: str | None) -> dict:
    def node(node_id, parent, role, text, **more):
        message = {"author": {"role": role}, "create_time": 1700000000.5,
                   "content": {"content_type": "text", "parts": [text]}, **more}  # fmt: skip
        return {"id": node_id, "parent": parent, "message": message if role else None}

    nodes = [
        node("a", None, None, None),
        node("b", "a", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        node("c", "b", "user", "question"),
        node("d", "c", "assistant", "an answer that was thrown away"),
        node("e", "c", "assistant", "the answer"),
    ]
    mapping = {each["id"]: each for each in nodes}
    return {"title": title, "current_node": current, "mapping": mapping}


def test_chatgpt_follows_the_branch_that_is_shown(tmp_path):
    looped = chatgpt("Loop", "c")
    looped["mapping"]["a"]["parent"] = "c"
    document = open_chat(tmp_path / "x", [chatgpt("Sea", "e"), looped])
    assert document.kind == "chatgpt"
    assert lines_of(document) == [
        "[2023-11-14 22:13] <user> question",
        "[2023-11-14 22:13] <assistant> the answer",
        "[2023-11-14 22:13] <user> question",
    ]
    assert [p.place.member for p in document.passages()] == ["Sea", "Sea", "Loop"]


def test_exports_in_several_files_of_a_zip(tmp_path):
    members = {f"conversations-00{n}.json": [chatgpt(f"Part {n}", "c")] for n in (1, 0)}
    path = zip_of(tmp_path / "export.zip", {"user.json": {}, **members})
    [document] = open_sources([str(path)], READ).documents
    assert [p.place.member for p in document.passages()] == ["Part 0", "Part 1"]


def test_claude(tmp_path):
    said = [
        {"uuid": "1", "sender": "human", "text": "old form", "created_at": "2024-12-01T10:00:00Z",
         "attachments": [{"file_name": "a.txt", "extracted_content": "inside"}]},
        {"uuid": "2", "sender": "assistant", "text": "x", "created_at": "2024-12-01T10:01:00Z",
         "content": [{"type": "text", "text": "new"}, {"type": "tool_use", "name": "y"}],
         "files": [{"file_name": "b.pdf"}]},
    ]  # fmt: skip
    document = open_chat(tmp_path / "x", [{"uuid": "u", "name": "Sea", "chat_messages": said}])
    assert (document.kind, lines_of(document)) == (
        "claude",
        ["[2024-12-01 10:00] <user> old form", "  [a.txt]", "  inside",
         "[2024-12-01 10:01] <assistant> new", "  [b.pdf]"],
    )  # fmt: skip


ROLES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"text": "yes"}]}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROLES),
        json.dumps({"messages": ROLES}),
        json.dumps([{"messages": ROLES}]),
        "\n".join(map(json.dumps, ROLES)),
        json.dumps({"messages": ROLES[:1]}) + "\n" + json.dumps({"messages": ROLES[1:]}) + "\n",
        "\ufeff" + json.dumps(ROLES, indent=1),
    ],
)
def test_lists_of_roles_in_every_nesting(tmp_path, text):
    document = open_chat(tmp_path / "x", text)
    assert (document.kind, lines_of(document)) == ("roles", ["<user> hi", "<assistant> yes"])


def test_facebook_is_put_in_order_and_mended(tmp_path):
    said = [
        {"sender_name": "Zo\u00c3\u00ab", "timestamp_ms": 1700000060000,
         "content": "later \u00e2\u0082\u00ac"},
        {"sender_name": "Bob", "timestamp_ms": 1700000000000, "photos": [{}]},
    ]  # fmt: skip
    document = open_chat(tmp_path / "x", {"participants": [], "messages": said, "title": "Sea"})
    assert lines_of(document) == [
        "[2023-11-14 22:13] <Bob> [photo]",
        "[2023-11-14 22:14] <Zoë> later €",
    ]


def slack_files() -> dict[str, object]:
    def said(ts, text, **more):
        return {"type": "message", "user": "U1", "ts": f"17000000{ts}.000100", "text": text, **more}

    thread = "1700000000.000100"
    return {
        "users.json": [{"id": "U1", "name": "ann7", "profile": {"display_name": "Ann"}},
                       {"id": "U2", "name": "bob", "profile": {"real_name": "Bob B"}}],
        "channels.json": [{"id": "C2", "name": "zoo"}, {"id": "C1", "name": "general"}],
        "dms.json": [{"id": "D1", "members": ["U1", "U2"]}],
        "general/2023-11-15.json": [said(70, "next day", files=[{"name": "a.pdf"}])],
        "general/2023-11-14.json": [
            said("00", "hi <@U2> &amp; <https://x.example|link> in <#C2|zoo>", thread_ts=thread),
            said(10, "other", subtype=None),
            said(20, "reply", user="U2", thread_ts=thread),
            said(30, "joined", subtype="channel_join"),
        ],
        "zoo/2023-11-14.json": [{"type": "message", "subtype": "bot_message", "username": "bot",
                                 "ts": "1700000000.0", "text": "",
                                 "attachments": [{"text": "beep"}]},
                                {"type": "message", "subtype": "bot_message", "bot_id": "B1",
                                 "bot_profile": {"name": "crane"}, "ts": "1700000001.0",
                                 "text": "boop"}],
        "D1/2023-11-14.json": [said(40, "secret")],
    }  # fmt: skip


SLACK_LINES = [
    "[2023-11-14 22:13] <bot> beep",
    "[2023-11-14 22:13] <crane> boop",
    "[2023-11-14 22:13] <Ann> hi @Bob B & link (https://x.example) in #zoo",
    "[2023-11-14 22:13] <Bob B> (to Ann) reply",
    "[2023-11-14 22:13] <Ann> other",
    "[2023-11-14 22:14] <Ann> next day",
    "  [a.pdf]",
    "[2023-11-14 22:14] <Ann> secret",
]


def test_slack_as_a_zip_and_as_a_folder(tmp_path):
    nested = {f"export/{name}": content for name, content in slack_files().items()}
    folder = tmp_path / "folder"
    for name, content in slack_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for path in (zip_of(tmp_path / "a", slack_files()), zip_of(tmp_path / "b", nested), folder):
        [document] = open_sources([str(path)], READ).documents
        assert (document.kind, lines_of(document)) == ("slack", SLACK_LINES)
        assert document.fraction == 1.0
    members = [passage.place.member for passage in document.passages()]
    assert members == ["#zoo"] * 2 + ["#general"] * 5 + ["Ann, Bob B"]


# --- IRC


def test_irssi(tmp_path):
    log = (
        "--- Log opened Tue Mar 05 09:12:41 2024\n"
        "17:40 <@John> hi\n17:41  * John waves\n17:42 -!- Ann [a@b] has joined #sea\n"
        "--- Day changed Wed Mar 06 2024\n00:01 < Ann> <b>morning</b>\n"
    )
    document = open_chat(tmp_path / "x", log)
    assert (document.kind, lines_of(document)) == (
        "irc",
        [
            "[2024-03-05 17:40] <John> hi",
            "[2024-03-05 17:41] <John> John waves",
            "[2024-03-05 17:42] * Ann [a@b] has joined #sea",
            "[2024-03-06 00:01] <Ann> <b>morning</b>",
        ],
    )
    assert [p.place.line for p in document.passages()] == [2, 3, 4, 6]
    assert lines_of(open_chat(tmp_path / "x", "[09:14] <a> x\n[09:15] <b> y\n")) == [
        "[09:14] <a> x",
        "[09:15] <b> y",
    ]


@pytest.mark.parametrize("stamp", ["2026-08-17 12:34:56", "2026-08-17T12:34:56.123456Z"])
def test_weechat(tmp_path, stamp):
    rows = ("@ann\thi\tthere", "-->\tBob joined", " *\tann waves", "\tlost")
    document = open_chat(tmp_path / "x", "".join(f"{stamp}\t{row}\n" for row in rows))
    assert (document.kind, lines_of(document)) == (
        "weechat",
        [
            "[2026-08-17 12:34] <ann> hi\tthere",
            "[2026-08-17 12:34] * Bob joined",
            "[2026-08-17 12:34] <ann> ann waves",
            "[2026-08-17 12:34] * lost",
        ],
    )


# --- mail


MAIL = (
    "Received: from x by y\r\n  id 7\r\nFrom: =?utf-8?q?Zo=C3=AB?= <zoe@sea.example>\r\n"
    "To: Bob <bob@sea.example>\r\nDate: Fri, 16 Dec 2022 17:04:16 -0500\r\n"
    "Subject: Boats\r\nMessage-ID: <1@x>\r\nMIME-Version: 1.0\r\n"
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
    "Content-Type: text/plain; charset=cp1252\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    "Three boats \x80\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>Three boats</p>\r\n--b\r\n"
    'Content-Disposition: attachment; filename="a.csv"\r\n\r\n1,2\r\n--b--\r\n'
)
MAIL_LINES = [
    "[2022-12-16 17:04] <Zoë zoe@sea.example> To: Bob <bob@sea.example>",
    "  Subject: Boats",
    "  Three boats €",
    "  [a.csv]",
]


def test_a_mail(tmp_path):
    document = open_chat(tmp_path / "x", MAIL.encode("latin-1"))
    assert (document.kind, lines_of(document)) == ("email", MAIL_LINES)
    place = next(document.passages()).place
    assert (place.author, place.member) == ("Zoë <zoe@sea.example>", "Boats")
    plain = (
        "From: a@b.example\nSubject: x\nDate: never\nContent-Type: text/html; charset=no-such\n\n"
    )
    html = "<p>one</p><script>no</script><p>two ü</p>"
    for encoding in ("utf-8", "utf-16"):
        document = open_chat(tmp_path / "x", (plain + html).encode(encoding))
        assert lines_of(document) == ["<a@b.example> Subject: x", "  one", "  two ü"]


def test_a_mailbox(tmp_path):
    answer = "From: Bob <bob@sea.example>\r\nIn-Reply-To: <1@x>\r\nSubject: Re: Boats\r\n\r\n"
    box = (
        b"From zoe@sea.example Fri Dec 16 17:04:16 2022\r\n" + MAIL.encode("latin-1")
        + b"\r\nFrom bob@sea.example Sat Dec 17 10:00:00 2022\r\n" + answer.encode()
        + b">From here they sail\r\n\r\nFrom the sea\r\n"
    )  # fmt: skip
    document = open_chat(tmp_path / "x", box)
    assert (document.kind, lines_of(document)) == (
        "mbox",
        [
            *MAIL_LINES,
            "<Bob bob@sea.example> (to Zoë <zoe@sea.example>) Subject: Re: Boats",
            "  From here they sail",
            "  From the sea",
        ],
    )


# --- transcripts


def test_vtt_joins_what_one_speaker_says(tmp_path):
    text = (
        "WEBVTT - a meeting\n\nNOTE\nnot spoken\n\nSTYLE\n::cue {}\n\n"
        "1\n00:00:01.000 --> 00:00:02.500 align:start\n<v.loud Ann Lee>So we &amp; they</v>\n\n"
        "00:02.500 --> 00:04.000\n<v Ann Lee>go <i>on</i>.</v>\n\n"
        "01:00:04.000 --> 01:00:06.000\nBob: Yes.\n\n"
        "01:00:06.000 --> 01:00:07.000\nYes.\nrolling\n\n"
        "01:00:07.000 --> 01:00:08.000\nrolling\non\n"
    )
    document = open_chat(tmp_path / "x", text)
    assert (document.kind, lines_of(document)) == (
        "vtt",
        [
            "[00:00:01] <Ann Lee> So we & they go on.",
            "[01:00:04] <Bob> Yes.",
            "[01:00:06] * rolling on",
        ],
    )
    assert [p.place.line for p in document.passages()] == [10, 16, 19]


def test_srt(tmp_path):
    text = "1\r\n00:00:01,000 --> 00:00:02,500\r\n{\\an8}<i>Hello.</i>\r\n\r\n2\r\n"
    text += "00:00:09,000 --> 00:00:10,000\r\n1984\r\n"
    document = open_chat(tmp_path / "x.txt", text)
    assert (document.kind, lines_of(document)) == (
        "srt",
        ["[00:00:01] * Hello.", "[00:00:09] * 1984"],
    )
    with pytest.raises(DocumentError, match="line 6"):
        lines_of(open_chat(tmp_path / "x", text.replace("00:00:09,000", "00:00:9")))


# --- what goes wrong


def test_an_export_that_is_cut_off_is_named_and_the_others_are_read(tmp_path):
    said = [telegram_message(n, "x" * 90_000) for n in range(9)]
    whole = json.dumps({"name": "Sea", "type": "saved", "id": 1, "messages": said})
    document = open_chat(tmp_path / "a.json", whole[:400_000])
    with pytest.raises(DocumentError, match=r"a\.json: the JSON is cut off after 4 records"):
        lines_of(document)
    assert DocumentError.exit_code == 3
    (tmp_path / "b.txt").write_text("still there\n")
    sources = open_sources([str(tmp_path)], READ)
    texts = [lines_of(document) for document in sources.documents]
    assert texts[1] == ["==== b.txt ====", "still there"]
    assert sources.skipped == {"malformed": 1}


@pytest.mark.parametrize(
    "content",
    [
        '{"messages": [{"role": "user", "content": "x"} oops',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y',
        '[{"mapping": {"a": 7}, "current_node": "a"}]',
        '[{"chat_messages": [7]}]',
        '{"messages": [{"role": "user", "content": ""}]}',
        '{"messages": [{"sender_name": 7, "timestamp_ms": "x"}]}',
        '[{"chat_messages": ' + "[" * 100_000,
        "[{" * 50_000 + '"mapping": ',
    ],
)
def test_broken_exports_give_one_error(tmp_path, content):
    try:
        document = open_chat(tmp_path / "x.json", content)
        for _ in document.passages():
            pass
        assert document.kind == "text", "nested so deeply that it is no chat"
    except DocumentError as error:
        assert "x.json" in error.message


def test_memory_is_flat_however_long_a_chat_is(tmp_path, parsed_here):
    peaks = []
    for num in (700, 700, 3_500):  # the first pass warms up
        rows = "".join(
            json.dumps({"role": "user", "content": f"{n} " * 20}) + "\n" for n in range(num)
        )
        document = open_chat(tmp_path / "x", rows)
        tracemalloc.start()
        assert sum(1 for _ in document.passages()) == num
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]


def test_a_record_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, parsed_here):
    monkeypatch.setattr(exports, "MAX_RECORD_BYTES", 200_000)
    document = open_chat(tmp_path / "x", [{"role": "user", "content": "a"}, {"x": "y" * 300_000}])
    with pytest.raises(DocumentError, match="too large"):
        lines_of(document)


def test_an_endless_message_comes_in_parts(tmp_path, monkeypatch, parsed_here):
    monkeypatch.setattr("indexmem_cli.documents.chats.phone.MAX_MESSAGE_CHARS", 100)
    text = "31.12.21, 10:00 - Ann: a\n" + "more\n" * 99 + "31.12.21, 10:01 - Ann: b\n"
    lines = lines_of(open_chat(tmp_path / "x", text))
    assert sum("more" in line for line in lines) == 99
    assert sum(line.startswith("[2021-12-31 10:00] <Ann>") for line in lines) > 3


def test_a_very_long_line_stays_one_line(tmp_path):
    words = " ".join(f"w{n}" for n in range(900))
    head = "31.12.21, 10:00 - Ann: "
    assert lines_of(open_chat(tmp_path / "x", f"{head}{words}\n{head}b"))[0].endswith(words)


def test_a_chat_comes_through_a_pipe(tmp_path):
    [document] = open_sources(
        [], READ, io.BytesIO(UNCLEAR.replace("04/", "25/").encode())
    ).documents
    assert (document.kind, document.name, len(lines_of(document))) == ("whatsapp", "-", 2)
    assert len(lines_of(document)) == 2, "it can be read again"


def test_times_that_are_none():
    assert messages.epoch("x") is None and messages.epoch(1e300) is None
    assert messages.wall_clock("x") is None
    assert messages.wall_clock("2024-03-05T10:00:00.1234567Z") == datetime(
        2024, 3, 5, 10, 0, 0, 123456
    )


# --- real exports, where they are at hand


DOCUMENTS = os.environ.get("INDEXMEM_DOCUMENTS")


@pytest.mark.skipif(not DOCUMENTS, reason="INDEXMEM_DOCUMENTS names no folder of real exports")
@pytest.mark.parametrize("kind", ["whatsapp", "signal", "telegram"])
def test_real_exports_hold_what_their_answer_keys_say(kind):
    folder = Path(DOCUMENTS) / "chat" / kind
    key = json.loads((folder / "target.json").read_text("utf-8"))
    expected = sorted((m["timestamp"][:16].replace("T", " "), m["author"]) for m in key)
    for path in folder.glob("test_*"):
        [document] = open_sources([str(path)], READ).documents
        found = {(p.place.time, p.place.author) for p in document.passages() if p.place.author}
        assert sorted(found) == expected, path
        text = " ".join(" ".join(p.text.split()) for p in document.passages())
        assert all(m["message"].split(": http")[0] in text for m in key), path


# --- Slack folders of which something cannot be read


@pytest.fixture
def slack_folder(tmp_path):
    for name, content in slack_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def _denied(*_, **__):
    raise PermissionError(13, "Permission denied")


class _NotEntered(list):
    """The entries of a folder that can be listed and not entered."""

    class Entry:
        name = "2023-11-14.json"
        is_file = staticmethod(lambda **_: True)
        stat = _denied

    def __enter__(self):
        return [self.Entry()]

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("scan", [_denied, lambda _: _NotEntered()])
def test_a_channel_that_cannot_be_looked_into_is_counted(slack_folder, monkeypatch, scan):
    plain = os.scandir
    monkeypatch.setattr(
        "os.scandir", lambda path: (scan if Path(path).name == "zoo" else plain)(path)
    )
    sources = open_sources([str(slack_folder)], READ)
    assert sources.skipped == {"unreadable": 1}
    assert lines_of(sources.documents[0]) == SLACK_LINES[2:]


def test_a_day_that_cannot_be_read_is_named(slack_folder, monkeypatch):
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *how: (_denied if "11-15" in path.name else plain)(path, *how)
    )
    [document] = open_sources([str(slack_folder)], READ).documents
    with pytest.raises(DocumentError, match=r"general/2023-11-15\.json in it: Permission denied"):
        lines_of(document)


def test_a_channel_that_goes_away_before_it_is_read_is_named(slack_folder):
    [document] = open_sources([str(slack_folder)], READ).documents
    (slack_folder / "D1/2023-11-14.json").unlink()
    with pytest.raises(DocumentError, match=r"D1/2023-11-14\.json in it: No such file"):
        lines_of(document)
