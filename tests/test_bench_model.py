"""`bench model` on a model of random weights: its questions, scores, baselines, rows and table."""

import json

import pytest
from test_train import make_prose, write_records
from typer.testing import CliRunner

from indexmem_cli.bench import baselines, card, model, parts, rows, scores, tasks
from indexmem_cli.bench.reader import ModelReader, Reply
from indexmem_cli.cli.app import app
from indexmem_cli.config import NOT_STATED, ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.render import describe_value, tabulate_measures
from indexmem_cli.train.data import PROSE_SHARDS

PARAGRAPHS = [
    f"The ferry of {town} sails at {hour}. It is painted grey. Nobody fishes there."
    for hour, town in enumerate(("Oslo", "Lisbon", "Turku", "Bergen", "Cork", "Kiel") * 2, start=1)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder in the documented layout, of its held-out parts alone."""
    folder = tmp_path_factory.mktemp("data")
    books = [{"text": make_prose(seed, 400)} for seed in range(2)]
    write_records(folder / "prose" / f"{PROSE_SHARDS[-1]}.jsonl.xz", books)
    logs = [{"text": "[09:01] <nick> this is a line of talk\n" * 60}] * 2
    write_records(folder / "prose" / "chat.jsonl.xz", logs)
    asked = [
        {
            "context": text,
            "question": "When does the ferry sail?",
            "answers": [text.split()[6].rstrip(".")],
            "answerable": True,
        }
        for text in PARAGRAPHS
    ]
    write_records(folder / "qa" / "dev" / "squadshifts.jsonl.xz", asked)
    refused = [record | {"answers": [], "answerable": False} for record in asked]
    write_records(folder / "qa" / "dev" / "clapnq.jsonl.xz", asked + refused)
    return folder


@pytest.fixture(scope="module")
def held_out(data):
    return tasks.load_held_out(data)


def test_scores_follow_the_squad_rules():
    assert scores.score_exact("The north gate.", ["north gate"])
    assert not scores.score_exact("gate", ["north gate"])
    assert scores.score_f1("north wall", ["a gate", "the north gate"]) == pytest.approx(0.5)
    assert scores.score_f1("", ["gate"]) == 0.0
    assert scores.refuses(" Not stated in the document.")


def test_shares_and_means_come_with_their_intervals():
    share = scores.sum_up([True] * 8 + [False] * 2)
    assert share["value"] == 0.8 and share["n"] == 10
    assert share["interval_95"] == pytest.approx([0.490, 0.943], abs=0.001)
    mean = scores.sum_up([1.0, 3.0])
    assert mean["value"] == 2.0
    assert mean["interval_95"] == pytest.approx([2 - 1.96, 2 + 1.96], abs=0.001)
    loss = scores.compare([True, True, False, True], [True, False, False, True])
    assert loss["value"] == 0.25 and loss["interval_95"][0] < 0 < loss["interval_95"][1]


@pytest.mark.parametrize("length", [300, 1000])
def test_needles_stand_once_at_their_depths(held_out, length):
    depths = []
    for question in tasks.make_needles(held_out, length, 20, 0):
        answer = question.answers[0]
        assert answer.lower() in question.text.lower()
        tokens = held_out.corpus.encoding.encode_ordinary(question.text)
        assert 0.7 * length < len(tokens) + tasks.PROMPT_TOKENS <= length + 3
        at = question.text.lower().index(answer.lower()) / len(question.text)
        depths.append(abs(at - (question.depth + 0.5) / 10) < 0.2)
    assert sum(depths) >= 17  # an answer may also stand elsewhere by chance


def test_ten_paragraphs_hold_the_right_one_once(data):
    pool = tasks.shuffle_reading(data, "squadshifts", 0)
    given = pool[:5]
    mixed = tasks.mix_paragraphs(given, pool, 0)
    assert [q.answers for q in mixed] == [q.answers for q in given]
    places = set()
    for one, many in zip(given, mixed, strict=True):
        parts = many.text.split("\n\n")
        assert len(parts) == 10 and parts.count(one.text) == 1
        places.add(parts.index(one.text))
    assert len(places) > 1


def test_half_of_the_refusal_questions_have_no_answer(data, held_out):
    for asked in (tasks.draw_unanswerable(data, 4, 0), tasks.make_unanswerable(held_out, 4, 0)):
        assert [bool(q.answers) for q in asked].count(True) == 4 == len(asked) / 2
    refusal, wrong = Reply(NOT_STATED, False), Reply("at nine", False)
    silent, spoken = tasks.Question("", "", ()), tasks.Question("", "", ("nine",))
    rightly, wrongly = model.REFUSING["rightly refused"], model.REFUSING["wrongly refused"]
    assert (
        rightly(silent, refusal) and not rightly(silent, wrong) and rightly(spoken, wrong) is None
    )
    assert (
        wrongly(spoken, refusal) and not wrongly(spoken, wrong) and wrongly(silent, wrong) is None
    )


def test_baselines_answer_without_a_model():
    text = "Ada built the mill. Then Ruth Hill sold it for 40 pounds. The river froze."
    assert baselines.best_sentence(text, 'Who sold "it" (and for how much)?').startswith(
        "Then Ruth"
    )
    assert baselines.best_sentence(text, "?") == "Ada built the mill."
    assert baselines.first_of_kind(text, "Who sold it?", "name") == "Ruth Hill"
    assert baselines.first_of_kind(text, "Who is Ruth Hill?", "name") == ""
    assert baselines.first_of_kind(text, "For how much?", "number") == "40 pounds"
    assert baselines.first_of_kind(text, "What was built?", "phrase") == "the mill"
    assert baselines.most_frequent_kind(["1874", "Oslo", "in 1900"]) == "number"
    assert baselines.compressed_bits_per_byte([b"again " * 500]) < 1


def test_a_reader_keeps_all_that_fits_and_streams_the_rest(tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    reader = ModelReader(ModelConfig(model=str(tiny_model_dir), device="cpu", dtype="float32"))
    text, question = "the mill passes to Ruth\n" * 6, "Who?"
    short, long = reader.answer(text, question), reader.answer(text * 9, question)
    assert (short.streamed, long.streamed) == (False, True)
    prompt = [*reader.model.prompt.opening, *reader.model.tokenizer.encode(text)]
    prompt += reader.model.prompt.closing(reader.model.tokenizer.encode(question))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    out = plain.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)
    answer = out[0, len(prompt) :].tolist()
    answer = answer[:-1] if answer[-1] in reader.model.backbone.eos_ids else answer
    assert short.text == reader.model.tokenizer.decode(answer).strip()


def test_bits_per_byte_are_those_of_the_plain_model(tiny_model_dir):
    import torch

    reader = ModelReader(ModelConfig(model=str(tiny_model_dir), device="cpu", dtype="float32"))
    text = "the quick brown fox jumps over the lazy dog"
    found = model.bits_per_byte(reader.release(), reader.model.tokenizer, text)
    num_tokens = len(reader.model.tokenizer.encode(text))
    guessing = torch.log2(torch.tensor(300.0)).item() * (num_tokens - 1) / len(text)
    assert found == pytest.approx(guessing, rel=0.1)  # random weights know nothing


def test_the_command_appends_and_prints_every_measure(tiny_model_dir, data, tmp_path):
    options = ["--model", str(tiny_model_dir), "--data", str(data), "--out", str(tmp_path)]
    small = ["--count", "10", "--lengths", "128,300", "--quick", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, ["bench", "model", *options, *small])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    kept = [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()]
    assert rows == kept
    assert str(tmp_path) not in (tmp_path / "model.jsonl").read_text()
    forms = {row["weights"] for row in rows}
    assert {"full", "int8", "full - int8", "xz", "best sentence (BM25)"} <= forms
    names = {row["task"].partition(",")[0] for row in rows}
    assert names == {
        "needle",
        "blind needle",
        "synthetic facts",
        "SQuADShifts",
        "ClapNQ",
        "speed",
        "text",
    }
    for row in rows:
        assert row["n"] >= 1 and row["benchmark"] == "model" and row["seed"] == 0
        assert {"commit", "cpu", "torch", "revision", "unit"} <= row.keys()
        if "interval_95" in row:
            low, high = row["interval_95"]
            assert low <= row["value"] <= high
    beyond = [row for row in rows if row["task"] == "needle, 300 tokens" and "quant" in row]
    assert all(row["streamed"] == row["n"] == 10 for row in beyond)
    assert "FairytaleQA" in result.stderr and "qa/dev/docs.jsonl.xz" in result.stderr


def test_tasks_may_be_measured_by_name(tiny_model_dir, data, tmp_path):
    options = ["--model", str(tiny_model_dir), "--data", str(data), "--out", str(tmp_path)]
    small = ["--count", "10", "--lengths", "128", "--quick", "--threads", "1"]

    def measure(name):
        return CliRunner().invoke(app, ["bench", "model", *options, *small, "--only", name])

    for name, tasks_of in {"Needle": {"needle, 128 tokens"}, "text, ch": {"text, chat"}}.items():
        result = measure(name)
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()]
        assert {row["task"] for row in rows} == tasks_of and "FairytaleQA" not in result.stderr
        (tmp_path / "model.jsonl").unlink()
    result = measure("none")
    assert result.exit_code == 2 and not (tmp_path / "model.jsonl").exists()
    assert "'none'" in result.stderr and "blind needle, 1024 tokens; " in result.stderr


def test_the_table_sets_forms_losses_and_baselines_side_by_side():
    def row(weights, value, **extra):
        return {"weights": weights, "task": "reading", "measure": "F1", "unit": "share", "n": 9} | {
            "value": value,
            "interval_95": [value - 0.1, value + 0.1],
            **extra,
        }

    rows = [row("full", 0.5, quant="none"), row("int8", 0.4, quant="int8-weights")]
    rows += [row("full - int8", 0.1), row("BM25", 0.2)]
    assert tabulate_measures(rows) == [
        [
            "reading: F1",
            "9",
            "50.0 % (40.0 to 60.0)",
            "40.0 % (30.0 to 50.0)",
            "10.0 % (0.0 to 20.0)",
            "BM25 20.0 % (10.0 to 30.0)",
        ]
    ]
    speed = {"value": 3210.4, "unit": "tokens/s", "p20_p80": [3000.0, 3300.0]}
    assert describe_value(speed) == "3,210 (3,000 to 3,300) tokens/s"


def test_a_data_folder_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(app, ["bench", "model", "--data", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_a_card_is_filled_between_its_marks_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# M\n<!-- scores -->\nold\n<!-- /scores -->\nkept \\1\n", "utf-8")
    parts.write_parts(path, {"scores": lambda: "new \\1"})
    text = path.read_text("utf-8")
    assert text == "# M\n<!-- scores -->\nnew \\1\n<!-- /scores -->\nkept \\1\n"
    with pytest.raises(ConfigError, match="examples"):
        parts.write_parts(path, {"scores": lambda: "newer", "examples": lambda: ""})
    assert path.read_text("utf-8") == text


def test_a_card_takes_the_newest_rows_of_its_model():
    def row(model, commit, value):
        keys = {"benchmark": "model", "weights": "int8", "task": "t", "measure": "m"}
        return keys | {"model": model, "commit": commit, "value": value}

    rows = [row("mini", "a", 1), row("mini", "b", 2), row("mini", "b", 3), row("other", "c", 4)]
    assert [found["value"] for found in card.newest_rows(rows, "mini")] == [3]
    with pytest.raises(ConfigError, match="none-such"):
        card.newest_rows(rows, "none-such")


def test_a_card_says_how_long_the_run_was(tmp_path):
    steps = [
        {"step": n, "loss": 1.0, "num_tokens": n * 8192, "elapsed_s": n * 1.5} for n in (1, 40)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in [*steps, {"step": 40, "needle": 1}]))
    assert card.describe_training(log) == "40 steps, 0.3 M tokens, 1 minutes."


def test_a_card_counts_parameters_and_judges_answers(tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    number = sum(weight.numel() for weight in loaded.parameters())
    assert f"{number:,} (float32" in card.describe_model(tiny_model_dir)
    asked = card.Example("who", "note", "", "Who?", "Kublai Khan")
    assert card.judge("kublai khan.", asked) == "right"
    assert card.judge("Khan", asked) == "partly right: Kublai Khan"
    assert card.judge("Rain", asked) == "wrong: Kublai Khan"


def test_every_example_of_the_card_stands_in_its_document():
    if not (rows.EXAMPLES / "chat.txt").exists():
        pytest.skip("the examples are of a checkout")
    texts = {}
    for one in card.EXAMPLES_ASKED:
        text = texts.setdefault(one.source, " ".join(card.load_example(one.source).split()))
        assert one.near in text
        assert one.expected in text + one.added or one.expected == NOT_STATED
