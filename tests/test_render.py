"""What reaches the terminal: safe text, true figures, and the right stream for each."""

import io
import json
import unicodedata
from dataclasses import replace

import pytest
from fake_session import ANSWER, COVERAGE, EVENTS, INSPECTION, SOURCES
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli import events, render
from indexmem_cli.render import screen
from indexmem_cli.render.answers import statistics

CHAT_SOURCE = events.Source(
    "chat.txt", None, None, 7, 7, 0.5, "hi", "line", None, "Ann", "2024-03-05 14:02"
)
HOSTILE = {
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "title": "\x1b]0;pwned\x07",
    "reset": "\x1bc",
    "device": "\x1bP$qm\x1b\\",
    "one-byte escape": "\x9b31mred\x9b0m",
    "unterminated": "\x1b]0;never closed",
    "markup": "[/nope][bold]x[link=http://evil]y",
    "overprint": "safe\rEVIL",
    "backspace": "abc\b\b\bxyz",
    "bidi": "\u202egnp.exe\u2066x\u2069\u200e\u200f\u061c",
    "separators": "a\u2028b\u2029c\x85d",
    "tags": "hi\U000e0041\U000e007f",
    "half a character": "caf\udce9.txt",
    "delete": "a\x7fb\x00c",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
any_text = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x9b\r\n\t\x07]8;c\u202e\U000e0041\udc80[/]"))
)


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal and keeps what it is sent."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


def is_dangerous(character: str) -> bool:
    """Say whether a terminal may act on the character instead of showing it."""
    if character in "\n\t":
        return False
    code = ord(character)
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF")
        or unicodedata.bidirectional(character) in ("LRI", "RLI", "FSI", "PDI")
        or character in "\u061c\u200e\u200f"
        or 0xE0000 <= code <= 0xE007F
    )


@given(any_text)
def test_safe_text_holds_nothing_dangerous_and_loses_nothing_else(text: str) -> None:
    safe = render.safe_text(text)
    assert not any(map(is_dangerous, safe))
    kept = [character for character in text if not is_dangerous(character)]
    assert [character for character in safe if character != "\ufffd"] == [
        character for character in kept if character != "\ufffd"
    ]


@given(any_text)
def test_safe_text_is_the_same_at_every_split(text: str) -> None:
    whole = render.safe_text(text)
    for border in range(len(text) + 1):
        assert render.safe_text(text[:border]) + render.safe_text(text[border:]) == whole


def test_every_character_is_judged() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert not any(map(is_dangerous, render.safe_text(everything)))


@pytest.mark.parametrize("holds, said", [(0.2, True), (0.6, False)])
def test_an_answer_that_is_not_in_its_sources_says_so(
    holds: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = replace(ANSWER.sources[0], holds=holds)
    answer = replace(ANSWER, sources=(source,))
    render.Renderer(render.View(sources=True)).consume([answer])
    assert ("do not stand in these places" in capsys.readouterr().err) is said
    assert answer.as_json()["supported"] is not said


def test_an_answer_without_a_word_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    source = replace(ANSWER.sources[0], holds=0.0)
    for text, said in (("", True), (" \n", True), ("Ruth", False)):
        render.Renderer(render.View(sources=True)).consume(
            [replace(ANSWER, text=text, sources=(source,))]
        )
        told = capsys.readouterr().err
        assert ("before the first word" in told) is said
        assert ("do not stand in these places" in told) is not said


def hostile_answer(text: str) -> events.Answer:
    """Return an answer with the text in every place that a document or model can reach."""
    source = events.Source(text, 1, text, 1, 1, 0.5, text)
    lines = replace(source, page=None, page_label=None)
    return replace(
        ANSWER,
        text=text,
        sources=(source, lines),
        coverage=replace(COVERAGE, pages_without_text=(text,), files_skipped={text: 2}),
        memory=replace(ANSWER.memory, policy=text),
        model=replace(ANSWER.model, id=text, revision=text, dtype=text, device=text),
        stop=text,
    )


@hostile
@pytest.mark.parametrize("stream", [True, False])
def test_hostile_text_never_reaches_a_stream(
    text: str, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = hostile_answer(text)
    script = [
        events.Notice(text),
        events.Progress(text, 5, 0.5, 1.0),
        *(events.TokenText(character) for character in text),
        answer,
    ]
    render.Renderer(render.View(stream=stream, verbose=True)).consume(script)
    files = (events.FileReport(text, text, 0, 1, 1),)
    inspection = replace(INSPECTION, files=files, coverage=answer.coverage, model=text)
    render.show_inspection(inspection, verbose=True)
    render.show_error(text, text, text)
    shown = capsys.readouterr()
    assert not any(map(is_dangerous, shown.out + shown.err))
    assert render.safe_text(text) in shown.out


@hostile
def test_hostile_text_on_a_terminal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only escapes on a terminal are those that the same run without the text sends."""
    plain, attacked = (_bar_escapes(name, monkeypatch) for name in ("plain", text))
    assert attacked <= plain
    assert plain


def _bar_escapes(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the kinds of escape sequences of a run: the character after each ESC or C1."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    script = [events.Progress(name, 5, 0.5, 1.0), events.Notice(name), ANSWER]
    render.Renderer(render.View()).consume(script)
    sent = terminal.text
    assert not set(sent) & set("\x07\x9b\u202e\x7f")
    return {sent[index + 1] for index, character in enumerate(sent) if character == "\x1b"}


def test_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_error("[bold]x[/bold] :smile: [/nope]", "[red]y")
    assert capsys.readouterr().err == ("error: [bold]x[/bold] :smile: [/nope]\n  try: [red]y\n")


def test_a_name_cannot_start_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_error("book\nerror: all is lost", None)
    assert capsys.readouterr().err == "error: book error: all is lost\n"


def test_people_get_answer_and_account(capsys: pytest.CaptureFixture[str]) -> None:
    answer = render.Renderer(render.View()).consume(EVENTS)
    shown = capsys.readouterr()
    assert answer is ANSWER
    assert shown.out == "The mill passes to Ruth.\n"
    assert shown.err.splitlines() == [
        "note: the archive is read in bfloat16",
        "Sources  [1] book.pdf p. 299   [2] notes.txt lines 8123–8130",
        "read 100% of 412,380 tokens (618/620 pages; 2 without text)"
        " · KV 1,024 of 412,380 tokens by the question · 4.0 MiB vs 1.6 GiB full",
        "prefill 45.2 s at 9,120 tok/s · first token 0.4 s · 38 tok/s · peak 768.0 MiB"
        " · indexmem-mini, float32 on cpu",
    ]


def test_verbose_quotes_and_details(capsys: pytest.CaptureFixture[str]) -> None:
    memory = replace(ANSWER.memory, gpu_peak_bytes=6 << 30)
    answer = replace(ANSWER, memory=memory, model=replace(ANSWER.model, quant="nf4"))
    render.Renderer(render.View(verbose=True)).consume([answer])
    shown = capsys.readouterr().err
    assert "[1] book.pdf p. 299\n    61%  “the mill passes to Ada's niece”\n" in shown
    assert "peak 768.0 MiB, GPU 6.0 GiB · indexmem-mini, nf4 float32 on cpu\n" in shown
    assert "budget 1,024 tokens by question · window 2,048 tokens · revision a1b2c3" in shown
    assert "no text: book.pdf p. 2\n" in shown


def test_an_answer_cut_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    render.Renderer(render.View()).consume([replace(ANSWER, stop="length")])
    assert "note: the answer was cut at its greatest length" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", [["a", "b\n"], ["a", "b"], ["ab", ""]])
@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_ends_with_one_newline(
    pieces: list[str], stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    script = [*map(events.TokenText, pieces), replace(ANSWER, text="".join(pieces))]
    render.Renderer(render.View(stream=stream)).consume(script)
    assert capsys.readouterr().out == "ab\n"


def test_json_is_one_document_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    answer = hostile_answer("\x1b]0;x\x07\udce9\u202e")
    view = render.View(stats=True, sources=True)
    render.JsonRenderer(view).consume([*EVENTS[:-1], answer])
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert shown.out.isascii()
    assert shown.out.count("\n") == 1
    assert not any(map(is_dangerous, shown.out))
    assert document["schema"] == 1
    assert document["answer"] == answer.text
    assert document["sources"][0]["file"] == answer.text
    assert document["coverage"]["complete"] is False
    assert shown.err == "note: the archive is read in bfloat16\n"


def test_the_bar_is_gone_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    render.Renderer(render.View()).consume(EVENTS)
    reading, _, answer = terminal.text.partition("The mill")
    assert "Reading" in reading
    assert "Reading" not in answer
    assert reading.rfind("\x1b[?25h") > reading.rfind("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_dumb_terminals_get_plain_text(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    render.Renderer(render.View()).consume(EVENTS)
    assert "\x1b" not in terminal.text
    assert "Reading" not in terminal.text
    assert max(map(len, terminal.text.splitlines())) <= 40


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    sent = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        render.show_error("no such file", None)
        sent.append(terminal.text)
    coloured, plain = sent
    assert "31m" in coloured
    assert "31m" not in plain


def test_colour_is_not_forced_on_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    render.Renderer(render.View()).consume(EVENTS)
    assert "\x1b" not in capsys.readouterr().err


def test_a_narrow_encoding_shows_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal("ascii")
    monkeypatch.setattr("sys.stderr", terminal)
    render.Renderer(render.View()).consume(EVENTS)
    assert "lines 8123?8130" in terminal.text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_fits_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = events.Progress("a-rather-long-name-of-a-book.pdf", 100_000, 0.25, 11.0)
    with render.answers.ReadingBar(screen.open_console(stderr=True), wanted=True) as bar:
        bar.show(progress)
    line = next(line for line in reversed(terminal.text.splitlines()) if "tok/s" in line)
    visible = line.rpartition("\r")[2].removeprefix("\x1b[2K")
    assert "33 s" in visible
    assert len(visible.rstrip()) <= width - 2, "a ^C must fit behind it"


@pytest.mark.parametrize(
    ("read", "total", "shown"),
    [(10, 10, "100%"), (0, 0, "100%"), (999_999, 1_000_000, "99.9%"), (1, 3, "33.3%"), (0, 9, "0")],
)
def test_coverage_is_never_rounded_up(read: int, total: int, shown: str) -> None:
    coverage = replace(COVERAGE, tokens_read=read, tokens_total=total)
    assert render.wording.describe_coverage(coverage).startswith(f"read {shown}")


def test_a_folder_is_shown_as_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    inner = ("README.md", "src/a.py", "src/deep/b.py", "z/c.py")
    files = [events.FileReport(f"d/{name}", "code", 0, 10, 1024, name) for name in inner]
    alone = events.FileReport("x/chat.txt", "whatsapp", 0, 5, 10)
    coverage = replace(COVERAGE, messages_read=9, messages_not_selected=2)
    shown = replace(INSPECTION, files=(*files, alone), coverage=coverage)
    render.show_inspection(shown, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    rows = [(len(line) - len(line.lstrip()), *line.split()) for line in lines[1:10]]
    assert rows == [
        (0, "d/", "40", "4.0", "KiB"),
        (2, "README.md", "code", "-", "10", "1.0", "KiB"),
        (2, "src/", "20", "2.0", "KiB"),
        (4, "a.py", "code", "-", "10", "1.0", "KiB"),
        (4, "deep/", "10", "1.0", "KiB"),
        (6, "b.py", "code", "-", "10", "1.0", "KiB"),
        (2, "z/", "10", "1.0", "KiB"),
        (4, "c.py", "code", "-", "10", "1.0", "KiB"),
        (0, "x/chat.txt", "whatsapp", "-", "5", "10", "B"),
    ]
    assert "9 messages (2 more are not selected)" in lines[10]


def test_coverage_of_messages() -> None:
    coverage = events.Coverage(9, 9, 1, {}, 0, 0, (), messages_read=1, messages_not_selected=3)
    expected = "read 100% of 9 tokens (1 message; 3 messages not selected)"
    assert render.wording.describe_coverage(coverage) == expected


def test_coverage_of_a_folder() -> None:
    skipped = {"ignored": 3, "binary": 1}
    coverage = events.Coverage(10, 10, 12, skipped, 0, 0, ())
    assert render.wording.describe_coverage(coverage) == (
        "read 100% of 10 tokens (12 files; skipped 3 ignored, 1 binary)"
    )


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (SOURCES[0], "book.pdf p. 299"),
        (replace(SOURCES[0], page_label=None), "book.pdf p. 311"),
        (SOURCES[2], "notes.txt lines 8123–8130"),
        (replace(SOURCES[2], file="-", line_end=8123), "stdin line 8123"),
        (
            replace(CHAT_SOURCE, file="a.zip", member="#sea"),
            "a.zip · #sea · 2024-03-05 14:02 · Ann",
        ),
        (replace(CHAT_SOURCE, author=None), "chat.txt · 2024-03-05 14:02"),
        (replace(CHAT_SOURCE, time=None, unit="message"), "chat.txt · Ann · message 7"),
        (replace(CHAT_SOURCE, author="A\x1b[2Jn\nn"), "chat.txt · 2024-03-05 14:02 · A[2Jn n"),
        (replace(SOURCES[2], unit="row"), "notes.txt rows 8123–8130"),
        (
            replace(SOURCES[2], unit="paragraph", member="Boats", line_end=8123),
            "notes.txt · Boats · paragraph 8123",
        ),
        (replace(SOURCES[2], symbol="A.f", member="x"), "notes.txt:8123–8130 (A.f)"),
    ],
)
def test_places(source: events.Source, place: str) -> None:
    assert render.wording.describe_place(source) == place


@pytest.mark.parametrize(
    ("progress", "figures"),
    [
        (events.Progress("b", 100_000, 0.25, 11.0), "100,000 tokens · 9,091 tok/s · 33 s left"),
        (events.Progress("b", 1_000, None, 2.0), "1,000 tokens · 500 tok/s"),
        (events.Progress("b", 0, 0.0, 0.0), "0 tokens · 0.0 tok/s"),
        (events.Progress("b", 10, 0.001, 5.0), "10 tokens · 2.0 tok/s · 1 h 23 min left"),
    ],
)
def test_progress(progress: events.Progress, figures: str) -> None:
    assert render.wording.describe_progress(progress, narrow=False) == figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_bytes(value: int, shown: str) -> None:
    assert render.format_bytes(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 s"),
        (0.4213, "0.421 s"),
        (9.999, "10 s"),
        (45.24, "45.2 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_seconds(value: float, shown: str) -> None:
    assert render.format_seconds(value) == shown


def test_inspection_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_inspection(INSPECTION, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["FILE", "KIND", "PAGES", "TOKENS", "SIZE"]
    assert lines[1].split() == ["book.pdf", "pdf", "620", "412,000", "3.3", "MiB"]
    assert lines[2].split() == ["notes.txt", "text", "-", "380", "1.9", "KiB"]
    assert "1.6 GiB full, 4.0 MiB at a budget of 1,024 tokens" in lines[-1]


def test_a_long_inspection_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    long = replace(INSPECTION, files=INSPECTION.files * 50)
    render.show_inspection(long, verbose=False)
    assert "… and 60 more files (-v lists them)" in capsys.readouterr().out
    render.show_inspection(long, verbose=True)
    assert capsys.readouterr().out.count("book.pdf") == 50 + 2  # and in what was left out


def test_what_was_recalled_is_told_round_by_round() -> None:
    block = events.RecalledBlock(7, "book.pdf", 311, "299", 3, 9, 121, 0.84)
    looked = (events.RecallRound("Who?", (block,)), events.RecallRound("Who? \x1b[2Jruth", ()))
    lines = statistics(replace(ANSWER, recall=looked), verbose=True)
    assert "recalled 121 tokens in 1 round" in lines[0]
    assert "recall 1: “Who?” → book.pdf p. 299 (84%)" in lines
    assert any(line.endswith("→ nothing") and "\x1b" not in line for line in lines)
    assert "nothing recalled" in statistics(replace(ANSWER, recall=looked[1:]), verbose=False)[0]
    assert "recall" not in "".join(statistics(replace(ANSWER, recall=None), verbose=True))
