"""The server, driven by the official OpenAI client over real HTTP."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from serving import bring, serve
from typer.testing import CliRunner

from indexmem_cli import session
from indexmem_cli.cli.app import app
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.events import Answer, Loaded
from indexmem_cli.library import Library
from indexmem_cli.server.protocol import LONG_QUESTION_CHARS, ChatRequest
from indexmem_cli.server.run import listen
from indexmem_cli.server.shelf import Shelf
from indexmem_cli.server.worker import Overloaded, Worker
from indexmem_cli.session import Memory

ROOT = Path(__file__).parents[1]
TEXT = "the quick brown fox jumps over the lazy dog and the mill passes to Ruth\n" * 12
QUESTION = [{"role": "user", "content": "who?"}]
KEPT = MemoryConfig(budget_tokens=96, chunk_tokens=64, policy="keydiff")


@pytest.fixture(scope="module")
def address(tiny_model_dir: Path) -> Iterator[str]:
    with serve(ModelConfig(str(tiny_model_dir), device="cpu"), KEPT, most_bytes=100_000) as here:
        yield here


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def memory_id(address: str) -> str:
    return bring(address, "mill.txt", TEXT.encode()).json()["id"]


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path) -> Memory:
    """The same documents and model without a server."""
    return Memory.read_text(
        TEXT, budget=96, chunk_tokens=64, policy="keydiff", model=str(tiny_model_dir), device="cpu"
    )


def test_the_first_answer_can_be_counted_as_soon_as_it_is_told(tiny_model_dir: Path) -> None:
    shelf = Shelf(KEPT, ModelConfig(str(tiny_model_dir), device="cpu"), most=2)
    told = shelf.events([], TEXT, "who?", AnswerConfig(max_tokens=2))
    next(event for event in told if isinstance(event, Answer))
    assert shelf.question_tokens("who?") > 0
    told.close()
    shelf.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An entry for each time that a model is loaded."""
    loads, load = [], session.load_language_model
    monkeypatch.setattr(session, "load_language_model", lambda *a: loads.append(a) or load(*a))
    return loads


def test_requests_that_fail_load_the_model_once(tiny_model_dir: Path, loads: list[Any]) -> None:
    shelf = Shelf(KEPT, ModelConfig(str(tiny_model_dir), device="cpu"), most=2)
    for name in ("one.txt", "two.txt"):
        brought = shelf.add(name, TEXT.encode())
        with pytest.raises(ConfigError):
            list(shelf.events([brought.id], "", "who " * 400, AnswerConfig(max_tokens=2)))
    shelf.close()
    assert len(loads) == 1


def test_a_request_that_was_left_while_loading_takes_the_model_of_the_others(
    tiny_model_dir: Path, loads: list[Any]
) -> None:
    shelf = Shelf(KEPT, ModelConfig(str(tiny_model_dir), device="cpu"), most=2)
    first, second = (shelf.add(name, TEXT.encode()).id for name in ("one.txt", "two.txt"))
    left = shelf.events([first], "", "who?", AnswerConfig(max_tokens=2))
    next(event for event in left if isinstance(event, Loaded))
    left.close()
    for brought in (second, first):
        list(shelf.events([brought], "", "who?", AnswerConfig(max_tokens=2)))
    shelf.close()
    assert len(loads) == 2


def ask(client: OpenAI, question: str = "who?", **extra: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="any", messages=messages, extra_body=extra)


class TestCompletions:
    def test_with_a_memory_it_is_the_answer_of_the_library(
        self, client: OpenAI, memory_id: str, alone: Memory
    ) -> None:
        answer = ask(client, memories=[memory_id])
        assert answer.choices[0].message.content == alone.ask("who?", max_tokens=6).text
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.object == "chat.completion" and answer.model.endswith("tiny-qwen3")
        details = answer.model_extra["indexmem"]
        assert {source["file"] for source in details["sources"]} == {"mill.txt"}
        for source in details["sources"]:
            text = "".join(TEXT.splitlines(keepends=True)[source["line_start"] - 1 :])
            quoted = text[source["quote_start"] : source["quote_end"]]
            assert " ".join(quoted.split()) == source["quote"].strip("…") != ""
        assert details["coverage"]["complete"] and details["memory"]["kv_tokens"] == 96

    def test_the_program_in_the_readme_runs(self, address: str, memory_id: str) -> None:
        readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
        (code,) = re.findall(r"^```python\n(client = .*?)^```$", readme, re.DOTALL | re.MULTILINE)
        code = code.replace("http://127.0.0.1:8765", address).replace("a1f3c9d20b77", memory_id)
        names = {"openai": openai}
        exec(code.replace("client.chat", "answer = client.chat"), names)
        assert address in code and memory_id in code
        assert names["answer"].usage.prompt_tokens > 200

    def test_the_second_question_reads_nothing_again(self, client: OpenAI, address: str) -> None:
        fresh = bring(address, "fresh.txt", TEXT.encode()).json()["id"]
        first, second = (ask(client, memories=[fresh]).usage for _ in range(2))
        assert first.prompt_tokens_details.cached_tokens == 0
        cached = second.prompt_tokens_details.cached_tokens
        assert 200 < cached < second.prompt_tokens == first.prompt_tokens
        assert 1 <= second.completion_tokens <= 6
        assert second.total_tokens == second.prompt_tokens + second.completion_tokens

    def test_several_memories_are_read_once_and_none_is_saved(
        self, client: OpenAI, address: str
    ) -> None:
        names = ("one.txt", "two.txt")
        ids = [bring(address, name, f"{name} {TEXT}".encode()).json()["id"] for name in names]
        first, second = (ask(client, memories=ids) for _ in range(2))
        details = second.model_extra["indexmem"]
        read = details["coverage"]["tokens_read"]
        assert [memory["source"] for memory in details["memories"]] == list(names)
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        assert second.usage.prompt_tokens_details.cached_tokens == read > 400
        assert Library().ids() == []

    @pytest.mark.parametrize("with_memory", [True, False])
    def test_a_stream_says_the_same(
        self, client: OpenAI, memory_id: str, with_memory: bool
    ) -> None:
        extra = {"memories": [memory_id] if with_memory else []}
        whole = ask(client, **extra)
        chunks = list(
            client.chat.completions.create(
                model="any",
                messages=QUESTION,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
            )
        )
        pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(pieces).rstrip() == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-2].model_extra["indexmem"]["coverage"]["complete"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_without_being_asked_every_chunk_has_a_choice(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(model="any", messages=QUESTION, stream=True)
        assert all(chunk.choices for chunk in stream)

    def test_progress_comes_when_asked_for(self, client: OpenAI, address: str) -> None:
        fresh = bring(address, "progress.txt", TEXT.encode()).json()["id"]
        stream = client.chat.completions.create(
            model="any",
            messages=QUESTION,
            stream=True,
            extra_body={"memories": [fresh], "progress": True},
        )
        extras = [chunk.model_extra or {} for chunk in stream]
        read = [extra["progress"]["tokens_read"] for extra in extras if "progress" in extra]
        assert len(read) > 2 and read == sorted(read)

    def test_a_conversation_is_read_before_its_last_question(self, client: OpenAI) -> None:
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "the mill passes to Ruth"}]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "who?"},
        ]
        answer = client.chat.completions.create(model="any", messages=messages, max_tokens=2)
        assert answer.usage.prompt_tokens > ask(client).usage.prompt_tokens
        assert answer.usage.completion_tokens <= 2

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_memory_that_the_user_saved(
        self, client: OpenAI, address: str, tiny_model_dir: Path, tmp_path: Path, stream: bool
    ) -> None:
        (tmp_path / "mill.txt").write_text(TEXT)
        how = {"chunk_tokens": 64, "policy": "keydiff", "model": str(tiny_model_dir)}
        memory = Memory.read(tmp_path / "mill.txt", budget=96, device="cpu", save=True, **how)
        memory_id = memory.save("mill")
        (tmp_path / "mill.txt").unlink()
        expected = memory.ask("who?", max_tokens=6).text
        rows = httpx2.get(f"{address}/v1/memories").json()["data"]
        assert [(row["id"], row["name"]) for row in rows if row["saved"]] == [(memory_id, "mill")]
        for name in ("mill", memory_id):
            if stream:
                chunks = client.chat.completions.create(
                    model="any", messages=QUESTION, stream=True, extra_body={"memories": [name]}
                )
                pieces = [choice.delta.content or "" for c in chunks for choice in c.choices]
                assert "".join(pieces).rstrip() == expected
                continue
            answer = ask(client, memories=[name])
            assert answer.choices[0].message.content == expected
            assert answer.usage.prompt_tokens_details.cached_tokens > 200
        other = bring(address, "other.txt", b"the ferry is Tom's").json()["id"]
        both = ask(client, memories=["mill", other]).model_extra["indexmem"]["memories"]
        assert [Path(each["source"]).name for each in both] == ["mill.txt", "other.txt"]
        refused = httpx2.delete(f"{address}/v1/memories/mill")
        assert refused.status_code == 400 and Library().ids() == [memory_id]

    def test_a_memory_that_was_read_again_is_the_new_one(
        self, client: OpenAI, tiny_model_dir: Path, tmp_path: Path
    ) -> None:
        how = {"chunk_tokens": 64, "policy": "keydiff", "model": str(tiny_model_dir)}
        counts = []
        for text in (TEXT, "another text, and shorter\n"):
            (tmp_path / "again.txt").write_text(text)
            book = tmp_path / "again.txt"
            Memory.read(book, budget=96, device="cpu", save=True, **how).save("again")
            answer = ask(client, memories=["again"])
            counts.append(answer.model_extra["indexmem"]["coverage"]["tokens_read"])
        assert counts[0] > counts[1]

    def test_a_text_keeps_its_kind(self, address: str, client: OpenAI) -> None:
        rows = bring(address, "rows.csv", b"name,note\nAnn,one\nBob,the mill\n").json()["id"]
        sources = ask(client, memories=[rows]).model_extra["indexmem"]["sources"]
        assert {source["unit"] for source in sources} == {"row"}

    @pytest.mark.parametrize("stream", [True, False])
    def test_what_fails_before_the_first_word_has_a_status(
        self, client: OpenAI, memory_id: str, stream: bool
    ) -> None:
        long = [{"role": "user", "content": "who " * 400}]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="any", messages=long, stream=stream, extra_body={"memories": [memory_id]}
            )

    def test_the_same_document_twice_is_one(self, address: str, memory_id: str) -> None:
        assert bring(address, "../../mill.txt", TEXT.encode()).json()["id"] == memory_id

    def test_models(self, client: OpenAI) -> None:
        assert [model.id.rpartition("/")[2] for model in client.models.list()] == ["tiny-qwen3"]


class TestManyClients:
    def test_sixteen_at_once_in_turn_none_lost(
        self, client: OpenAI, memory_id: str, alone: Memory
    ) -> None:
        questions = [f"who is number {number}?" for number in range(16)]
        expected = [alone.ask(question, max_tokens=6).text for question in questions]
        begin = threading.Barrier(16)

        def run(question: str) -> str:
            begin.wait()
            return ask(client, question, memories=[memory_id]).choices[0].message.content

        def stream(question: str) -> str:
            messages = [{"role": "user", "content": question}]
            begin.wait()
            chunks = client.chat.completions.create(
                model="any", messages=messages, stream=True, extra_body={"memories": [memory_id]}
            )
            pieces = [choice.delta.content or "" for c in chunks for choice in c.choices]
            return "".join(pieces).rstrip()

        with ThreadPoolExecutor(16) as pool:
            ways = [pool.submit((run, stream)[i % 2], text) for i, text in enumerate(questions)]
            assert [way.result() for way in ways] == expected

    def test_a_client_that_leaves_does_not_hold_the_others_up(
        self, client: OpenAI, memory_id: str
    ) -> None:
        for _ in range(3):
            stream = client.chat.completions.create(
                model="any", messages=QUESTION, stream=True, max_tokens=5000
            )
            next(iter(stream))
            stream.close()
        started = time.monotonic()
        assert ask(client, memories=[memory_id]).usage
        assert time.monotonic() - started < 30

    def test_a_reading_that_was_left_is_begun_anew(self, client: OpenAI, address: str) -> None:
        left = bring(address, "left.txt", TEXT.encode() * 20).json()["id"]
        extra = {"memories": [left], "progress": True}
        stream = client.chat.completions.create(
            model="any", messages=QUESTION, stream=True, extra_body=extra
        )
        read = next(chunk for chunk in stream if "progress" in (chunk.model_extra or {}))
        stream.close()
        answer = ask(client, memories=[left])
        whole = answer.model_extra["indexmem"]["coverage"]["tokens_read"]
        assert whole > 40 * read.model_extra["progress"]["tokens_read"]
        assert answer.usage.prompt_tokens > whole

    def test_too_many_are_told_to_come_back(self) -> None:
        async def crowd() -> list[Any]:
            worker, free = Worker(most_waiting=1), threading.Event()

            def slow() -> Iterator[int]:
                yield 0
                free.wait(10)
                yield 1

            async def run() -> list[int]:
                return [event async for event in worker.events(slow)]

            first = asyncio.create_task(run())
            await asyncio.sleep(0.2)
            others = [asyncio.create_task(run()) for _ in range(3)]
            await asyncio.sleep(0.2)
            free.set()
            results = await asyncio.gather(first, *others, return_exceptions=True)
            worker.close()
            return results

        first, second, *refused = asyncio.run(crowd())
        assert (first, second) == ([0, 1], [0, 1])
        assert [type(error) for error in refused] == [Overloaded, Overloaded]

    def test_one_document_brought_by_many_at_once(self, address: str) -> None:
        """The readable one is kept once; the other is refused each time for what it is."""
        for data, status in ((TEXT.encode() + b"once", 201), (b"\0" * 999, 400)):
            begin = threading.Barrier(8)

            def run(_: int, data: bytes = data, begin: threading.Barrier = begin) -> Any:
                begin.wait()
                return bring(address, "same.txt", data)

            for _ in range(5):
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(run, range(8)))
                assert {answer.status_code for answer in answers} == {status}
                assert len({answer.text for answer in answers}) == 1


class TestErrors:
    def test_an_unknown_memory(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as error:
            ask(client, memories=["nothing"])
        assert error.value.code == "memory_not_found"
        assert "no memory 'nothing'" in str(error.value)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"messages": []}, "messages: List should have at least 1 item"),
            ({"messages": [{"role": "user", "content": " "}]}, "must be a question"),
            ({"messages": [{"role": "assistant", "content": "a"}]}, "must be a question"),
            ({"n": 2}, "n=2 is not supported"),
            ({"stop": ["x"]}, "stop="),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools="),
            ({"max_tokens": -1}, "longest answer must be at least 1"),
            ({"max_tokens": 0}, "longest answer must be at least 1"),
            ({"top_p": 0.5}, "top_p=0.5 is not supported"),
            ({"frequency_penalty": 1}, "frequency_penalty=1 is not supported"),
            ({"tool_choice": "required"}, "tool_choice="),
            ({"temperature": -1}, "temperature must be at least 0"),
            ({"temperature": "hot"}, "temperature: Input should be a valid number"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                "messages of type 'image_url' cannot be read",
            ),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    def test_what_cannot_be_done_is_refused(
        self, body: dict, message: str, stream: bool, client: OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(
                **{"model": "any", "messages": QUESTION, "stream": stream, "extra_body": body}
            )
        assert message in str(error.value)
        assert error.value.type == "invalid_request_error"

    @pytest.mark.parametrize(
        ("name", "data", "status", "message"),
        [
            ("a.bin", b"\x00\x01\x02" * 50, 400, "a.bin: not a text"),
            ("empty.txt", b"", 400, "empty.txt: the file holds no text"),
            ("broken.pdf", b"%PDF-1.7 nothing", 400, "broken.pdf"),
            ("big.txt", b"a" * 100_001, 413, "larger than"),
        ],
    )
    def test_documents_that_cannot_be_read(
        self, name: str, data: bytes, status: int, message: str, address: str
    ) -> None:
        response = bring(address, name, data)
        assert response.status_code == status
        assert message in response.json()["error"]["message"]
        assert "indexmem-serve" not in response.text  # nothing of our disk

    def test_unknown_routes_have_the_same_form(self, address: str) -> None:
        response = httpx2.get(f"{address}/v1/nothing")
        assert (response.status_code, response.json()["error"]["message"]) == (404, "Not Found")

    def test_forgetting(self, address: str) -> None:
        gone = bring(address, "gone.txt", b"some text").json()["id"]
        url = f"{address}/v1/memories/{gone}"
        assert [httpx2.delete(url).status_code for _ in range(2)] == [200, 404]
        names = [row["name"] for row in httpx2.get(f"{address}/v1/memories").json()["data"]]
        assert "gone.txt" not in names


class TestGuards:
    def test_other_sites_and_rebound_names_are_refused(self, address: str) -> None:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            response = bring(address, "a.txt", b"text", **headers)
            assert response.status_code == 403, headers
            assert "access-control-allow-origin" not in response.headers
        assert bring(address, "a.txt", b"text", Origin=address).status_code == 201

    def test_the_page_may_run_nothing_but_itself(self, address: str) -> None:
        page = httpx2.get(address)
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://", page.text)

    def test_a_key(self, tiny_model_dir: Path) -> None:
        model = ModelConfig(str(tiny_model_dir), device="cpu")
        with serve(model, KEPT, api_key="s3cret") as address:
            assert httpx2.get(f"{address}/health").status_code == 200
            assert httpx2.get(f"{address}/metrics").status_code == 401
            for key, failure in (("wrong", openai.AuthenticationError), ("s3cret", None)):
                with OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                    if failure is None:
                        assert ask(client).choices
                        continue
                    with pytest.raises(failure) as error:
                        ask(client)
                    assert error.value.code == "invalid_api_key"


def test_health_and_metrics(address: str, client: OpenAI, memory_id: str) -> None:
    def cached() -> float:
        metrics = httpx2.get(f"{address}/metrics").text
        return float(re.search(r'indexmem_tokens_total{kind="cached"} (\S+)', metrics)[1])

    ask(client, memories=[memory_id])
    before = cached()
    ask(client, memories=[memory_id])
    assert cached() > before
    health = httpx2.get(f"{address}/health").json()
    assert (health["status"], health["loaded"], health["waiting"]) == ("ok", True, 0)
    metrics = httpx2.get(f"{address}/metrics").text
    path = 'path="/v1/chat/completions",status="200"'
    assert float(re.search(rf"indexmem_requests_total{{{path}}} (\S+)", metrics)[1]) >= 1


class TestSplit:
    def split(self, *contents: str) -> tuple[str, str]:
        messages = [{"role": "user", "content": content} for content in contents]
        return ChatRequest(messages=messages).split()

    def test_a_short_message_is_the_question(self) -> None:
        assert self.split("one\n\ntwo") == ("", "one\n\ntwo")

    def test_a_long_message_ends_with_its_question(self) -> None:
        text = "word " * LONG_QUESTION_CHARS
        assert self.split("before", f"{text}\n\nwho?") == (f"user: before\n\n{text}", "who?")


class TestProgram:
    def run(self, *args: str) -> Any:
        return CliRunner().invoke(app, ["serve", *args], prog_name="indexmem")

    def test_a_public_address_needs_a_key(self, tmp_path: Path) -> None:
        result = self.run("--host", "0.0.0.0")
        assert result.exit_code == 2 and "add --api-key-file key.txt" in result.stderr
        (tmp_path / "key").write_text("\n")
        empty = self.run("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"))
        assert empty.exit_code == 2 and "is empty" in empty.stderr

    def test_a_model_that_is_not_here(self) -> None:
        assert self.run("-m", "test/none", "--offline").exit_code == 5

    def test_whoever_knows_the_address_can_connect(self) -> None:
        with listen("127.0.0.1", 0) as listener:
            socket.create_connection(listener.getsockname(), timeout=5).close()

    def test_started_asked_and_interrupted(
        self, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "key.txt").write_text("k\n")
        command = [sys.executable, "-m", "indexmem_cli", "serve", "--port", "0", "--device", "cpu"]
        command += ["-m", str(tiny_model_dir), "--api-key-file", str(tmp_path / "key.txt")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stderr is not None
            address = process.stderr.readline().strip()
            assert httpx2.get(f"{address}/health").json()["loaded"] is False
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
            taken = self.run("--port", address.rpartition(":")[2], "-m", str(tiny_model_dir))
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert (process.returncode, rest) == (130, "interrupted\n")
        assert taken.exit_code == 1 and "cannot be listened on" in taken.stderr
        assert not list(tmp_path.glob("indexmem-serve-*"))
