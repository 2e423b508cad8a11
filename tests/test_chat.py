"""`indexmem chat` as a person and a pipe meet it: lines in, answers out, keys, and hostile text."""

import errno
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from indexmem_cli import events
from indexmem_cli.cli.app import app
from indexmem_cli.errors import DocumentError
from indexmem_cli.render.markdown import MarkdownPage, safe_markdown, split_blocks

TESTS = Path(__file__).parent
PROGRAM = [sys.executable, str(TESTS / "fake_session.py"), "chat"]
SGR = re.compile(r"\x1b\[[\d;]*m")
MARKDOWN = "The **mill** passes to *Ruth*.\n\n1. the will\n2. the key\n\n```\ncode\n```\n\nThe end."
INHERITED = ("NO_COLOR", "COLUMNS", "LINES")  # of whoever runs the tests
READY = "\x1b[?2004h"  # the editor wants pasted text to be marked: it takes keys now
HOSTILE = [
    "\x1b]0;title\x07\x1b]52;c;YQ==\x07\x1bc\x9b31mred\x1b[2J",
    "[click](javascript:alert(1)) [x](\x1b]8;;http://evil\x07)",
    "&#27;[31m &#x1b;]0;t&#7; &#x9b;2J &#8238;gnp.exe &#x202e;abc",
    "`\x1b[31m` ```\x1b[31m\n\x1b]0;x\x07\n```",
    "![i\x1b[31m](http://evil/\x1b[31m) <http://evil/\u202e> <b onclick=x>\x1b[31m</b>",
    "| a\x1b[31m | b |\n|---|---|\n| \u202e | \x9b |",
]

LINKS = [
    "[the page](https://evil.example/x)",
    '[the page](https://evil.example/x "a title")',
    "<https://evil.example/x> and https://evil.example/x",
    "see [the page][1]\n\n[1]: https://evil.example/x",
    "![a picture](https://evil.example/x)",
    "[![a picture](https://evil.example/y)](https://evil.example/x)",
    "# [the page](https://evil.example/x)\n\n- [the page](file:///evil.example/x)",
    "| a |\n|---|\n| [b](https://evil.example/x) |",
    "```\nhttps://evil.example/x\n```",
    "\x1b]8;;https://evil.example/x\x1b\\[the page](https://evil.example/x)\x1b]8;;\x1b\\",
]


def is_dangerous(text: str) -> bool:
    """Whether anything but colours is left that a terminal could obey."""
    rest = SGR.sub("", text)
    return any(
        (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u200e"
        for c in rest
    )


def shown(text: str, width: int = 60, **options) -> str:
    console = Console(width=width, force_terminal=True, **options)
    with console.capture() as capture:
        console.print(safe_markdown(text))
    return capture.get()


def on_screen(sent: str) -> list[str]:
    """What a terminal shows after the few sequences that a growing text is shown with."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", sent):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] not in "\r\x1b":
            lines[row] += part
    return [line.rstrip() for line in lines]


class TestMarkdown:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_gives_no_command_to_the_terminal(self, text):
        assert not is_dangerous(shown(text))

    @pytest.mark.parametrize("is_growing", [False, True])
    @pytest.mark.parametrize("text", LINKS)
    def test_links_do_not_open_and_show_where_they_lead(self, text, is_growing):
        console = Console(width=60, force_terminal=True)
        with console.capture() as capture:
            page = MarkdownPage(console)
            if is_growing:
                for letter in text:
                    page._shown_s = 0.0
                    page.write(letter)
                page.close()
            else:
                console.print(safe_markdown(text))
        assert "\x1b]" not in capture.get()
        has_address = not text.startswith(("!", "see"))  # of the others the name is shown
        assert not has_address or "evil.example/x" in SGR.sub("", capture.get())

    def test_html_stands_as_it_is_written(self):
        assert "<script>alert(1)</script> List<String>" in SGR.sub(
            "", shown("<script>alert(1)</script> List<String>")
        )

    def test_no_line_is_wider_than_the_window_and_leaves_room_for_an_echo(self):
        for width in (10, 40, 80):
            lines = SGR.sub("", shown(f"{MARKDOWN}\n\n{'word ' * 40}", width)).splitlines()
            assert max(map(len, lines)) <= width - 3

    @pytest.mark.parametrize("size", [1, 3, 7, 1000])
    def test_what_is_left_on_the_screen_is_the_same_however_it_came(self, size):
        def screen(pieces):
            console = Console(width=60, force_terminal=True, color_system=None)
            with console.capture() as capture:
                page = MarkdownPage(console)
                for piece in pieces:
                    page._shown_s = 0.0
                    page.write(piece)
                page.close()
            return on_screen(capture.get())

        pieces = [MARKDOWN[i : i + size] for i in range(0, len(MARKDOWN), size)]
        assert screen(pieces) == [
            *("The mill passes to Ruth.", "", " 1 the will", " 2 the key", ""),
            *(" code", "", "The end.", ""),
        ]

    def test_a_block_of_code_is_not_cut(self):
        text = "a\n\n```\nx\n\ny\n"
        assert split_blocks(text) == (["a\n\n"], "```\nx\n\ny\n")
        assert split_blocks(text + "```\n\nb") == (["a\n\n", "```\nx\n\ny\n```\n\n"], "b")


class TestPipe:
    @pytest.fixture
    def talk(self, monkeypatch, fake_session):
        from fake_session import FakeConversation

        import indexmem_cli

        talk = FakeConversation(fake_session)
        monkeypatch.setitem(sys.modules, "indexmem_cli.conversation", talk)
        monkeypatch.setattr(indexmem_cli, "conversation", talk, raising=False)
        return talk

    def run(self, said: str | bytes, *args: str):
        return CliRunner().invoke(app, ["chat", *args], input=said)

    def test_every_line_is_a_question_and_the_answers_go_to_stdout(self, talk):
        result = self.run("Who?\n\nAnd why?\r\n")
        assert (result.exit_code, result.stdout) == (0, "The mill passes to Ruth.\n" * 2)
        assert talk.asked == ["Who?", "And why?"]
        assert "Sources" in result.stderr
        assert talk.closed is True

    def test_json_is_one_document_a_line(self, talk):
        result = self.run("Who?\nWhy?\n", "--json")
        answers = [json.loads(line)["answer"] for line in result.stdout.splitlines()]
        assert answers == ["The mill passes to Ruth."] * 2

    def test_quiet_is_the_answers_alone(self, talk):
        result = self.run("Who?\n", "-q")
        assert (result.stdout, result.stderr) == ("The mill passes to Ruth.\n", "")

    def test_bytes_that_are_no_text_are_a_question_too(self, talk):
        assert self.run(b"Who \xff?\n").exit_code == 0
        assert talk.asked == ["Who \ufffd?"]

    def test_commands(self, talk):
        said = (
            "/budget 8k\n/add 'my book.pdf' ~/x\nWho?\n/explain\n/stats\n/sources\n/save\n/help\n"
        )
        result = self.run(said + "/clear\n /quit or stay?\n/quit\nnever asked\n")
        assert result.exit_code == 0, result.stderr
        home = os.environ["HOME"]
        assert talk.asked == ["budget 8192", f"add my book.pdf {home}/x", "Who?", " /quit or stay?"]
        for part in ("kept: 1,024 of 412,380", "attended:", "412,380 tokens", "/budget TOKENS"):
            assert part in result.stderr
        assert result.stdout == "The mill passes to Ruth.\n" * 2

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("/nope", "unknown command: /nope"),
            ("/budget", "not a number of tokens"),
            ("/add", "nothing is named"),
            ("/add 'x", "No closing quotation"),
            ("/stats", "there is no answer yet"),
        ],
    )
    def test_a_command_that_is_wrong_ends_a_pipe_with_2(self, talk, line, message):
        result = self.run(f"{line}\nWho?\n")
        assert result.exit_code == 2
        assert message in result.stderr
        assert talk.asked == []

    def test_a_failure_ends_a_pipe_with_its_code(self, talk, fake_session):
        fake_session.failure = DocumentError("book.pdf: encrypted")
        assert self.run("Who?\n").exit_code == 3
        assert talk.closed is False, "saved although it failed"

    @pytest.mark.parametrize(
        "args", [["-c", "--session", "5e55"], ["-c", "--no-save"], ["--budget", "-4"]]
    )
    def test_options_that_contradict(self, talk, args):
        assert self.run("Who?\n", *args).exit_code == 2

    def test_what_is_given_replaces_what_the_session_had(self, talk, fake_session, monkeypatch):
        monkeypatch.setenv("INDEXMEM_BUDGET", "2k")
        self.run("", "-c")
        self.run("", "--session", "5e55", "--budget", "8k", "-m", "indexmem-mini")
        first, second = (options for _, options in fake_session.calls)
        assert (first["resumed"], first["given"]) == ("", frozenset())
        assert (second["resumed"], second["given"]) == ("5e55", {"model", "budget"})

    def test_standard_input_is_no_source(self, tiny_model_dir):
        result = self.run("text", "-", "-m", str(tiny_model_dir))
        assert result.exit_code == 2
        assert "where the questions come from" in result.stderr


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, tmp_path: Path, columns: int = 80, **environment: str) -> None:
        self._told = tmp_path / "told.json"
        inner, outer = pty.openpty()
        ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            PROGRAM,
            stdin=outer,
            stdout=outer,
            stderr=outer,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if name not in INHERITED},
                "PYTHONPATH": str(TESTS.parent),
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "TERM": "xterm-256color",
                "FAKE_TOLD": str(self._told),
                **environment,
            },
        )
        os.close(outer)
        self._keys, self.text = inner, ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keys)

    def type(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Read until the text has come; return where it ends in what was shown."""
        ends_s = time.monotonic() + 20
        while text not in self.text[after:]:
            assert time.monotonic() < ends_s, f"no {text!r} in {self.text[after:]!r}"
            if select.select([self._keys], [], [], 0.5)[0]:
                try:
                    self.text += os.read(self._keys, 1 << 16).decode("utf-8", "replace")
                except OSError as error:  # how Linux says that the other end is closed
                    assert error.errno == errno.EIO and text in self.text[after:], self.text[after:]
        return self.text.index(text, after) + len(text)

    def end(self) -> tuple[int, dict]:
        """Wait for the process; its exit code, and what the conversation was told."""
        code = self.process.wait(30)
        return code, json.loads(self._told.read_text())


class TestTerminal:
    def test_markdown_editing_history_and_the_end(self, tmp_path):
        with Terminal(tmp_path, FAKE_PIECES=MARKDOWN) as terminal:
            at = terminal.wait_for(READY)
            terminal.type("Whoo\x7f has it?\r")
            at = terminal.wait_for("Sources", at)
            assert "\x1b[1mmill" in terminal.text and "**" not in terminal.text
            at = terminal.wait_for(READY, at)
            terminal.type("\x1b[A\r")  # the arrow up
            at = terminal.wait_for(READY, terminal.wait_for("Sources", at))
            terminal.type("/he")
            at = terminal.wait_for("/help", at)
            terminal.type("\t")
            time.sleep(0.5)  # what completes runs beside what takes keys
            terminal.type("\r")
            at = terminal.wait_for(READY, terminal.wait_for("keep more or fewer", at))
            terminal.type("\x04")
            terminal.wait_for("to go on: indexmem chat --session 5e55a0123456", at)
            code, told = terminal.end()
        assert (code, told) == (0, {"asked": ["Who has it?"] * 2, "saved": True})

    def test_no_answer_makes_the_terminal_open_a_link(self, tmp_path):
        with Terminal(tmp_path, FAKE_PIECES="\n\n".join(LINKS)) as terminal:
            at = terminal.wait_for(READY)
            terminal.type("Who?\r")
            at = terminal.wait_for(READY, terminal.wait_for("Sources", at))
            terminal.type("\x04")
            terminal.wait_for("to go on", at)
            code, told = terminal.end()
        assert (code, told["asked"]) == (0, ["Who?"])
        assert "the page" in terminal.text and "\x1b]" not in terminal.text

    def test_ctrl_c_stops_the_answer_and_twice_leaves(self, tmp_path):
        with Terminal(tmp_path, FAKE_ENDLESS="1", FAKE_DELAY_S="0.01") as terminal:
            at = terminal.wait_for(READY)
            terminal.type("Who?\r")
            at = terminal.wait_for("word word", at)
            terminal.type("\x03")
            at = terminal.wait_for(READY, terminal.wait_for("stopped", at))
            time.sleep(2.1)  # else the next one would be the second
            terminal.type("Again?\r")
            at = terminal.wait_for("word word", at)
            terminal.type("\x03")
            at = terminal.wait_for(READY, terminal.wait_for("stopped", at))
            terminal.type("\x03")
            terminal.wait_for("interrupted", at)
            code, told = terminal.end()
        asked = ["Who? (stopped)", "Again? (stopped)"]
        assert (code, told) == (130, {"asked": asked, "saved": False})

    def test_a_narrow_window_without_colour(self, tmp_path):
        said = f"{'word ' * 30}\x1b]0;evil\x07 **bold**"
        with Terminal(tmp_path, 40, FAKE_PIECES=said, NO_COLOR="1") as terminal:
            at = terminal.wait_for(READY)
            terminal.type("Who?\r")
            end = terminal.wait_for("Sources", at)
            terminal.type("\x04")
        answer = terminal.text[terminal.text.index("word", at) : end]
        assert not re.search(r"\x1b\[[\d;]*3\dm", answer), "a colour"
        assert "\x1b]0" not in answer and "]0;evil" in answer
        lines = on_screen(answer)
        assert "".join(lines).count("word") == 30
        assert max(map(len, lines)) <= 37

    def test_no_terminal_gets_plain_text_and_ctrl_c_leaves_at_once(self, tmp_path):
        told = tmp_path / "told.json"
        with subprocess.Popen(
            PROGRAM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(TESTS.parent),
                "FAKE_ENDLESS": "1",
                "FAKE_DELAY_S": "0.01",
                "FAKE_TOLD": str(told),
            },
        ) as process:
            process.stdin.write(b"Who?\n")
            process.stdin.flush()
            assert process.stdout.read(9) == b"word word"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"\x1b" not in out + err
        assert json.loads(told.read_text()) == {"asked": ["Who? (stopped)"], "saved": False}


def test_markdown_in_a_file_stays_as_it_was_written(monkeypatch, fake_session):
    from fake_session import ANSWER, FakeConversation

    import indexmem_cli

    talk = FakeConversation(fake_session)
    fake_session.script = (events.TokenText("**bold** \x1b[31m<b>"), ANSWER)
    monkeypatch.setitem(sys.modules, "indexmem_cli.conversation", talk)
    monkeypatch.setattr(indexmem_cli, "conversation", talk, raising=False)
    assert CliRunner().invoke(app, ["chat"], input="Who?\n").stdout == "**bold** [31m<b>\n"
