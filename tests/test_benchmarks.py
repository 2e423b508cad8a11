"""Benchmarks of cost and the benchmark scripts run at a tiny size and append well-formed rows."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from test_train import make_prose, write_records
from typer.testing import CliRunner

from indexmem_cli.bench import memory, turns
from indexmem_cli.cli import bench_cost
from indexmem_cli.cli.app import app
from indexmem_cli.errors import ConfigError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
EXAMPLES = BENCHMARKS.parent / "examples"
COMMON = {
    *("schema", "benchmark", "date", "commit", "dirty", "cpu", "cores", "threads", "gpu"),
    *("python", "torch", "transformers", "model", "revision", "dtype", "n", "mode"),
    *("chunk_tokens", "kv_bytes", "tokens_per_s"),
}
KV_BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 4  # of the tiny model: K and V, layers, heads, size, float32

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux"
)


@pytest.fixture
def script(monkeypatch):
    """A function that imports a benchmark script."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    torch.set_num_threads(threads)
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)


def read(path):
    """The rows of a file, which must be well formed and name no place of this machine."""
    text = path.read_text("utf-8")
    assert str(Path.home()) not in text and str(path.parent) not in text
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        assert row.keys() >= COMMON, COMMON - row.keys()
        assert row["n"] >= 1 and row["cpu"] and row["threads"] == 1
    return found


@needs_linux
def test_memory_measures_in_a_process_of_its_own_once(tiny_model_dir, tmp_path, monkeypatch):
    out = tmp_path / "memory.jsonl"
    monkeypatch.setattr(memory, "EXAMPLE_BOOK", EXAMPLES / "chat.txt")
    monkeypatch.setattr(memory.rows, "state_of_code", lambda: ("0123456789ab", False))
    options = f"-m {tiny_model_dir} --budget 96 --chunk 64 --lengths 2k --runs 1"
    command = ["bench", "memory", *options.split(), "--full-lengths", "none", "--out", tmp_path]
    done = CliRunner().invoke(app, list(map(str, command)))
    (row,) = read(out)
    assert row["mode"] == "question" and row["tokens"] == pytest.approx(2048, rel=0.1)
    assert row["kv_bytes"] == 96 * KV_BYTES_PER_TOKEN
    # So small a memory may fit what the heap had left over from the warm-up.
    assert row["process_peak_bytes"] > row["above_model_bytes"] > 0
    assert row["answer_s"] > row["read_s"]  # the next question needs all of it again
    assert "question: the largest peak is 0.0% above the smallest" in done.stdout

    again = []
    monkeypatch.setattr(memory, "_in_new_process", lambda *job: again.append(job) or row)
    CliRunner().invoke(app, list(map(str, command)))
    assert not again, "measured again what has a row"
    monkeypatch.setattr(memory.rows, "state_of_code", lambda: ("0123456789ab", True))
    CliRunner().invoke(app, list(map(str, command)))
    assert len(again) == 1, "took a row of other code for a measurement"


@needs_linux
@pytest.mark.parametrize("mode", ["full", "recall", "passages", "keydiff+centroids"])
def test_every_way_of_reading_has_a_peak_and_times(tiny_model_dir, tmp_path, mode):
    text = tmp_path / "text.txt"
    text.write_text("the mill passes to Ruth\n" * 40, "utf-8")
    model = memory.ModelConfig(str(tiny_model_dir), "none", "float32", "cpu", offline=True)
    settings = {"mode": mode, "chunk_tokens": 64, "budget_tokens": 96}
    row = memory.measure(settings, model, str(text), str(text))
    kept = {"full": row["tokens"], "recall": 96}
    if mode in kept:
        assert row["kv_bytes"] == kept[mode] * KV_BYTES_PER_TOKEN > 0
    assert row["answer_s"] > 0 and (row["read_s"] > 0) == (mode != "passages")
    assert row["process_peak_bytes"] > row["kv_bytes"] > 0


def test_speed_lets_all_readers_take_turns(tiny_model_dir, tmp_path):
    options = f"-m {tiny_model_dir} --budget 96 --chunk 32 --lengths 128,256 --round 64"
    command = ["bench", "speed", *options.split(), "--repeats", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    bare, recency, question, shorter, longer = read(tmp_path / "speed.jsonl")
    assert [row["mode"] for row in (bare, recency, question)] == ["bare", "recency", "question"]
    assert bare["of_bare"]["all"] == [1.0] * 8
    for row in (recency, question):
        assert len(row["tokens_per_s"]["all"]) == len(row["of_bare"]["all"]) == row["n"] == 8
        assert row["kv_bytes"] == 96 * KV_BYTES_PER_TOKEN
    for row, length in ((shorter, 128), (longer, 256)):
        assert row["mode"] == "full" and row["length_tokens"] == length and row["n"] == 2
        assert row["kv_bytes"] == length * KV_BYTES_PER_TOKEN
        assert row["recency_over_full"]["median"] > 0 < row["question_over_full_last"]["median"]
    assert "recency_over_full_last" in done.stdout
    refused = CliRunner().invoke(app, [*command, "--lengths", "100"])
    assert refused.exit_code == 2 and "multiples of a round of 64" in refused.stderr


def test_speed_builds_a_model_of_a_shape(tmp_path):
    checkpoint = turns._random_model("128x2", str(tmp_path))
    assert checkpoint.id == "random-128x2"
    assert checkpoint.config["num_hidden_layers"] == 2
    assert checkpoint.kv_bytes_per_token("float32") == 2 * 2 * 1 * 64 * 4


def test_ratios_are_of_the_same_rounds():
    run = {"bare": [1.0, 2.0], "recency": [2.0, 4.0], "full": [4.0, 20.0]}
    beside = turns._beside_bare("recency", [run], 100)
    assert beside["of_bare"]["all"] == [0.5, 0.5]
    assert beside["tokens_per_s"] == {"median": 37.5, "p20": 30.0, "p80": 45.0, "all": [50, 25]}
    beside = turns._beside_full(200, [run], 100)
    assert beside["tokens_per_s"]["median"] == pytest.approx(200 / 24, rel=1e-4)
    assert beside["last_tokens_per_s"]["median"] == 5
    assert beside["recency_over_full"]["median"] == 4
    assert beside["recency_over_full_last"]["median"] == 5


def test_everything_is_run_and_what_fails_is_named(monkeypatch, tmp_path):
    ran = []
    for name in ("memory", "speed", "run_quality"):
        monkeypatch.setattr(bench_cost, name, lambda *a, _name=name, **k: ran.append((_name, a, k)))

    def fail(**settings):
        raise ConfigError("no model here")

    monkeypatch.setattr("indexmem_cli.cli.bench.model", fail)
    done = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path), "--methods", "once"])
    assert [name for name, *_ in ran] == ["memory", "speed", "run_quality"]
    assert ran[0][2]["methods"] == "once" and ran[2][1][0].suites == ("all",)
    assert done.exit_code == 2 and "not measured: model" in done.stderr
    assert "model failed: no model here" in done.stderr


def test_spread_and_interval(script):
    rows = importlib.import_module("indexmem_cli.bench.rows")
    assert rows.spread([3, 1, 2]) == {"median": 2, "p20": 1.4, "p80": 2.6, "all": [3, 1, 2]}
    assert rows.spread([7]) == {"median": 7, "p20": 7, "p80": 7, "all": [7]}
    low, high = rows.wilson_interval(45, 50)
    assert (round(low, 3), round(high, 3)) == (0.786, 0.957)
    assert rows.wilson_interval(50, 50)[1] == 1.0


def test_tables_are_markdown(script, capsys):
    rows = importlib.import_module("indexmem_cli.bench.rows")
    rows.print_table(
        [{"mode": "full", "tokens": 65536, "rate": rows.spread([1.0, 2.0])}, {"mode": "bare"}],
        ["mode", "tokens", "rate"],
    )
    assert capsys.readouterr().out.splitlines() == [
        "| mode | tokens | rate          |",
        "| ---- | ------ | ------------- |",
        "| full | 65,536 | 1.5 (1.2–1.8) |",
        "| bare |        |               |",
    ]


@pytest.mark.parametrize("wordings, alone", [("development", []), ("training", ["--alone"])])
def test_needles_are_hidden_asked_and_counted(script, tiny_model_dir, tmp_path, wordings, alone):
    needles = script("needles")
    book = "".join(f"It was day {day} of the journey, and nothing happened.\n" for day in range(90))
    facts = needles.make_needles(5, 0, wordings)
    text = needles.hide(book, facts)
    assert [fact.depth for fact in facts] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert len({fact.question for fact in facts}) == 5
    for fact in facts:
        assert text.count(fact.sentence + "\n") == 1
        assert fact.answer.lower() in fact.sentence.lower()
        at = text.index(fact.sentence) / len(text)
        assert abs(at - fact.depth) < 0.1
    (tmp_path / "book.txt").write_text(book)
    needles.main(
        [
            *(str(tmp_path / "book.txt"), "--model", str(tiny_model_dir), "--tokens", "1k"),
            *("--count", "3", "--budget", "96", "--chunk", "32", "--policies", "question,recency"),
            *(
                "--wordings",
                wordings,
                *alone,
                "--workers",
                "1",
                "--out",
                str(tmp_path / "rows.jsonl"),
            ),
        ]
    )
    rows = read(tmp_path / "rows.jsonl")
    assert [row["mode"] for row in rows] == ["question", "recency"]
    for row in rows:
        assert row["n"] == len(row["results"]) == 3
        assert row["right"] == sum(result["right"] for result in row["results"])
        assert row["kv_bytes"] == 96 * KV_BYTES_PER_TOKEN
        low, high = row["interval_95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1


def test_a_text_that_is_too_short_is_refused(script):
    words, cut = Namespace(encode=str.split), script("needles").cut
    assert cut(["one two\n", "three\n", "four"], 3, words) == "one two\nthree\n"
    with pytest.raises(SystemExit, match="1 tokens too short"):
        cut(["one two\n"], 3, words)


@pytest.mark.parametrize(("sort", "wrap"), [("facts", ""), ("chains", ""), ("facts", "--wrap 20")])
def test_recall_is_measured_beside_the_other_modes(
    script, tiny_model_dir, tmp_path, monkeypatch, sort, wrap
):
    recall, out = script("recall"), tmp_path / "rows.jsonl"
    kept: list[str] = []
    hard_wrap = recall.hard_wrap
    monkeypatch.setattr(recall, "hard_wrap", lambda *of: kept.append(hard_wrap(*of)) or kept[0])
    book = "".join(f"It was day {day} of the journey, and nothing happened.\n" for day in range(90))
    (tmp_path / "book.txt").write_text(book)
    options = f"--tokens 1k --count 3 --sort {sort} {wrap} --budget 160 --chunk 32 --max-tokens 4"
    options += f" --modes recall,no-recall,passages --model {tiny_model_dir} --out {out}"
    recall.main([str(tmp_path / "book.txt"), *options.split()])
    rows = read(out)
    assert [row["mode"] for row in rows] == ["recall", "no-recall", "passages"]
    with_recall, without, passages = rows
    assert with_recall["recalled"] > 0 and passages["recalled"] > 0
    assert with_recall["found"] is not None and passages["found"] is not None
    assert (without["recalled"], without["found"]) == (0, None)
    assert all(row["n"] == len(row["results"]) == 3 for row in rows)
    assert all(row["process_peak_bytes"] > 10_000_000 for row in rows)
    assert [row.get("wrap_chars", 0) for row in rows] == [20 if wrap else 0] * 3
    assert [max(map(len, text.split("\n"))) for text in kept] == ([20] if wrap else [])


def test_facts_of_a_wrapped_text_stand_inside_its_paragraphs(script):
    recall = script("recall")
    needle = recall.Needle("The jar is blue.", "", "", 0.5)
    assert recall.put_inside("One.\nThe jar is blue.\nTwo.\n", [needle]) == (
        "One. The jar is blue. Two.\n"
    )


def test_a_conversation_is_held_in_two_processes_and_asked_in_a_third(
    script, tiny_model_dir, tmp_path, monkeypatch
):
    conversation, out = script("conversation"), tmp_path / "rows.jsonl"
    monkeypatch.setenv("INDEXMEM_HOME", str(tmp_path))  # put back afterwards: the script sets it
    (tmp_path / "chat.txt").write_text("<ann> it was a long day, and nothing happened\n" * 99)
    options = f"--turns 4 --tokens 400 --budget 128 --chunk 32 --max-tokens 2 --out {out}"
    conversation.main(
        [str(tmp_path / "chat.txt"), *options.split(), "--model", str(tiny_model_dir)]
    )
    (row,) = read(out)
    assert [turn for turn, _ in row["peaks"]] == [1, 2, 3, 4]
    assert row["n"] == len(row["results"]) == 4
    assert row["tokens_at_end"] > row["tokens"] >= 400
    assert row["kv_bytes"] == 128 * KV_BYTES_PER_TOKEN
    assert 0 <= row["found"] <= 1 and len(row["by_age"]) == 4


def test_second_question_reads_nothing_again(script, tiny_model_dir, tmp_path, monkeypatch):
    second, out = script("second"), tmp_path / "rows.jsonl"
    (tmp_path / "book.txt").write_text("It was a long day, and nothing happened.\n" * 60)
    options = f"--tokens 1k --runs 1 --budget 96 --chunk 32 --model {tiny_model_dir} --out {out}"
    with monkeypatch.context() as patch:
        patch.setattr(second.os, "sched_setaffinity", lambda *_: None)
        patch.delenv("INDEXMEM_HOME")
        second.main([str(tmp_path / "book.txt"), *options.split()])
    [row] = map(json.loads, out.read_text("utf-8").splitlines())
    assert row["tokens_reused"] == row["tokens"] > 900
    assert row["process_s"]["median"] > row["load_s"]["median"] > row["first_token_s"]["median"] > 0
    assert row["first_word_s"]["median"] > row["first_token_s"]["median"]


@pytest.fixture
def reading_data(tmp_path):
    """A data folder with paragraphs, a question on each, and books."""
    records = []
    for number in range(12):
        text = f"In town {number} there is a mill. Its miller is Ann{number}, who bakes too."
        question = f"Who is the miller of town {number}?"
        about = {"answers": [f"Ann{number}"], "answer_start": text.index("Ann"), "answerable": True}
        records.append({"context": text, "question": question, **about})
    folder = tmp_path / "data"
    write_records(folder / "qa" / "dev" / "squadshifts.jsonl.xz", records)
    # As meetings and stories are: the text apart, and where the evidence stands.
    documents = [{"doc_id": f"meeting {n}", "text": r["context"]} for n, r in enumerate(records)]
    write_records(folder / "qa" / "dev" / "docs.jsonl.xz", documents)
    apart = [
        {"doc_id": f"meeting {n}", "question": r["question"], "answers": r["answers"]}
        | {"answer_start": None, "evidence": [[0, len(r["context"])]]}
        for n, r in enumerate(records)
    ]
    write_records(folder / "qa" / "dev" / "qmsum.jsonl.xz", apart)
    books = [{"id": str(n), "text": make_prose(n) * 4} for n in range(14)]
    write_records(folder / "prose" / "gutenberg-03.jsonl.xz", books)
    return folder


@pytest.mark.parametrize(
    "name, length",
    [("squadshifts", "window"), ("squadshifts", "all"), ("chains", "window"), ("qmsum", "all")],
)
def test_evidence_stands_where_the_books_say(script, reading_data, name, length):
    options = Namespace(data=reading_data, count=5, seed=0)
    books = script("book_sets").make_books(name, length, options)
    asked = [(book, one) for book in books for one in book.asked]
    assert len(asked) == 5
    for book, one in asked:
        *_, (start, end) = one.spans
        assert one.answers[0] in book.text[start:end]


def test_books_are_asked_in_every_way(script, tiny_model_dir, reading_data, tmp_path):
    books, out = script("books"), tmp_path / "rows.jsonl"
    modes = ["recall", "no-rerank", "no-recall", "focus", "passage"]
    options = f"--sets squadshifts --lengths all --count 3 --max-tokens 4 --model {tiny_model_dir}"
    options += f" --modes {','.join(modes)} --budget 160 --chunk 32 --out {out}"
    books.main([str(reading_data), *options.split()])
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["mode"] for row in found] == modes
    assert all(row["n"] == len(row["results"]) == 3 for row in found)
    assert found[0]["found"] == found[4]["found"] == 1 and found[0]["recalled"] > 0
    assert "source" in found[1] and "source" not in found[4]
    assert [row["policy"] for row in found] == ["keydiff"] * 3 + ["question", None]
    mean = [sum(one["f1"] for one in row["results"]) / 3 for row in found]
    ahead = [row["recall_ahead"] for row in found[1:]]
    assert ahead == pytest.approx([mean[0] - other for other in mean[1:]], abs=2e-3)


def test_sources_count_if_the_true_line_is_among_them(script):
    books = script("books")
    place = Namespace(page=None, line_start=2, line_end=3)
    asked = script("book_sets").Asked("Who?", ("Ann",), ((10, 13),))
    judged = books.judge({"text": "It is Ann.", "sources": [place]}, asked, "1\n2\n3\n45 Ann", None)
    assert (judged["right"], judged["sources"]) == (True, [False])
    place.line_end = 4
    judged = books.judge({"text": "Bob", "sources": [place]}, asked, "1\n2\n3\n45 Ann", None)
    assert (judged["right"], judged["sources"]) == (False, [True])


def test_real_files_are_asked_and_the_newest_rows_make_the_table(
    script, tiny_model_dir, tmp_path, capsys
):
    formats, out = script("formats"), tmp_path / "rows.jsonl"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the mill passes to Ruth\n")
    (tmp_path / "text" / "b.txt").write_text(" ")
    asked = {"file": "text/a.txt", "question": "Who?", "answers": [""], "place": {"line_start": 1}}
    questions = tmp_path / "questions.json"
    for answers in ([""], ["no such word"]):
        asked["answers"] = answers
        questions.write_text(json.dumps([asked, {"file": "text/b.txt", "refused": "no text"}]))
        options = f"--questions {questions} --model {tiny_model_dir} --budget 96 --chunk 32"
        formats.main([str(tmp_path), *options.split(), "--out", str(out)])
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["answer_right"] for row in found] == [True, True, False, True]
    assert [row.get("source_right") for row in found] == [True, None] * 2
    assert str(tmp_path) not in out.read_text("utf-8")
    said = capsys.readouterr().out
    assert "answers right: 0 of 1\n" in said and "refused as expected: 1 of 1" in said


def test_a_place_is_the_expected_one_if_every_part_of_it_is(script):
    stands_at = script("formats").stands_at
    source = Namespace(page=3, author="Ann")
    assert stands_at(source, {"page": [2, 3], "author": "Ann"})
    assert not stands_at(source, {"page": 3, "author": "Bob"})
    assert not stands_at(source, {"page": [1, 2]})


def test_recall_is_measured_from_text_and_from_keys_and_values(
    script, tiny_model_dir, reading_data, tmp_path
):
    kv_recall, out = script("kv_recall"), tmp_path / "rows.jsonl"
    options = "--sets squadshifts --forms text,int8,int4 --count 2 --max-tokens 2 --budget 160"
    options += f" --chunk 32 --model {tiny_model_dir} --out {out}"
    kv_recall.main([str(reading_data), *options.split()])
    text, int8, int4 = (json.loads(line) for line in out.read_text("utf-8").splitlines())
    assert [row["recall_from"] for row in (text, int8, int4)] == ["text", "int8", "int4"]
    for row in (text, int8, int4):
        assert row["n"] == 2 and all(one["recalled"] > 0 for one in row["results"])
    # 2 layers of 2 heads, 16 numbers each, keys and values: 8 vectors with a scale of 2 bytes.
    assert 8 * 18 < int8["bytes_per_token"] < 8 * 18 + 99
    assert 8 * 10 < int4["bytes_per_token"] < 8 * 10 + 99
