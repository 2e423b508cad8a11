"""Real questions for `bench quality`: the paragraph of each among others of its development set.

As RULER's QA tasks: paragraphs of other questions fill the length, in any order. Scored by word F1,
as in SQuAD.
"""

from functools import lru_cache, partial
from pathlib import Path

from indexmem_cli.bench.scores import score_f1
from indexmem_cli.bench.suites import Draw, Sample, Task, add_task
from indexmem_cli.bench.tasks import Question, shuffle_reading
from indexmem_cli.errors import ConfigError

SETS = ("squadshifts", "fairytaleqa")


def make_reading(draw: Draw, name: str) -> Sample:
    """Set the paragraph of a question among others.

    Raises:
        ConfigError: there is no data folder, or it lacks the set.
    """
    if draw.data is None or not (draw.data / "qa" / "dev" / f"{name}.jsonl.xz").exists():
        raise ConfigError(f"no questions of {name}", "name a folder with qa/dev: --data DIR")
    questions = _read(draw.data, name)
    paragraphs = list(dict.fromkeys(question.text for question in questions))
    for asked in draw.rng.sample(questions, len(questions)):
        others = draw.rng.sample(paragraphs, len(paragraphs))
        if draw.fill([asked.text], asked.question):
            break
    around = (f"{text}\n\n" for text in others if text != asked.text)
    parts = draw.fill(around, asked.question, asked.text)
    parts.insert(draw.rng.randint(0, len(parts)), f"{asked.text}\n\n")
    return Sample("".join(parts).rstrip(), asked.question, asked.answers)


@lru_cache(maxsize=2)
def _read(data: Path, name: str) -> list[Question]:
    return shuffle_reading(data, name, 0)


for _name in SETS:
    add_task("qa", _name, Task(partial(make_reading, name=_name), max_tokens=32, score=score_f1))
