"""Training code of the embedded model, on tiny data of its own."""

import copy
import json
import lzma
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import NOT_STATED
from indexmem_cli.errors import ConfigError
from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train import (
    chains,
    data,
    episodes,
    frames,
    kinds,
    kinds_people,
    labels,
    natural,
    pretrain,
    probe,
    rewording,
    tasks,
    templates,
    tokenizer,
    vocabulary,
)
from indexmem_cli.train.attention import attend_in_tiles
from indexmem_cli.train.gate import CHAINS, HELD_OUT_CHAINS
from indexmem_cli.train.muon import Muon, orthogonalise
from indexmem_cli.train.recipes import COPYING, READING, RECIPES, Recipe, Stage

SHIPPED = find_checkpoint("indexmem-mini", offline=True).path
SECRET = "zebra quagga okapi"
TINY = Recipe(
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate=48,
    window_tokens=192,
    stages=(
        Stage(2, 96, COPYING, batch_tokens=384),
        Stage(4, 192, READING, batch_tokens=384),
    ),
    warmup_steps=2,
    threads=0,
)


def write_records(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)


def make_prose(seed: int, num_sentences: int = 60) -> str:
    rng = Random(seed)
    words = [
        "the",
        "old",
        "house",
        "stood",
        "near",
        "a",
        "river",
        "and",
        "many",
        "people",
        "came",
        "to",
        "see",
        "it",
        "in",
        "spring",
    ]
    sentences = (" ".join(rng.choices(words, k=10)).capitalize() for _ in range(num_sentences))
    return ". ".join(sentences) + ".\n"


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the documented schema, with `SECRET` only where nothing may train."""
    folder = tmp_path / "data"
    books = [{"id": f"gutenberg:{i}", "text": make_prose(i)} for i in range(20)]
    held = [{"id": book, "text": SECRET * 9} for book in sorted(data.HELD_OUT_BOOKS)]
    last = [{"id": f"gutenberg:9{i}", "text": SECRET * 9} for i in range(data.NUM_VALIDATION_BOOKS)]
    write_records(folder / "prose" / "gutenberg-00.jsonl.xz", [*books[:10], *held])
    write_records(folder / "prose" / "gutenberg-03.jsonl.xz", [*books[10:], *last])
    write_records(folder / "prose" / "modern.jsonl.xz", [{"text": make_prose(30)}])
    logs = [{"text": f"[09:0{i}] <nick{i}> this is a line of talk\n" * 20} for i in range(8)]
    write_records(folder / "prose" / "chat.jsonl.xz", [*logs, {"text": SECRET * 9}])
    context = "Ada Kerr was born in Lisbon. She moved to Oslo in 1874."
    record = {
        "context": context,
        "question": "Where was Ada Kerr born?",
        "answers": ["Lisbon"],
        "answer_start": context.index("Lisbon"),
        "answerable": True,
    }
    write_records(folder / "qa" / "train" / "squadshifts.jsonl.xz", [record])
    write_records(folder / "qa" / "dev" / "squadshifts.jsonl.xz", [record | {"context": SECRET}])
    code = ["def double(x):\n    return x + x\n\n\ndef half(number):\n    return number / 2\n"] * 3
    monkeypatch.setattr(data, "read_code", lambda: (code, [SECRET]))
    monkeypatch.setattr(episodes, "read_code", lambda: (code, [SECRET]))
    return folder


@pytest.fixture
def maker(data_folder: Path, tmp_path: Path) -> episodes.EpisodeMaker:
    data.make_tokenizer(data_folder, tmp_path / "tokenizer", 192)
    encoding = data.prepare(data_folder, tmp_path / "cache", tmp_path / "tokenizer")
    return episodes.EpisodeMaker(data.Corpus(tmp_path / "cache", encoding), data_folder)


def random_text(seed: int, num_chars: int) -> str:
    """Draw from plain text, white space, and all of Unicode but surrogates."""
    rng = Random(seed)
    plain = "The year 1874, it's 3.5 km — don't!\t \n\r\n \n  x = y[0]  #\n\n\n" + SECRET
    ranges = ((0x20, 0x250), (0x250, 0xD800), (0xE000, 0x110000))
    return "".join(
        rng.choice(plain) if rng.random() < 0.7 else chr(rng.randrange(*rng.choice(ranges)))
        for _ in range(num_chars)
    )


def stands_in(answer: str, text: str) -> bool:
    """Say whether `answer`, or every part of a list, is in `text` word by word."""
    answer, text = (" ".join(each.lower().split()) for each in (answer, text))
    return answer in text or all(part in text for part in answer.split(", "))


def test_shipped_tokenizer_gives_one_sequence_of_ids_through_both_readers() -> None:
    from transformers import AutoTokenizer

    encoding = load_tiktoken(SHIPPED)
    hugging_face = AutoTokenizer.from_pretrained(SHIPPED)
    text = random_text(0, 30_000) + Path(natural.__file__).read_text(encoding="utf-8")
    ids = encoding.encode_ordinary(text)
    assert hugging_face(text, add_special_tokens=False, verbose=False)["input_ids"] == ids
    assert hugging_face.decode(ids) == text
    assert encoding.n_vocab == len(hugging_face) == tokenizer.VOCAB_SIZE
    for i, token in enumerate(tokenizer.SPECIAL_TOKENS):
        wanted = tokenizer.VOCAB_SIZE - len(tokenizer.SPECIAL_TOKENS) + i
        assert hugging_face.convert_tokens_to_ids(token) == wanted
        assert encoding.encode_single_token(token) == wanted


def test_encoding_line_by_line_equals_encoding_the_whole() -> None:
    encoding = load_tiktoken(SHIPPED)
    text = random_text(1, 30_000)
    lines = re.findall(r"[^\r\n]*[\r\n]+|[^\r\n]+", text)
    assert "".join(lines) == text
    by_line = [token for line in lines for token in encoding.encode_ordinary(line)]
    assert by_line == encoding.encode_ordinary(text)


def test_chat_template_writes_the_prompt_and_drops_system_messages() -> None:
    from transformers import AutoTokenizer

    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    prompt = AutoTokenizer.from_pretrained(SHIPPED).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|user|>one<|end|><|assistant|>two<|end|><|user|>three<|end|><|assistant|>"


@pytest.mark.parametrize(
    "make", [tasks.make_fact, tasks.make_development_fact, tasks.make_blind_fact]
)
def test_facts_are_seeded_and_state_their_answers(make) -> None:
    first, again = ([make(Random(seed)) for seed in range(300)] for _ in range(2))
    assert first == again
    for fact in first:
        told = " ".join(fact.sentences)
        assert fact.turns
        for turn in fact.turns:
            assert stands_in(turn.answer, told)
            assert "{" not in turn.question + told


def test_training_and_development_wordings_are_disjoint() -> None:
    def wordings(table: tuple[kinds_people.Kind, ...]) -> set[str]:
        statements = {text for kind in table for text in kind[0]}
        return statements | {text for kind in table for q in kind[1].values() for text in q}

    def shapes(texts: set[str]) -> set[str]:
        return {re.sub(r"{\w+}", "{}", text.lower()) for text in texts}

    training = wordings(kinds.TRAINING_KINDS)
    training |= set(templates.TRAINING_ATTRIBUTE_STATEMENTS)
    training |= set(templates.TRAINING_ATTRIBUTE_QUESTIONS)
    training |= set(templates.TRAINING_DEED_STATEMENTS)
    training |= set(templates.TRAINING_TENSE_STATEMENTS)
    for questions in (templates.TRAINING_DEED_QUESTIONS, templates.TRAINING_TENSE_QUESTIONS):
        training |= {text for wordings in questions.values() for text in wordings}
    assert len(training) > 100
    kept = templates.DEVELOPMENT_KINDS, templates.BLIND_KINDS
    development, blind = (shapes(wordings(table)) for table in kept)
    assert not shapes(training) & (development | blind) and not development & blind


@pytest.mark.parametrize(
    ("table", "some"),
    [
        (templates.DEVELOPMENT_KINDS, {"treaty", "inherit", "visitors"}),
        (templates.BLIND_KINDS, {"tomatoes", "erupt", "thesis"}),
    ],
)
def test_facts_of_any_verb_use_no_word_kept_for_development(
    table: tuple[kinds_people.Kind, ...], some: set[str]
) -> None:
    def content_words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]{4,}", re.sub(r"{\w+}", "", text.lower())))

    kept = {
        word
        for statements, questions in table
        for text in (*statements, *(w for wordings in questions.values() for w in wordings))
        for word in content_words(text)
    } - {"which", "what", "when", "where", "from", "that", "during", "place", "year", "every"}
    verbs = (*frames.ALL_VERBS, *frames.MOVES)
    used = {form for verb in verbs for form in (verb, *frames.inflect(verb))}
    assert some <= kept
    used |= {*frames.ALL_NOUNS, *vocabulary.THINGS, *labels.USES}
    synonyms = " ".join((*rewording.GROUPS, *rewording.MOVING)).split()
    used |= {form for verb in synonyms for form in (verb, *frames.inflect(verb))}
    for longer in (rewording.REPORTS, rewording.REQUESTS, rewording.NAMING):
        used |= {word for text in longer for word in content_words(text)}
    of_chains = (*chains.DESCRIPTIONS.values(), *chains.TELLINGS.values())
    told = " ".join(text for forms in of_chains for form in forms for text in form[:2])
    used |= content_words(re.sub(r"\[\w+\]", "", told)) - {"does", "whom", "with", "many"}
    assert not kept & (used | {*labels.LABELS, *labels.QUALITIES})


def test_two_steps_are_joined_by_a_name_that_the_question_leaves_out() -> None:
    def slots(text: str) -> set[str]:
        return set(re.findall(r"{(\w+)}", text))

    drawn = [chains.draw_form(Random(seed)) for seed in range(3000)]
    for first, second, question, answer in drawn:
        [joined] = slots(first) & slots(second)
        assert joined in chains.DESCRIPTIONS and joined not in slots(question)
        assert slots(question) & slots(first), "it is described by the first step"
        assert answer in slots(second) - slots(question) - {joined}
        assert "[" not in first + second + question
    assert len({question for _, _, question, _ in drawn}) > 1000
    kept = [text for form in CHAINS[-HELD_OUT_CHAINS:] for text in form]
    joining = chains.KEPT_APART - {"give", "given", "keeper"}
    assert joining <= set(re.findall("[a-z]+", " ".join(kept)))
    told = " ".join(text for form in drawn for text in form[:3])
    used = re.findall("[a-z]+", re.sub(r"{\w+}", "", told))
    assert not chains.KEPT_APART & set(used)
    for seed in range(200):
        fact = tasks.make_chain_fact(Random(seed))
        assert fact.turns[0].answer.lower() in fact.sentences[1].lower()


def test_a_text_may_hold_several_chains_of_one_form() -> None:
    drawn = [tasks.make_similar_facts(Random(seed), 4) for seed in range(60)]
    joined = [facts for facts in drawn if all(len(fact.sentences) == 2 for fact in facts)]
    assert len(joined) > 4
    for facts in joined:
        openings = {fact.turns[0].question.split()[0] for fact in facts}
        assert len(openings) == 1 and len({fact.turns[0].question for fact in facts}) == 4


def test_a_text_may_hold_several_facts_of_one_verb_or_label() -> None:
    def alike(make: Callable[[Random, Random], tasks.Fact], seed: int) -> list[tasks.Fact]:
        return [make(Random(seed + i), Random(seed)) for i in range(4)]

    for seed in range(60):
        labels_of = alike(tasks.make_label_fact, seed)
        told = [set(re.findall(r"\w+", fact.sentences[0].lower())) for fact in labels_of]
        assert set.intersection(*told) & {*labels.LABELS, *vocabulary.THINGS}
        frames_of = alike(tasks.make_frame_fact, seed)
        told = [set(re.findall(r"\w+", fact.sentences[0].lower())) for fact in frames_of]
        verbs = {form for verb in (*frames.ALL_VERBS, *frames.MOVES) for form in inflected(verb)}
        assert set.intersection(*told) & verbs
        assert len({fact.sentences for fact in (*labels_of, *frames_of)}) == 8
    shared = [
        set.intersection(*(set(fact.sentences[0].split()) for fact in facts))
        for facts in (tasks.make_similar_facts(Random(seed), 3) for seed in range(200))
    ]
    assert 150 < sum(map(bool, shared)) < 200, "most have words in common, some none"


def inflected(verb: str) -> tuple[str, ...]:
    return (verb, *frames.inflect(verb))


def test_a_rival_shares_half_a_name_and_keeps_its_own_answers() -> None:
    num_rivals = 0
    for seed in range(300):
        rng = Random(seed)
        fact = tasks.make_fact(rng)
        rival = tasks.make_rival_fact(rng, fact)
        if rival is None:
            continue
        num_rivals += 1
        ours, theirs = tasks.name_in(fact), tasks.name_in(rival)
        assert ours != theirs and len({*ours.split(), *theirs.split()}) == 3
        told = " ".join(rival.sentences)
        assert all(stands_in(turn.answer, told) for turn in rival.turns)
    assert num_rivals > 60


def test_facts_stand_beside_rivals(maker: episodes.EpisodeMaker, monkeypatch) -> None:
    fact = tasks.Fact(("Ada Kerr keeps the key.",), (tasks.Turn("Who keeps it?", "Ada Kerr"),))
    rival = tasks.Fact(("Ada Hale has the map.",), (tasks.Turn("Who has it?", "Ada Hale"),))
    monkeypatch.setattr(episodes, "make_fact", lambda rng: fact)
    monkeypatch.setattr(episodes, "make_similar_facts", lambda rng, count: [fact])
    monkeypatch.setattr(episodes, "make_rival_fact", lambda rng, fact: rival)
    texts = [maker.corpus.encoding.decode(maker.make_facts(Random(i), 192).ids) for i in range(60)]
    stated, beside = (
        sum(text.count(each.sentences[0]) for text in texts) for each in (fact, rival)
    )
    assert stated / 6 < beside < stated / 2
    assert any("Who has it?<|end|><|assistant|> Ada Hale<|end|>" in text for text in texts)


def test_synonyms_and_longer_questions_ask_the_same() -> None:
    assert "purchase" in rewording.SYNONYMS["buy"] and "buy" in rewording.SYNONYMS["purchase"]
    assert rewording.draw_synonym(Random(0), "buy", share=0.0) == "buy"
    sentences = [frames.make_frame(Random(seed)) for seed in range(300)]
    other = 0
    for sentence, pairs in sentences:
        assert all(answer.lower() in sentence.lower() for _, answer in pairs)
        told = set(re.findall("[a-z]+", sentence.lower()))
        other += any(
            word in rewording.SYNONYMS and not {word, *frames.inflect(word)} & told
            for question, _ in pairs
            for word in re.findall("[a-z]+", question.lower())
        )
    assert other > 10
    for seed in range(50):
        asked = rewording.reword(Random(seed), "Who bought the lamp?")
        assert asked.rstrip("?.").endswith("bought the lamp") and asked != "Who bought the lamp?"
        assert rewording.reword(Random(seed), "Who did Ann see?").endswith("ho did Ann see?")
    assert rewording.report(Random(0), "The lamp is red.").endswith("the lamp is red.")
    assert rewording.report(Random(0), "Ann left.").endswith("Ann left.")


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("cure", ("cured", "cured", "cures")),
        ("carry", ("carried", "carried", "carries")),
        ("obey", ("obeyed", "obeyed", "obeys")),
        ("push", ("pushed", "pushed", "pushes")),
        ("take", ("took", "taken", "takes")),
    ],
)
def test_verbs_are_inflected(verb: str, forms: tuple[str, str, str]) -> None:
    assert frames.inflect(verb) == forms


def test_a_deeper_model_begins_by_computing_what_the_shallow_one_did() -> None:
    shallow = pretrain.build_model(TINY, 300, 0)
    deep = pretrain.build_model(replace(TINY, layers=TINY.layers + 1), 300, 1)
    deep.load_state_dict(pretrain.deepen(shallow.state_dict(), (0,)))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(deep(ids).logits, shallow(ids).logits)
        deep.model.layers[1].self_attn.o_proj.weight.normal_()
        assert not torch.equal(deep(ids).logits, shallow(ids).logits)


@pytest.mark.parametrize(
    ("asker", "sentence", "question", "answer"),
    [
        (natural.ask_subject, "Ruth Marlow sailed home.", " sailed home?", "Ruth Marlow"),
        (natural.ask_object, "Then, Ruth built the mill.", "did Ruth build?", "the mill"),
        (natural.ask_year, "The war ended in 1874.", " The war ended?", "1874"),
        (natural.ask_count, "He had thirty ships.", "how many ships?", "thirty"),
        (natural.ask_called, "He met a man called Ivor.", "the man", "Ivor"),
    ],
)
def test_sentences_are_asked_by_their_form(asker, sentence, question, answer) -> None:
    for seed in range(8):
        turn = asker(Random(seed), sentence)
        assert turn.answer == answer
        assert question.lower() in turn.question.lower()


def test_rows_fit_repeat_and_hold_every_copied_answer(maker: episodes.EpisodeMaker) -> None:
    decode = maker.corpus.encoding.decode
    num_answers = 0
    for sort in ("facts", "qa", "natural", "chat", "code"):
        for seed in range(20):
            row = maker.makers[sort](Random(seed), 192)
            assert row == maker.makers[sort](Random(seed), 192)
            assert len(row.ids) == len(row.loss) <= 192
            if row.ids[0] != maker.user:
                continue
            document, _, turns = decode(row.ids).partition("\n</document>\n\n")
            for answer in re.findall(r"<\|assistant\|> (.*?)<\|end\|>", turns, re.DOTALL):
                num_answers += 1
                assert answer == NOT_STATED or stands_in(answer, document)
            trained = [token for token, weight in zip(row.ids, row.loss, strict=True) if weight]
            assert trained[-1] == maker.end
    assert num_answers > 60


def test_some_facts_stand_in_lines_of_their_own(
    maker: episodes.EpisodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = tasks.Fact(("Ada Kerr keeps the key.",), (tasks.Turn("Who keeps it?", "Ada Kerr"),))
    monkeypatch.setattr(episodes, "make_fact", lambda rng: fact)
    monkeypatch.setattr(episodes, "make_similar_facts", lambda rng, count: [fact])
    texts = [maker.corpus.encoding.decode(maker.make_facts(Random(i), 192).ids) for i in range(40)]
    stated = sum(text.count(fact.sentences[0]) for text in texts)
    in_lines = sum(text.count(f"\n{fact.sentences[0]}\n") for text in texts)
    assert stated / 5 < in_lines < stated / 2


def test_some_long_rows_hold_several_short_episodes(maker: episodes.EpisodeMaker) -> None:
    decode, num_packed = maker.corpus.encoding.decode, 0
    for seed in range(30):
        row = maker.make_row(Random(seed), "facts", 1024)
        assert len(row.ids) == len(row.loss) <= 1024
        num_packed += decode(row.ids).count("<|user|><document>") > 1
    assert 3 <= num_packed <= 20


def test_copied_pieces_are_pieces_of_the_passage(maker: episodes.EpisodeMaker) -> None:
    row = maker.make_copy(Random(0), 96)
    half = row.loss.index(1.0) - 2
    assert sorted(row.ids[:half]) == sorted(row.ids[half:])


def test_a_share_of_a_document_is_trained_as_text(maker: episodes.EpisodeMaker) -> None:
    dense = copy.copy(maker)
    dense.text_fraction = 0.5
    row = dense.compose(
        Random(0), [tuple(maker.encode(" It is 7."))], [tasks.Turn("It?", "7")], 300
    )
    first, end = 1 + len(maker.open), row.ids.index(maker.end)
    weights = row.loss[first : end - len(maker.close) - len(maker.encode("It?"))]
    assert {*weights} == {0.0, episodes.TEXT_WEIGHT} and 0.35 < sum(map(bool, weights)) / 250 < 0.65
    answer = maker.encode(" 7")
    assert row.loss[end + 2 :] == [episodes.FIRST_WEIGHT] + [1.0] * len(answer)


def test_the_probe_counts_answers_alone(
    maker: episodes.EpisodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def answers_right(model: None, ids: Tensor, weights: Tensor) -> Tensor:
        seen.append(weights)
        return torch.ones(len(ids))

    monkeypatch.setattr(probe, "answers_right", answers_right)
    dense = copy.copy(maker)
    dense.text_fraction = 1.0
    assert probe.measure(None, dense, 512)["needle_accuracy"] == 1.0  # type: ignore[arg-type]
    assert {*seen[0].unique().tolist()} == {0.0, 1.0, episodes.FIRST_WEIGHT}


def test_held_out_text_is_never_sampled(maker: episodes.EpisodeMaker) -> None:
    decode = maker.corpus.encoding.decode
    for array in maker.corpus.arrays.values():
        assert "quagga" not in decode(array.tolist())
    ids, _ = maker.make_batch(Random(0), READING, 64, 192)
    assert all("quagga" not in decode(row.tolist()) for row in ids)
    assert all("quagga" not in c.text for group in maker.contexts.values() for c in group)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 48, 16), (2, 16, 48)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize("tokens", [7, 256, 600])
def test_attention_in_tiles_is_causal_attention_with_its_gradient(tokens: int) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, tokens, 8), (2, 2, tokens, 8), (2, 2, tokens, 8))
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    tiles, _ = attend_in_tiles(torch.nn.Module(), query, key, value, None, 0.3)
    whole = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert torch.allclose(tiles, whole, atol=1e-5)
    weights = torch.randn_like(whole)
    found, expected = (
        torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (tiles, whole)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_muon_moves_a_matrix_against_its_gradient_by_its_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.eye(8) * 5
    Muon([weight], lr=0.1).step()
    assert torch.allclose(weight.detach().diag(), torch.full((8,), -0.1), atol=0.04)
    assert weight.detach().fill_diagonal_(0).abs().max() < 1e-6


def test_a_cache_is_made_anew_for_another_tokenizer_or_text(data_folder, tmp_path: Path) -> None:
    data.make_tokenizer(data_folder, tmp_path / "tokenizer", 192)
    cache = tmp_path / "cache"
    data.prepare(data_folder, cache, tmp_path / "tokenizer")
    (cache / "prose.valid.npy").write_bytes(b"marked")
    data.prepare(data_folder, cache, tmp_path / "tokenizer")
    assert (cache / "prose.valid.npy").read_bytes() == b"marked"
    data.prepare(data_folder, cache, SHIPPED)
    assert (cache / "prose.valid.npy").read_bytes() != b"marked"


def test_a_folder_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file: .*gutenberg-00.jsonl.xz") as refusal:
        data.prepare(tmp_path, tmp_path / "cache", SHIPPED)
    assert "what a folder of training text holds" in refusal.value.hint


@pytest.mark.parametrize("name", ["book.jsonl.xz", "data/qa/train/docs.jsonl.xz"])
def test_a_file_of_records_that_is_missing_is_named_as_it_was_given(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^no such file: {name}$"):
        next(data.read_records(Path(name)))


def test_answers_keep_the_article_whatever_their_case() -> None:
    behind = 0
    for seed in range(300):
        fact = tasks.make_kind_fact(Random(seed), tasks.TRAINING_KINDS)
        for turn in fact.turns:
            bare = turn.answer.removeprefix("the ")
            stands = f"the {bare}".lower() in fact.sentences[0].lower()
            assert turn.answer.startswith("the ") == stands, fact
            behind += stands and bare[0].isupper()
    assert behind


def test_rows_of_logits_come_in_few_numbers_and_change_no_loss() -> None:
    model = pretrain.build_model(TINY, 300, 0)
    rows: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    ids = torch.randint(300, (4, 150))
    for count in (1, 255, 256, 257):
        weights = torch.zeros(ids.shape)
        weights[:, 1:] = (torch.arange(4 * 149) < count).view(4, 149) * torch.rand(4, 149)
        loss, _ = pretrain.compute_loss(model, model.model, ids, weights)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1]).logits.float()
        each = cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        wanted = (each * weights[:, 1:]).sum() / weights.sum()
        assert torch.isclose(loss, wanted, rtol=1e-3)
    assert [number for number in rows if number != 4] == [256, 256, 256, 512]


def test_resumed_run_equals_the_uninterrupted_one(maker, tmp_path: Path) -> None:
    def run_in(name: str) -> pretrain.Run:
        (tmp_path / name).mkdir(exist_ok=True)
        return pretrain.Run(TINY, maker, tmp_path / name, seed=1)

    straight = run_in("straight")
    pretrain.train(straight, 3, tmp_path)
    pretrain.train(run_in("parts"), 1, tmp_path)
    resumed = run_in("parts")
    resumed.resume()
    assert resumed.step == 1
    pretrain.train(resumed, 3, tmp_path)
    for (name, wanted), found in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found), name
    assert resumed.num_tokens == straight.num_tokens
    other = pretrain.Run(replace(TINY, rounds=2), maker, tmp_path / "parts", 0)
    with pytest.raises(ConfigError, match="of another run"):
        other.resume()


def test_train_base_writes_a_loadable_model_and_a_log(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, measure_steps=2))
    folder = pretrain.train_base("tiny", data_folder, tmp_path / "out", max_steps=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2]
    assert 0 <= rows[1]["needle_accuracy"] <= 1
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize("doubled", [(), (0,)])
def test_an_averaged_run_ends_in_the_mean_of_its_start_and_its_end(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubled: tuple[int, ...]
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    layers = TINY.layers + len(doubled)
    further = replace(
        TINY, start="tiny", layers=layers, doubled=doubled, averaged=True, seed_offset=1
    )
    monkeypatch.setitem(RECIPES, "further", further)

    def flat(folder: Path, doubled: tuple[int, ...] = ()) -> Tensor:
        weights = pretrain.deepen(pretrain.load_weights(folder), doubled)
        return torch.cat([weights[name].flatten() for name in sorted(weights)])

    mean = flat(pretrain.train_base("further", data_folder, tmp_path / "out"))
    first = flat(tmp_path / "out" / "start" / "model", doubled)
    last = flat(pretrain.export_run(tmp_path / "out"))
    assert (mean - (first + last) / 2).norm() < 0.2 * (first - last).norm()


def test_schedule_warms_up_holds_and_decays() -> None:
    recipe = RECIPES["cpu"]
    fractions = [recipe.lr_fraction(step) for step in range(recipe.num_steps)]
    assert fractions[0] < 0.1
    assert max(fractions) == 1.0
    assert fractions[-1] < 0.05
    held = fractions[recipe.warmup_steps : round(recipe.num_steps * (1 - recipe.decay_fraction))]
    assert set(held) == {1.0}


def test_stages_of_a_recipe_in_rounds_take_turns_to_its_end() -> None:
    recipe = RECIPES["cpu"]
    turn = [stage.length_tokens for stage in recipe.stages]
    assert len(turn) * recipe.rounds == recipe.num_steps
    lengths = [recipe.stage_at(step).length_tokens for step in range(recipe.num_steps)]
    assert lengths == turn * recipe.rounds
    few = recipe.rehearsed(40, None, None)
    assert few.num_steps == 40
    assert [few.stage_at(step).length_tokens for step in range(40)] == turn * 2


def test_a_run_draws_other_rows_than_the_run_it_starts_from() -> None:
    for name, recipe in RECIPES.items():
        before = RECIPES.get(recipe.start or "")
        if before and before.stages == recipe.stages:
            assert recipe.seed_offset != before.seed_offset, name
