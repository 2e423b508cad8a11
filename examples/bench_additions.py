"""A task and a method of your own for `indexmem bench quality`.

indexmem bench quality --add examples/bench_additions.py --suite mine --methods last-words,recall
"""

from dataclasses import replace

from indexmem_cli.bench.methods import Asked, Reply, answer_in_full
from indexmem_cli.bench.ruler import hide, sentences
from indexmem_cli.bench.suites import Draw, Method, Sample, Task, add_method, add_task


def make_password(draw: Draw) -> Sample:
    """Hide a password of two words in a book."""
    password = " ".join(draw.rng.sample(("copper", "maple", "harbour", "velvet", "comet"), 2))
    question, said = "What is the password?", f"The password is {password}."
    depth = draw.rng.random()
    hay = draw.fill(sentences(draw), question, said)
    return Sample(hide(hay, [(depth, said)]), question, (password,), depth)


def answer_last_words(model, asked: Asked) -> Reply | None:
    """Truncate: let the model see the end of the text alone, as many chat programs do."""
    ids = model.tokenizer.encode(asked.text)[-asked.budget_tokens :]
    return answer_in_full(model, replace(asked, text=model.tokenizer.decode(ids)))


add_task("mine", "password", Task(make_password, max_tokens=16))
add_method("last-words", Method(answer_last_words))
