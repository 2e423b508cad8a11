"""The real commands on a fake session: streams, exit codes, JSON, options."""

import json
import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fake_session import ANSWER, COVERAGE, FakeSession
from typer.testing import CliRunner, Result

from indexmem_cli import errors
from indexmem_cli.cli.app import app
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig, ReadConfig, StoreConfig


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, args, input=stdin, prog_name="indexmem")


class TestAsk:
    def test_streams(self, fake_session: FakeSession) -> None:
        result = run("ask", "book.pdf", "Who?")
        assert result.exit_code == 0
        assert result.stdout == "The mill passes to Ruth.\n"
        assert [line.split()[0] for line in result.stderr.splitlines()] == [
            "note:",
            "Sources",
            "read",
            "prefill",
        ]

    def test_defaults(self, fake_session: FakeSession) -> None:
        run("ask", "book.pdf", "notes.txt", "Who?")
        [(args, options)] = fake_session.calls
        assert args == (["book.pdf", "notes.txt"], "Who?")
        assert options == {
            "read": ReadConfig(),
            "memory": MemoryConfig(),
            "model": ModelConfig(),
            "answer": AnswerConfig(),
            "store": StoreConfig(),
            "stdin": None,
        }

    def test_every_option_reaches_its_field(
        self, fake_session: FakeSession, tmp_path: Path
    ) -> None:
        password = tmp_path / "password"
        password.write_text("s3 cret\nsecond line\n")
        options = (
            "-b 1.5k --chunk 512 --policy knorm --no-recall --span 5 --answer-from 1k"
            " -m org/model --quant nf4"
            " --dtype bfloat16 --device cuda:1 --offline --fresh --pages 1,10-40 --encoding cp1252"
            f" --password-file {password} --include *.py --include *.md --exclude tests/"
            " --author Ann --from Bob --since 2024-03-05 --until 2024-03-06 --date-order dmy"
            " --max-tokens 9 --temperature 0.7 --seed 3"
        )
        result = run("ask", *options.split(), "book.pdf", "Who?")
        assert result.exit_code == 0, result.stderr
        [(_, given)] = fake_session.calls
        assert given == {
            "read": ReadConfig(
                pages=((1, 1), (10, 40)),
                encoding="cp1252",
                password="s3 cret",
                include=("*.py", "*.md"),
                exclude=("tests/",),
                authors=("Ann", "Bob"),
                since=datetime(2024, 3, 5),
                until=datetime(2024, 3, 6, 23, 59, 59, 999_999),
                date_order="dmy",
            ),
            "memory": MemoryConfig(
                budget_tokens=1536,
                chunk_tokens=512,
                answer_from_tokens=1024,
                policy="knorm",
                recall=False,
                span_tokens=5,
                seed=3,
            ),
            "model": ModelConfig(
                model="org/model", quant="nf4", dtype="bfloat16", device="cuda:1", offline=True
            ),
            "answer": AnswerConfig(max_tokens=9, temperature=0.7, seed=3),
            "store": StoreConfig(fresh=True),
            "stdin": None,
        }
        assert os.environ["HF_HUB_OFFLINE"] == "1"

    def test_the_other_options_reach_theirs(self, fake_session: FakeSession) -> None:
        options = "--recall-from int8 --kv-dtype int8 --no-save --allow-network --extract "
        options += "--latent centroids --no-rerank"
        run("ask", *options.split(), "book.pdf", "Who?")
        [(_, given)] = fake_session.calls
        assert given["memory"].recall_from == given["model"].kv_dtype == "int8"
        assert given["memory"].latent == "centroids" and not given["memory"].rerank
        assert given["store"] == StoreConfig(save=False)
        assert given["read"].allow_network and given["answer"].extract

    def test_offline_forbids_the_network(self, fake_session: FakeSession) -> None:
        run("ask", "--allow-network", "--offline", "book.pdf", "Who?")
        assert not fake_session.calls[0][1]["read"].allow_network

    @pytest.mark.parametrize(
        ("options", "policy", "recall"),
        [
            ("", "auto", True),
            ("--focus", "question", True),
            ("--no-recall", "question", False),
            ("--no-recall --policy recency", "recency", False),
            ("--focus --policy question", "question", True),
        ],
    )
    def test_how_a_text_is_read_and_asked(
        self, fake_session: FakeSession, options: str, policy: str, recall: bool
    ) -> None:
        run("ask", *options.split(), "book.pdf", "Who?")
        memory = fake_session.calls[0][1]["memory"]
        assert (memory.policy, memory.recall) == (policy, recall)

    def test_options_after_the_question(self, fake_session: FakeSession) -> None:
        run("ask", "book.pdf", "Who?", "--budget", "4k", "-q")
        assert fake_session.calls[0][1]["memory"].budget_tokens == 4096

    def test_environment(self, fake_session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INDEXMEM_MODEL", "from/environment")
        monkeypatch.setenv("INDEXMEM_BUDGET", "2k")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        run("ask", "book.pdf", "Who?")
        run("ask", "book.pdf", "Who?", "-m", "from/flag", "-b", "1k")
        (_, first), (_, second) = fake_session.calls
        assert (first["model"].model, first["memory"].budget_tokens) == ("from/environment", 2048)
        assert (second["model"].model, second["memory"].budget_tokens) == ("from/flag", 1024)
        assert first["model"].offline

    def test_json(self, fake_session: FakeSession) -> None:
        result = run("ask", "book.pdf", "Who?", "--json")
        document = json.loads(result.stdout)
        assert document == json.loads(json.dumps(ANSWER.as_json()))
        assert document["answer"] == "The mill passes to Ruth."
        assert result.stderr == "note: the archive is read in bfloat16\n"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["-q"], []),
            (["-q", "--stats"], ["read", "prefill"]),
            (["-q", "--sources"], ["Sources"]),
            (["--no-stats"], ["note:", "Sources"]),
            (["--no-sources"], ["note:", "read", "prefill"]),
        ],
    )
    def test_what_is_shown(
        self, options: list[str], words: list[str], fake_session: FakeSession
    ) -> None:
        result = run("ask", "book.pdf", "Who?", *options)
        assert result.stdout == "The mill passes to Ruth.\n"
        assert [line.split()[0] for line in result.stderr.splitlines()] == words

    def test_no_stream_prints_the_same_or_nothing(self, fake_session: FakeSession) -> None:
        assert run("ask", "b", "Who?", "--no-stream").stdout == "The mill passes to Ruth.\n"
        fake_session.failure = errors.OutOfMemory("no room")
        assert run("ask", "b", "Who?", "--no-stream").stdout == ""

    def test_verbose_quotes(self, fake_session: FakeSession) -> None:
        assert "“her name was Ruth”" in run("ask", "b", "Who?", "-v").stderr

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_strict(self, options: list[str], fake_session: FakeSession) -> None:
        result = run("ask", "book.pdf", "Who?", "--strict", *options)
        assert result.exit_code == 8
        assert "The mill passes to Ruth." in result.stdout
        assert "error: not everything was read" in result.stderr

    def test_strict_is_content_with_everything(self, fake_session: FakeSession) -> None:
        whole = replace(ANSWER, coverage=replace(COVERAGE, pages_without_text=()))
        fake_session.script = (whole,)
        assert run("ask", "book.pdf", "Who?", "--strict").exit_code == 0


class TestSources:
    def test_a_pipe_is_read_if_no_source_is_given(self, fake_session: FakeSession) -> None:
        assert run("ask", "Who?", stdin="text").exit_code == 0
        [(args, options)] = fake_session.calls
        assert args == (["-"], "Who?")
        assert options["stdin"] is not None

    def test_a_dash_is_the_pipe(self, fake_session: FakeSession) -> None:
        run("ask", "book.pdf", "-", "Who?", stdin="text")
        [(args, options)] = fake_session.calls
        assert args == (["book.pdf", "-"], "Who?")
        assert options["stdin"] is not None

    def test_the_pipe_is_left_alone_if_a_source_is_given(self, fake_session: FakeSession) -> None:
        run("ask", "book.pdf", "Who?", stdin="text")
        assert fake_session.calls[0][1]["stdin"] is None

    def test_a_question_may_start_with_a_dash(self, fake_session: FakeSession) -> None:
        run("ask", "book.pdf", "--", "-5 or 5?")
        assert fake_session.calls[0][0] == (["book.pdf"], "-5 or 5?")

    @pytest.mark.parametrize("command", [["ask", "Who?"], ["inspect"]])
    def test_a_terminal_is_not_read(
        self, command: list[str], fake_session: FakeSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda self: True)
        result = run(*command)
        assert result.exit_code == 2
        assert "no source is given and nothing is piped in" in result.stderr
        assert f"  try: indexmem {command[0]} book.pdf" in result.stderr
        assert not fake_session.calls

    @pytest.mark.parametrize("sources", [[], ["Who?"], ["a.pdf", "b.pdf", "c.pdf"]])
    def test_a_missing_question(self, sources: list[str], fake_session: FakeSession) -> None:
        Path("book.pdf").write_text("text")
        result = run("ask", *sources, "book.pdf", stdin="text")
        assert result.exit_code == 2
        assert "error: a question is missing: the last argument, book.pdf, is a" in result.stderr
        assert '"your question"' in result.stderr
        assert not fake_session.calls

    def test_a_question_before_its_source(self, fake_session: FakeSession) -> None:
        Path("my book.pdf").write_text("text")
        result = run("ask", "Who inherits it?", "my book.pdf")
        assert (result.exit_code, fake_session.calls) == (2, [])
        assert "try: indexmem ask 'my book.pdf' \"Who inherits it?\"" in result.stderr

    @pytest.mark.parametrize("question", ["", " \n"])
    def test_an_empty_question(self, question: str, fake_session: FakeSession) -> None:
        result = run("ask", "book.pdf", question)
        assert (result.exit_code, fake_session.calls) == (2, [])
        assert "the question is empty" in result.stderr

    @pytest.mark.parametrize("question", ["long " * 2000, "nul\0byte"])
    def test_a_question_that_cannot_be_a_path(
        self, question: str, fake_session: FakeSession
    ) -> None:
        assert run("ask", "book.pdf", question).exit_code == 0


class TestFailures:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--budget", "4kb"], "error: not a number of tokens: '4kb'"),
            (["--budget", "-4"], "error: not a number of tokens: '-4'"),
            (["--chunk", "0"], "error: not a number of tokens: '0'"),
            (["--span", "4"], "error: span must be an odd number"),
            (["--policy", "magic"], "error: unknown policy: 'magic'"),
            (["--policy", "knorm", "--focus"], "error: --focus and --policy knorm contradict"),
            (["--quant", "int3"], "error: unknown quantisation"),
            (["--pages", "9-1"], "error: not a selection of pages"),
            (["--encoding", "klingon"], "error: unknown encoding: 'klingon'"),
            (["--encoding", "hex"], "error: unknown encoding: 'hex'"),
            (["--password-file", "none"], "error: the password file none cannot be read: No such"),
            (["--max-tokens", "0"], "error: longest answer must be at least 1"),
            (["--max-tokens", "many"], "error: Invalid value for '--max-tokens'"),
            (["--temperature", "-1"], "error: temperature must be"),
            (["--nonsense"], "error: No such option: --nonsense"),
        ],
    )
    def test_usage(self, options: list[str], message: str, fake_session: FakeSession) -> None:
        result = run("ask", "book.pdf", "Who?", *options)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert message in result.stderr
        assert not fake_session.calls

    @pytest.mark.parametrize("args", [["ask"], ["nonsense"], ["--nonsense"], ["train", "base"]])
    def test_usage_hints_at_the_help(self, args: list[str]) -> None:
        result = run(*args)
        assert (result.exit_code, result.stdout) == (2, "")
        error, hint = result.stderr.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("  try: indexmem") and hint.endswith("--help")

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (errors.IndexMemError("gone wrong", "do this"), 1),
            (errors.ConfigError("gone wrong", "do this"), 2),
            (errors.DocumentError("gone wrong", "do this"), 3),
            (errors.BackboneError("gone wrong", "do this"), 5),
            (errors.OutOfMemory("gone wrong", "do this"), 6),
        ],
    )
    @pytest.mark.parametrize("command", [["ask", "b", "Who?"], ["inspect", "b"]])
    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_known(
        self,
        command: list[str],
        options: list[str],
        failure: errors.IndexMemError,
        code: int,
        fake_session: FakeSession,
    ) -> None:
        fake_session.script = (ANSWER,)
        fake_session.failure = failure
        result = run(*command, *options)
        assert result.exit_code == code
        assert result.stdout == ""
        assert result.stderr == "error: gone wrong\n  try: do this\n"

    def test_unknown(self, fake_session: FakeSession) -> None:
        fake_session.failure = ZeroDivisionError("by\nzero")
        result = run("inspect", "book.pdf")
        assert result.exit_code == 1
        assert result.stderr == (
            "error: ZeroDivisionError: by zero\n  try: set INDEXMEM_DEBUG=1 to see the traceback\n"
        )

    def test_debug_shows_the_traceback(
        self, fake_session: FakeSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INDEXMEM_DEBUG", "1")
        fake_session.failure = errors.DocumentError("gone \x1b]0;wrong")
        result = run("inspect", "book.pdf")
        assert result.exit_code == 3
        assert result.stderr.startswith("Traceback (most recent call last):\n")
        assert "\x1b" not in result.stderr

    def test_a_failure_leaves_the_partial_answer_on_its_own_line(
        self, fake_session: FakeSession
    ) -> None:
        fake_session.failure = errors.OutOfMemory("no room")
        result = run("ask", "book.pdf", "Who?", "-q")
        assert (result.exit_code, result.stdout) == (6, "The mill passes to Ruth.\n")

    def test_interrupt(self, fake_session: FakeSession) -> None:
        fake_session.failure = KeyboardInterrupt()
        result = run("ask", "book.pdf", "Who?", "-q")
        assert (result.exit_code, result.stderr) == (130, "interrupted\n")


class TestInspect:
    def test_people(self, fake_session: FakeSession) -> None:
        result = run("inspect", "book.pdf", "-b", "1k", "--exclude", "tests/")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "book.pdf" in result.stdout
        [(args, options)] = fake_session.calls
        assert args == (["book.pdf"],)
        assert options == {
            "read": ReadConfig(exclude=("tests/",)),
            "memory": MemoryConfig(budget_tokens=1024),
            "model": ModelConfig(),
            "stdin": None,
        }

    def test_json(self, fake_session: FakeSession) -> None:
        document = json.loads(run("inspect", "book.pdf", "--json").stdout)
        assert document["schema"] == 1
        assert document["files"][0]["tokens"] == 412_000

    def test_a_pipe(self, fake_session: FakeSession) -> None:
        assert run("inspect", stdin="text").exit_code == 0
        [(args, options)] = fake_session.calls
        assert args == (["-"],)
        assert options["stdin"] is not None


class TestTrain:
    def test_options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        trainer = type(sys)("indexmem_cli.train.pretrain")
        trainer.train_base = lambda *args, **named: calls.append((args, named))  # type: ignore
        monkeypatch.setitem(sys.modules, "indexmem_cli.train.pretrain", trainer)
        options = f"--recipe gpu --data {tmp_path} --out new --resume --seed 3 --max-steps 5"
        result = run("train", "base", *options.split())
        assert result.exit_code == 0, result.stderr
        [(args, named)] = calls
        assert args == ("gpu", tmp_path, Path("new"), True, 3)
        assert {name: value for name, value in named.items() if value} == {"max_steps": 5}

    def test_options_of_the_gate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[Any, ...]] = []
        trainer = type(sys)("indexmem_cli.train.gate")
        trainer.train_gate = lambda *args: calls.append(args)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "indexmem_cli.train.gate", trainer)
        result = run("train", "gate", *f"--data {tmp_path} --out gate.json --seed 3".split())
        assert result.exit_code == 0, result.stderr
        assert calls == [(tmp_path, Path("gate.json"), 3)]

    @pytest.mark.parametrize("command", ["base", "gate"])
    def test_a_missing_data_folder(self, command: str) -> None:
        result = run("train", command, "--data", "none", "--out", "new")
        assert result.exit_code == 2
        assert "error: the data folder does not exist: none" in result.stderr


def test_no_command_is_a_usage_error() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: indexmem")
