"""What is made of rows: tables, pictures, comparisons."""

import json

import pytest
from typer.testing import CliRunner

from indexmem_cli.bench import cells, drawing, pictures, suites, tables
from indexmem_cli.bench.compare import compare_rows
from indexmem_cli.bench.rows import middle_run, option_parser, wilson_interval
from indexmem_cli.cli.app import app

MARKED = "".join(f"<!-- table: {name} -->\n<!-- /table: {name} -->\n" for name in tables.TABLES)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_the_tables_of_the_readme_are_those_of_the_rows():
    assert tables.are_current(), "run: make tables"


def test_a_benchmark_without_a_budget_refuses_one(capsys):
    with pytest.raises(SystemExit):
        option_parser("Reads.", "reads", budget=False).parse_args(["--budget", "1k"])
    assert "unrecognized arguments: --budget" in capsys.readouterr().err
    assert option_parser("Reads.", "reads").parse_args(["--budget", "1k"]).budget == 1024


@pytest.fixture
def results(tmp_path):
    """A README with marks, and a few rows."""
    read = {"mode": "question", "length_tokens": 16384, "tokens": 16584, "kv_bytes": 4 * 2**20}
    full = {**read, "mode": "full", "kv_bytes": 300 * 2**20, "above_model_bytes": 2**30}
    read["above_model_bytes"] = 2**24
    older = {**read, "tokens": 1}
    write(tmp_path / "results" / "memory.jsonl", [older, full, read])
    fact = {"mode": "question", "tokens": 17261, "right": 35, "n": 50, "interval_95": [0.562, 0.81]}
    write(tmp_path / "results" / "needles.jsonl", [fact])
    (tmp_path / "README.md").write_text(f"# R\n{MARKED}end\n", "utf-8")
    return tmp_path


def test_tables_take_the_newest_rows(results):
    options = ["--readme", results / "README.md", "--results", results / "results"]
    stale = run("tables", "--check", *options)
    assert stale.exit_code == 2 and "make tables" in stale.stderr
    assert run("tables", *options).exit_code == 0
    lines = (results / "README.md").read_text("utf-8").splitlines()
    assert "| 16,584 | 4.0 MiB | 16.0 MiB | 300 MiB | 1,024 MiB |" in lines
    assert "| `--focus --no-recall` | 17,261 | 35 of 50 | .56 to .81 |" in lines
    assert (lines[0], lines[-1]) == ("# R", "end")
    assert run("tables", "--check", *options).exit_code == 0


def test_the_text_of_passages_is_that_of_their_length(results):
    same = {"commit": "a", "texts": ["t"], "n": 50, "seed": 0}
    passages = same | {"mode": "passages", "tokens": 400, "length_tokens": 16384, "right": 40}
    whole = [
        same | {"mode": "no-recall", "tokens": length + 5, "length_tokens": length}
        for length in (16384, 65536)
    ]
    path = results / "results" / "recall.jsonl"
    write(path, [*whole, passages | {"interval_95": [0.6, 0.9]}])
    assert "| 16,389 | 40 of 50 |" in tables.tabulate_facts(path.parent)


def test_facts_are_those_of_the_newest_weights(results):
    same = {"tokens": 9, "n": 50, "interval_95": [0.6, 0.9]}
    path = results / "results" / "needles.jsonl"
    old = [same | {"mode": mode, "right": 41, "revision": "a"} for mode in ("question", "keydiff")]
    write(path, [*old, same | {"mode": "keydiff", "right": 42, "revision": "b"}])
    table = tables.tabulate_facts(path.parent)
    assert "42 of 50" in table and "41 of 50" not in table


def test_a_readme_without_marks_is_refused(results):
    (results / "README.md").write_text("# R\n", "utf-8")
    refused = run("tables", "--readme", results / "README.md", "--results", results / "results")
    assert refused.exit_code == 2 and "table: memory" in refused.stderr


@pytest.fixture
def measured(results):
    """Rows of facts at two lengths and of one task, in four budgets."""
    same = {"suite": "needle", "task": "needle", "revision": "r", "model": "mini", "n": 2}
    same |= {"commit": "aaaa11", "interval_95": [0.1, 0.9], "depths": [0.05, 0.95]}
    rows = [
        {**same, "length": length, "method": method, "kept": kept, "budget": kept and 512}
        | {"kv_bytes": 2**20, "value": 0.5, "scores": [1, 0]}
        for length in (512, 1024, 2048)
        for method, kept in (("full", None), ("recall", 0.5), ("recall", 0.25))
    ]
    of_many_tasks = {**rows[1], "suite": "ruler", "length": 4096}
    rows += [of_many_tasks | {"task": str(number)} for number in range(9)]
    write(results / "results" / "quality.jsonl", rows)
    with (results / "results" / "memory.jsonl").open() as file:
        old = [json.loads(line) for line in file]
    more = {"read_s": 3.5, "budget_tokens": 1024, "above_model_bytes": 2**24, "answer_s": 0.5}
    more |= {"model": "mini"}
    twin = {**rows[1], "method": "learned+centroids-swapped"}
    loss = {
        **rows[1],
        "group": "main",
        "suite": "loss",
        "task": "books",
        "measure": "nats per token",
    }
    loss |= {"by_position": [5.5, 4.5], "tokens": 900}
    write(results / "results" / "quality.jsonl", [*rows, twin, loss])
    known = {"commit": "aaaa11", "model": "mini", "quant": "none", "task": "speed"}
    known |= {"measure": "reading", "value": 3114.2, "unit": "tokens/s", "revision": "r"}
    write(results / "results" / "model.jsonl", [known])
    write(results / "results" / "memory.jsonl", [{**more, **row} for row in old])
    return results


def test_pictures_are_drawn_of_the_rows_and_known_to_be(measured):
    names = list(pictures.PICTURES)
    options = ["--results", measured / "results", "--out", measured / "out"]
    assert run("pictures", "--check", *options).exit_code == 2
    done = run("pictures", *options)
    assert done.exit_code == 0 and done.stdout.count(".png") == len(names) == 7
    assert run("pictures", "--check", *options).exit_code == 0
    light = (measured / "out" / "needles.png").read_bytes()
    assert run("pictures", "needles", "--dark", *options).exit_code == 0
    assert (measured / "out" / "needles.png").read_bytes() != light

    with (measured / "results" / "quality.jsonl").open("a") as file:
        line = json.loads((measured / "results" / "quality.jsonl").read_text().splitlines()[8])
        file.write(json.dumps(line | {"scores": [1, 1], "value": 1.0}) + "\n")
    stale = run("pictures", "--check", *options)
    assert stale.exit_code == 2 and "rows: needles, card\n" in stale.stderr
    assert "unknown picture" in run("pictures", "none", *options).stderr


def test_the_heat_map_counts_right_answers_by_length_and_depth(measured):
    ways = pictures.take_needles(measured / "results")
    assert set(ways) == {"full", "recall, budget 512"}
    assert ways["full"][:2] == [[512, 0, 1, 1], [512, 9, 0, 1]]


def test_quality_against_bytes_has_a_point_for_each_budget(measured):
    path = measured / "results" / "quality.jsonl"
    fewer = json.loads(path.read_text("utf-8").splitlines()[0]) | {"n": 1, "value": 1.0}
    with path.open("a") as file:
        file.write(json.dumps(fewer) + "\n")
    data = pictures.take_quality(measured / "results")
    assert {name: len(points) for name, points in data["ways"].items()} == {
        "full": 1,
        "recall": 2,
        "learned+centroids-swapped": 1,
    }
    assert data["ways"]["full"][0] == pytest.approx([2**20, 0.5, 0.1, 0.9])


def test_costs_are_by_length_for_every_method(measured):
    data = pictures.take_cost(measured / "results", "answer_s")
    assert data == {
        "ways": {"full": [[16584, 0.5]], "question": [[16584, 0.5]]},
        "of": "budget 1,024, mini",
    }
    assert pictures.take_cost(measured / "results", "unknown") is None


def test_losses_are_by_position(measured):
    data = pictures.take_loss(measured / "results")
    assert data["ways"] == {"recall": [[225.0, 5.5], [675.0, 4.5]]}
    assert data["title"] == "512 tokens of books, 50 % kept, n = 2, mini"
    path = measured / "results" / "quality.jsonl"
    whole = json.loads(path.read_text("utf-8").splitlines()[-1])
    whole |= {"method": "full", "kept": None, "by_position": [5.25, 4.75]}
    with path.open("a") as file:
        file.write(json.dumps(whole) + "\n")
    data = pictures.take_loss(measured / "results")
    assert data["ways"] == {"recall": [[225.0, 0.25], [675.0, -0.25]]}
    assert "above full" in data["above"]


def test_a_card_has_numbers_and_few_methods(measured):
    data = pictures.take_card(measured / "results")
    assert (data["name"], data["facts"]) == ("mini", [["3,114", "tokens/s reading"]])
    assert list(data["parts"]) == ["quality", "needles", "memory", "answers"]
    assert list(data["parts"]["quality"]["ways"]) == ["recall", "full"]


def test_methods_are_drawn_in_the_panels_of_their_groups():
    cells.usable_methods  # noqa: B018 - cells makes all methods known
    for name, method in suites.METHODS.items():
        assert drawing.group_of(name) == method.group or method.group == "added", name


def test_a_method_looks_the_same_everywhere():
    taken = {}
    once, plain = (drawing.style_of(name, taken) for name in ("keydiff-once", "keydiff"))
    assert plain == drawing.style_of("kvpress-keydiff", taken)
    assert once == plain | {"markerfacecolor": "none"}
    twin = drawing.style_of("keydiff+centroids-swapped", taken)
    assert twin["color"] == plain["color"] and twin["linestyle"] != plain["linestyle"]
    looks = {name: drawing.style_of(name, taken) for name in (*drawing.ORDER, "mine", "yours")}
    assert len({(s["color"], s["marker"]) for s in looks.values()}) == len(looks)


def test_the_pictures_of_the_docs_are_those_of_the_rows():
    names = [path.stem for path in (tables.ROOT / "docs" / "pictures").glob("*.png")]
    assert not pictures.stale_pictures(names, tables.RESULTS, tables.ROOT / "docs" / "pictures")


def verdicts(a, b):
    same = {"benchmark": "x", "task": "t"}
    return [line["verdict"] for line in compare_rows([same | a], [same | b])]


SPREAD = {"p20": 1.0, "median": 1.1, "p80": 1.2}


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ({"accuracy": 0.9, "interval_95": [0.85, 0.94]}, {"accuracy": 0.7}, "worse"),
        ({"accuracy": 0.9, "interval_95": [0.85, 0.94]}, {"accuracy": 0.88}, "same"),
        ({"value": 2.0, "measure": "bits per byte", "unit": "bits"}, {"value": 3.0}, "worse"),
        ({"value": 9.0, "measure": "to the first token", "unit": "s"}, {"value": 3.0}, "better"),
        ({"value": 9.0, "measure": "of mine", "benchmark": "quality"}, {"value": 3.0}, "better"),
        ({"score": 3.0, "task": "prose", "benchmark": "indexers"}, {"score": 2.0}, "better"),
        ({"score": 0.9, "task": "single", "benchmark": "indexers"}, {"score": 0.5}, "worse"),
        ({"kv_bytes": 1000}, {"kv_bytes": 900}, "better"),
        ({"kv_bytes": 1000}, {"kv_bytes": 1015}, "same"),
        ({"read_s": SPREAD}, {"read_s": SPREAD | {"median": 1.2}}, "same"),
        ({"read_s": SPREAD}, {"read_s": {"p20": 1.3, "median": 1.4, "p80": 2.0}}, "worse"),
        ({"tokens_per_s": 100}, {"tokens_per_s": 95}, "same"),
        ({"tokens_per_s": 100}, {"tokens_per_s": 80}, "worse"),
    ],
)
def test_a_difference_counts_only_beyond_chance(a, b, verdict):
    low = b.get("accuracy", 0) - 0.05
    assert verdicts(a, {**a, **b} | ({"interval_95": [low, low + 0.1]} if low > 0 else {})) == [
        verdict
    ]


@pytest.mark.parametrize(("unit", "most"), [("share", 0.3), ("bits", -0.3)])
def test_quantising_is_the_worse_the_more_it_costs(unit, most):
    little, much = (
        {"weights": "full - int8", "unit": unit, "value": lost}
        | {"interval_95": [lost - 0.02, lost + 0.02]}
        for lost in (most / 3, most)
    )
    assert (verdicts(little, much), verdicts(much, little)) == (["worse"], ["better"])


def test_the_same_questions_are_compared_one_by_one():
    a = {"value": 0.5, "interval_95": [0.4, 0.6], "scores": [0, 1] * 50}
    b = {"value": 0.62, "interval_95": [0.52, 0.71], "scores": [0, 1] * 38 + [1] * 24}
    assert verdicts(a, b) == ["better"]
    assert verdicts(a, b | {"scores": b["scores"][:-1]}) == ["same"]
    assert verdicts(a, b | {"task": "another"}) == []


def test_rows_of_other_settings_are_not_taken_for_the_same():
    a = {"benchmark": "kernels", "ms": 1.0}
    for name in ("size", "batch", "recall_from", "round_tokens", "protocol", "prose"):
        pair = [a | {name: "one"}, a | {name: "other", "ms": 5.0}]
        assert [line["verdict"] for line in compare_rows(pair, pair)] == ["same", "same"]
        assert compare_rows(pair[:1], pair[1:]) == []


def test_the_middle_of_several_runs_is_shown():
    runs = [{"commit": "a", "run": n, "above_model_bytes": b} for n, b in enumerate((9, 1, 5))]
    assert middle_run([{"commit": "0", "above_model_bytes": 100}, *runs])["run"] == 2
    assert middle_run(runs, commit="b") is None


def test_two_commits_are_compared_and_a_regression_fails(measured):
    path = measured / "results" / "quality.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    slower = [row | {"commit": "bbbb22", "kv_bytes": 2**21} for row in rows]
    write(path, rows + slower)
    options = ["--results", measured / "results"]
    done = run("compare", "aaaa", "bbbb22", *options, "--json")
    lines = json.loads(done.stdout)["rows"]
    assert done.exit_code == 0 and {line["verdict"] for line in lines[:18]} == {"worse"}
    assert all(line["measure"] == "kv_bytes" and line["difference"] == 1 for line in lines[:18])
    assert run("compare", "aaaa", "bbbb", *options, "--check").exit_code == 1
    assert run("compare", path, path, *options, "--check").exit_code == 0
    unknown = run("compare", "aaaa", "cccc", *options)
    assert unknown.exit_code == 2 and "cccc" in unknown.stderr and "bbbb22" in unknown.stderr


def test_the_interval_of_a_difference_is_the_published_one():
    a = {"accuracy": 48 / 80, "interval_95": wilson_interval(48, 80)}
    b = {"accuracy": 56 / 70, "interval_95": wilson_interval(56, 70)}
    [line] = compare_rows([a], [b])  # Newcombe 1998, table II, method 10
    assert line["interval_95"] == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert line["verdict"] == "better"
