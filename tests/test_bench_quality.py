"""`bench quality`: the tasks are what they say, and a run is measured once and goes on."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from test_train import write_records
from typer.testing import CliRunner

from indexmem_cli import engine
from indexmem_cli.bench import (
    baselines,
    cells,
    going_on,
    methods,
    presses,
    quality,
    ruler,
    streams,
    suites,
    variants,
)
from indexmem_cli.bench.scores import score_rouge
from indexmem_cli.cli.app import app
from indexmem_cli.cli.bench_quality import parse_kept
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.language_model import load_language_model

ADDITIONS = Path(__file__).parent.parent / "examples" / "bench_additions.py"
BOOK = ADDITIONS.with_name("short-history-of-the-world.pdf")
TREES = ("oak", "elm", "birch", "willow", "poplar", "linden", "cedar", "larch", "maple", "hazel")
PROSE = [f"The {tree} of {i} men stood near the {tree} river." for i in range(5) for tree in TREES]
WORDS = "mill gate crane ferry tower orchard harbour meadow lantern chapel stable kettle"
PROSE += [f"They saw a {word}." for word in WORDS.split()]
LENGTHS = (400, 3000)


def count(text):
    return len(text.split())


@pytest.fixture
def make():
    def make_sample(name, room, number=0, suite="ruler"):
        rng = Random(f"{name} {room} {number}")
        return suites.SUITES[suite][name].make(suites.Draw(rng, room, count, PROSE, number))

    return make_sample


SYNTHETIC = [name for name, task in suites.SUITES["ruler"].items() if not task.needs_data]


@pytest.mark.parametrize("room", LENGTHS)
@pytest.mark.parametrize("name", SYNTHETIC)
def test_tasks_fill_the_room_and_hold_their_answers(make, name, room):
    sample = make(name, room)
    used = count(sample.text) + count(sample.question)
    assert used <= room and (used > 0.9 * room or name == "cwe")
    assert len(set(sample.answers)) == len(sample.answers)
    assert all(answer in sample.text for answer in sample.answers)
    assert not any(answer in sample.question for answer in sample.answers)
    assert make(name, room) == sample != make(name, room, number=1)


@pytest.mark.parametrize(
    ("name", "needles", "answers"),
    [("single_1", 1, 1), ("single_3", 1, 1), ("multikey_1", 4, 1), ("multivalue", 4, 4)]
    + [("multiquery", 4, 4)],
)
def test_needles_are_as_many_as_defined(make, name, needles, answers):
    sample = make(f"niah_{name}", 400)
    assert sample.text.count("One of the special magic") == needles
    assert len(sample.answers) == answers
    assert (sample.depth is None) == (needles > 1)


def test_a_haystack_of_needles_has_the_asked_key_once(make):
    for name in ("niah_multikey_2", "niah_multikey_3"):
        sample = make(name, 400)
        [value] = sample.answers
        key = sample.question.split(" for ")[1].split(" mentioned")[0]
        assert sample.text.count(f" for {key} is: {value}.") == sample.text.count(key) == 1
        assert sample.text.count("One of") > 30


def test_a_value_is_handed_on_from_the_first_variable_to_the_last(make):
    sample = make("vt", 400)
    a, b, *_, last = sample.answers
    value = sample.question.split("value ")[1].split()[0]
    assert f"VAR {a} = {value}." in sample.text and f"VAR {b} = VAR {a}." in sample.text
    assert len(sample.answers) == 5 and sample.text.index(f"VAR {b} =") < sample.text.index(
        f"VAR {last} ="
    )


def test_the_words_asked_for_are_the_most_frequent(make):
    words = Counter(make("cwe", 3000).text.split()[1::2])
    assert {words[word] for word in make("cwe", 3000).answers} == {30}
    assert set(words.values()) == {30, 3}
    coded = Counter(make("fwe", 3000).text.split())
    ranked = [word for word, _ in coded.most_common(4)]
    assert ranked == ["...", *make("fwe", 3000).answers]


def test_facts_stand_at_ten_even_depths(make):
    depths = []
    for number in range(10):
        sample = make("needle", 600, number, suite="needle")
        assert sample.answers[0].lower() in sample.text.lower()
        depths.append(sample.depth)
    assert depths == pytest.approx([0.05 + i / 10 for i in range(10)])
    assert ruler.hide(["a", "b", "c", "d"], [(0.0, "x"), (0.5, "y"), (1.0, "z")]) == "x a b y c d z"


def test_keys_never_repeat_even_where_there_are_few():
    drawn = ruler.distinct(lambda rng: rng.choice("abc"), Random(0))
    keys = [next(drawn) for _ in range(12)]
    assert len(set(keys)) == 12 and set("abc") < set(keys)


def test_a_question_has_its_paragraph_among_others_once(tmp_path):
    asked = [
        {"context": f"The {tree} ferry sails at {i}. Nobody fishes there.", "answerable": True}
        | {"question": f"When does the {tree} ferry sail?", "answers": [str(i)]}
        for i, tree in enumerate(TREES)
    ]
    write_records(tmp_path / "qa" / "dev" / "squadshifts.jsonl.xz", asked)
    task, chosen = suites.SUITES["qa"]["squadshifts"], set()
    for number in range(6):
        draw = suites.Draw(Random(number), 60, count, PROSE, number, tmp_path)
        sample = task.make(draw)
        [record] = [r for r in asked if r["question"] == sample.question]
        parts = sample.text.split("\n\n")
        assert parts.count(record["context"]) == 1 and len(set(parts)) == len(parts) > 3
        assert count(sample.text) + count(sample.question) <= 60
        assert task.score(f"At {sample.answers[0]}.", sample.answers) == pytest.approx(2 / 3)
        chosen.add(sample.question)
    assert len(chosen) > 2
    with pytest.raises(ConfigError, match="no questions of squadshifts"):
        task.make(replace(draw, data=None))


def test_the_score_is_the_share_of_references_found():
    assert suites.share_found("It is A-1 and b-2.", ("a-1", "B-2", "c-3", "d-4")) == 0.5


def test_passages_are_ranked_by_the_words_they_share():
    text = " ".join(PROSE) + " The clerk keeps a heron. " + " ".join(PROSE)
    (place, best), *_ = baselines.best_passages(text, "Who keeps the heron?", 200)
    assert "heron" in best and place > 5
    assert baselines.best_passages(text, "?!", 200) == []


@pytest.mark.parametrize("budget", [64, 160])
def test_a_passage_fits_a_small_budget_too(tiny_model_dir, budget):
    model = load_language_model(ModelConfig(str(tiny_model_dir), device="cpu", offline=True))
    text = " ".join(PROSE[:12]) + " The clerk keeps a heron. " + " ".join(PROSE[12:24])
    asked = methods.Asked(text, "Who keeps the heron?", 4, 32, budget)
    empty = methods.answer_passages(model, replace(asked, question="?"))
    assert (
        0 < empty.kv_bytes < methods.answer_passages(model, asked).kv_bytes <= (budget + 40) * 512
    )


@pytest.fixture
def run(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "load_prose", lambda data: (PROSE, "prose"))
    monkeypatch.setattr("indexmem_cli.bench.rows.state_of_code", lambda: ("0123456789ab", False))

    def run_command(*arguments):
        command = ["bench", "quality", "-m", str(tiny_model_dir), "--out", str(tmp_path)]
        command += ["--chunk", "32", "--count", "2", *arguments, "--json"]
        return CliRunner().invoke(app, command)

    run_command.out = tmp_path
    return run_command


def test_a_run_measures_every_method_once_and_goes_on(run, monkeypatch):
    options = ["--suite", "needle", "--lengths", "220,400", "--budgets", "40%,96"]
    options += ["--methods", "full,recency,question,recall,passages"]
    measured, measure = [], quality.measure
    monkeypatch.setattr(quality, "measure", lambda *a: measured.append(a) or measure(*a))

    def stop(*arguments):
        if len(measured) == 5:
            raise KeyboardInterrupt
        return measured.append(arguments) or measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(quality, "measure", stop)
        assert run(*options).exit_code == 130
    assert len((run.out / "quality-partial.jsonl").read_text().splitlines()) == 5
    done = run(*options)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 2 * (1 + 4 * 2) and len(measured) == 2 * len(rows)
    assert not (run.out / "quality-partial.jsonl").exists()
    kept = {(r["length"], r["method"], r["budget"]): r for r in rows}
    assert kept[400, "full", 400]["value"] is None and kept[220, "full", 220]["value"] is not None
    assert kept[400, "recency", 160]["kv_bytes"] == 160 * 512 > kept[400, "recency", 96]["kv_bytes"]
    for row in rows:
        assert row["n"] == 2 and row["benchmark"] == "quality" and row["seed"] == 0
        if row["value"] is not None:
            assert len(row["scores"]) == len(row["depths"]) == len(row["interval_95"]) == 2
            assert row["answer_s"]["median"] > 0
    assert "36/36  needle 400 passages 96" in done.stderr

    again = run(*options)
    assert json.loads(again.stdout)["rows"] == rows and len(measured) == 2 * len(rows)
    assert len((run.out / "quality.jsonl").read_text().splitlines()) == len(rows)

    monkeypatch.setattr("indexmem_cli.bench.rows.state_of_code", lambda: ("0123456789ab", True))
    options[options.index("220,400")] = "220"
    for _ in range(2):  # rows of changed code say nothing of what it is now
        before = len(measured)
        assert run(*options).exit_code == 0 and len(measured) == before + 18


def test_outside_of_a_checkout_a_run_goes_on_in_the_same_version(run, monkeypatch):
    monkeypatch.setattr("indexmem_cli.bench.rows.state_of_code", lambda: (None, None))
    measured, measure = [], quality.measure
    monkeypatch.setattr(quality, "measure", lambda *a: measured.append(a) or measure(*a))
    options = ["--suite", "needle", "--lengths", "220", "--methods", "full,recency"]
    assert run(*options, "--minutes", "0").exit_code == 0 and len(measured) == 1
    for _ in range(2):
        assert run(*options).exit_code == 0 and len(measured) == 4
    monkeypatch.setattr("indexmem_cli.bench.rows.__version__", "another")
    assert run(*options).exit_code == 0 and len(measured) == 8


def test_a_task_and_a_method_are_added_in_one_file(run, monkeypatch):
    monkeypatch.setattr(suites, "SUITES", dict(suites.SUITES))
    monkeypatch.setattr(suites, "METHODS", dict(suites.METHODS))
    monkeypatch.setattr(cells, "METHODS", suites.METHODS)
    monkeypatch.setattr(cells, "SUITES", suites.SUITES)
    options = ["--add", str(ADDITIONS), "--suite", "mine", "--methods", "last-words"]
    done = run(*options, "--lengths", "220", "--budgets", "64")
    assert done.exit_code == 0, done.stderr
    [row] = json.loads(done.stdout)["rows"]
    assert (row["task"], row["method"]) == ("password", "last-words")


@pytest.mark.parametrize(
    ("option", "said"),
    [("--suite=none", "unknown suite: 'none'"), ("--tasks=none", "unknown task: 'none'")]
    + [("--methods=none", "unknown method: none"), ("--budgets=0%", "not a share: '0%'")]
    + [("--add=none.py", "no such file: none.py"), (f"--add={BOOK}", "not a Python file")],
)
def test_unknown_names_are_refused(run, option, said):
    done = run(option)
    assert done.exit_code == 2 and said.replace("'", "") in done.stderr.replace("'", "")


def test_budgets_are_numbers_or_shares():
    assert (parse_kept("1k"), parse_kept("12.5%")) == (1024, 0.125)
    with pytest.raises(ConfigError):
        parse_kept("101%")


def test_the_table_has_a_line_for_each_method_and_budget():
    same = {"suite": "ruler", "length": 1024, "kv_bytes": 2**20}
    recall = {"method": "recall", "kept": 0.5, **same}
    full = {"method": "full", "kept": None, **same}
    cells = [recall | {"task": "vt", "value": 0.5}, recall | {"task": "cwe", "value": 1.0}]
    cells += [full | {"task": "vt", "value": None}, full | {"task": "cwe", "value": 0.25}]
    first, second = quality.tabulate(cells)
    place = {"suite": "ruler", "length": 1024, "method": "recall", "kept": 0.5}
    assert first == place | {
        "kv_mib": 1.0,
        "mean": 75.0,
        "vt": 50.0,
        "cwe": 100.0,
    }
    assert second["mean"] == 25.0 and "vt" not in second


def test_groups_stand_for_their_methods(run):
    assert suites.names_of(["once", "full"])[::10] == ["question-once", "full"]
    assert set(suites.names_of(())) == {n for n, m in suites.METHODS.items() if m.group == "main"}
    assert set(suites.names_of(["all"])) == set(suites.METHODS)
    listed = run("--list")
    assert "suite writing: likeliest, sampled" in listed.stdout and "learned-moved" in listed.stdout


def test_cells_get_samples_in_rounds():
    jobs = list(quality.order_jobs({"a": {0: {}}, "b": {}}, 12))
    assert jobs[:10] == [("a", n) for n in range(1, 10)] + [("b", 0)]
    assert jobs[-4:] == [("a", 10), ("a", 11), ("b", 10), ("b", 11)] and len(jobs) == 23


def test_a_long_run_says_what_it_takes_and_stops_in_time(run, monkeypatch):
    monkeypatch.setattr(quality, "PROBED_FROM", 5)
    options = ["--suite", "needle", "--lengths", "220", "--methods", "full,recency"]
    options += ["--count", "9"]
    said = run(*options, "--estimate")
    assert "16 samples in 2 cells: about" in said.stderr
    assert not (run.out / "quality.jsonl").exists()
    assert "seconds a sample by method: " in said.stderr
    stopped = run(*options, "--minutes", "0")
    rows = json.loads(stopped.stdout)["rows"]
    assert {row["method"]: row["n"] for row in rows} == {"full": 1, "recency": 2}
    monkeypatch.setattr(quality, "PROBED_FROM", 99)
    done = run(*options)
    assert [row["n"] for row in json.loads(done.stdout)["rows"]] == [9, 9]
    assert not (run.out / "quality-partial.jsonl").exists()


def test_a_trial_that_takes_all_the_time_still_says_what_is_left(run):
    options = ["--suite", "needle", "--lengths", "220", "--methods", "recency", "--minutes", "0"]
    said = run(*options, "--estimate")
    assert "1 samples in 1 cells: about" in said.stderr and json.loads(said.stdout)["rows"] == []
    assert len((run.out / "quality-partial.jsonl").read_text().splitlines()) == 1


def test_the_samples_of_other_runs_stay(run):
    options = ["--suite", "needle", "--lengths", "220", "--methods", "recency"]
    assert run(*options, "--minutes", "0", "--seed", "1").exit_code == 0
    assert run(*options).exit_code == 0
    [left] = (run.out / "quality-partial.jsonl").read_text().splitlines()
    assert json.loads(left)["seed"] == 1


@pytest.fixture
def model(tiny_model_dir):
    return load_language_model(ModelConfig(str(tiny_model_dir), device="cpu", offline=True))


USABLE = [name for name in suites.METHODS if not name.startswith(("learned", "kvpress"))]
SHORT = " ".join(PROSE[:3])


def test_all_methods_answer_and_those_that_can_read_on(model, monkeypatch):
    monkeypatch.setattr(variants, "FITTED_STEPS", 1)
    monkeypatch.setattr(variants, "FITTED_TOKENS", 128)
    kept = {}
    for name in USABLE:
        method = suites.METHODS[name]
        reply = method.answer(model, methods.Asked(SHORT, "Who?", 1, 32, 48))
        kept[name] = reply.kv_bytes
        found = going_on.measure_loss(
            model, method, methods.Asked(SHORT, "", 0, 32, 48), suites.Sample(SHORT, "", ())
        )
        assert (found is None) == (method.open is None)
        if found:
            assert len(found["by_position"]) == 8 and 0 < found["score"] < 20
    assert kept["keydiff-once"] == kept["keydiff"] == kept["keydiff-shuffled"] == 48 * 512
    assert kept["keydiff+centroids"] < kept["full"] > kept["keydiff+fast-weights"] > kept["keydiff"]


@pytest.mark.parametrize("name", ["full", "h2o", "keydiff+centroids"])
def test_long_writing_stays_in_the_budget(model, name):
    asked = methods.Asked(SHORT, "", 64, 64, 40)
    sample = suites.Sample(SHORT, "", (" ".join(PROSE),))
    written = going_on.measure_writing(model, suites.METHODS[name], asked, sample)
    assert 0 <= written["score"] <= 1 and written["loops"] in (0, 1) and written["of_text"] < 1
    assert written == going_on.measure_writing(model, suites.METHODS[name], asked, sample) | {
        key: written[key] for key in ("read_s", "answer_s")
    }


@pytest.mark.parametrize("policy", ["keydiff", "h2o"])
def test_a_stream_keeps_and_answers_as_the_command_does(model, policy):
    asked = methods.Asked(" ".join(PROSE), "Who keeps the heron?", 8, 32, 96)
    through_session = methods.answer_streamed(model, asked, policy=policy, recall=False)
    method = suites.METHODS[policy]
    direct = methods.answer_by_stream(model, asked, method.open)
    assert (direct.text, direct.kv_bytes) == (through_session.text, through_session.kv_bytes)


def test_the_loss_of_a_stream_is_that_of_the_plain_model(model):
    ids = model.tokenizer.encode(" ".join(PROSE[:3]))
    asked = methods.Asked(" ".join(PROSE[:3]), "", 0, 7, 0)
    losses = suites.METHODS["full"].open(model, asked).losses(ids)
    model.backbone.detach()
    with torch.no_grad():
        logits = model.backbone.model(torch.tensor([ids])).logits[0, :-1].float()
    truth = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert losses == pytest.approx(truth.tolist(), abs=1e-3)


def test_all_of_a_text_is_seen_before_anything_is_evicted_once(model, monkeypatch):
    asked = methods.Asked(SHORT, "Who?", 1, 32, 48)
    stream = streams.open_stream(model, asked, policy="recency", once=True)
    held, evict = [], engine.evict
    monkeypatch.setattr(
        engine, "evict", lambda state, *rest: held.append(state.held) or evict(state, *rest)
    )
    stream.read(model.tokenizer.encode(SHORT))
    assert held == [len(model.prompt.opening) + len(model.tokenizer.encode(SHORT))]
    assert stream.nbytes == 48 * 512
    longer = replace(asked, text=" ".join(PROSE * 10))
    assert streams.open_stream(model, longer, policy="recency", once=True) is None


def test_twins_shuffle_only_what_is_new_and_swap_values_among_the_evicted():
    old, new = torch.arange(4.0), torch.arange(100.0, 110.0)
    score = torch.cat([old, new]).view(1, 1, -1)
    scorer = SimpleNamespace(score=lambda block: [score, score], needs_queries=True)
    first, second = variants.Shuffled(scorer).score(SimpleNamespace(new_tokens=10))
    assert first is second and torch.equal(first[0, 0, :4], old)
    assert not torch.equal(first, score) and torch.equal(first[0, 0].sort().values, score[0, 0])
    written = []
    memory = SimpleNamespace(write=lambda k, v: written.append((k, v)), nbytes=7)
    swapped = variants.Swapped(memory)
    keys = torch.arange(20.0).view(1, 1, 20, 1)
    swapped.write(keys, keys)
    [(got_keys, got_values)] = written
    assert torch.equal(got_keys, keys) and not torch.equal(got_values, keys)
    assert torch.equal(got_values.sort(dim=2).values, keys) and swapped.nbytes == 7
    memory.clone = lambda: memory
    assert isinstance(swapped.clone(), variants.Swapped)


def test_repeated_ngrams_and_loops_are_seen():
    assert going_on.share_repeated([1, 2, 3, 4, 5, 6]) == 0
    assert going_on.share_repeated([1, 2, 3, 4] * 2) == pytest.approx(1 / 5)
    assert going_on.share_repeated([7] * 13) == pytest.approx(0.9)
    assert going_on.ends_in_loop([5] * 9 + [1, 2, 3] * 40)
    assert not going_on.ends_in_loop(list(range(200)))


def test_rouge_is_of_the_longest_common_subsequence():
    assert score_rouge("the cat sat on a mat", ["cat on mat"]) == pytest.approx(2 * 3 / (4 + 3))
    assert score_rouge("mat on cat", ["cat on mat"]) == pytest.approx(1 / 3)
    assert score_rouge("", ["cat"]) == score_rouge("dog", ["cat"]) == 0
    assert score_rouge("A dog!", ["cat", "the dog"]) == 1


def test_a_long_document_is_cut_around_what_the_question_is_about(tmp_path):
    text = " ".join(f"Word{i}" for i in range(300)) + " The mill burned. " + "More words. " * 200
    at = text.index("The mill")
    record = {"doc_id": "d", "question": "What burned?", "answers": ["the mill"]}
    record |= {"answerable": True, "evidence": [[at, at + 16]]}
    write_records(tmp_path / "qa" / "dev" / "qmsum.jsonl.xz", [record])
    write_records(tmp_path / "qa" / "dev" / "docs.jsonl.xz", [{"doc_id": "d", "text": text}])
    task = suites.SUITES["long-qa"]["qmsum"]
    for number in range(4):
        sample = task.make(suites.Draw(Random(number), 80, count, PROSE, number, tmp_path))
        assert "The mill burned." in sample.text and 50 < count(sample.text) <= 80
    assert task.make(suites.Draw(Random(0), 9999, count, PROSE, 0, tmp_path)).text == text
    beside = {name: of("The mill", sample.answers) for name, of in task.beside.items()}
    assert beside == {"exact": True, "rouge_l": 1.0}


def test_a_fact_is_said_in_a_conversation_at_even_depths():
    task = suites.SUITES["conversation"]["chat"]
    for number in (0, 9):
        sample = task.make(suites.Draw(Random(number), 400, count, PROSE, number))
        lines = sample.text.splitlines()
        [at] = [i for i, line in enumerate(lines) if sample.answers[0].lower() in line.lower()]
        assert at / len(lines) == pytest.approx(sample.depth, abs=0.1)
        assert all(": " in line for line in lines) and 300 < count(sample.text) <= 400


def test_kvpress_reads_under_the_same_budget(model):
    pytest.importorskip("kvpress")
    asked = methods.Asked(" ".join(PROSE), "Who keeps the heron?", 4, 32, 80)
    for name in ("kvpress-keydiff", "kvpress-knorm-once"):
        reply = suites.METHODS[name].answer(model, asked)
        assert reply.kv_bytes == 80 * 512
    own = suites.METHODS["keydiff"].answer(model, asked)  # its patches of attention are put back
    assert own.kv_bytes == 80 * 512
    stream = suites.METHODS["kvpress-keydiff"].open(model, asked)
    ids = model.tokenizer.encode(asked.text)
    assert len(stream.losses(ids)) == len(ids) - 1


def test_kvpress_is_asked_for_in_vain_where_it_is_not(run, monkeypatch):
    monkeypatch.setattr(presses, "is_installed", lambda: False)
    presses.import_kvpress.cache_clear()
    options = ["--suite", "needle", "--lengths", "220"]
    refused = run(*options, "--methods", "kvpress-keydiff")
    assert refused.exit_code == 2 and "kvpress is not installed" in refused.stderr


def test_shares_of_heads_are_moved_and_joined():
    shares = [1.0, 3.0, 0.5, 1.5]
    assert variants.move(shares, 2) == [3.0, 0.5, 1.5, 1.0]
    assert variants.join_heads(shares, 2) == [2.0, 1.0] and variants.join_heads(shares, 4) is shares
    assert variants.level(shares, 2) == ()
