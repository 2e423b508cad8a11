"""Tokenizers, chunks, and the way back from a token to its place."""

import base64
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from indexmem_cli.documents import Passage, Place, open_text
from indexmem_cli.errors import BackboneError
from indexmem_cli.tokens import count_tokens, load_tokenizer, read_chunks

# As tiktoken's and most byte-level tokenizers: a word with the space before it, runs of line ends.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = ["The mill by the river, the niece of Ada; größer als früher.\n\n  def f(x):\n"] * 20
CONTROL = ("<|im_end|>", "<tool_call>")
TEXTS = st.lists(
    st.sampled_from(
        ["the mill", "a", " ", "  ", "\n", "\n\n", "é", ".", "🐘", "12", *CONTROL, "\ud800"]
    )
).map("".join)


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def token_bytes(token: str) -> bytes:
    """Undo the byte-level alphabet: printable bytes as themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return bytes(table[char] for char in token)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same small tokenizer as tiktoken's files and as a tokenizer.json of the hub."""
    trained, root = train(), tmp_path_factory.mktemp("tokenizers")
    vocab = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tik, hub = root / "tiktoken", root / "hub"
    tik.mkdir()
    hub.mkdir()
    lines = [base64.b64encode(token_bytes(token)) + b" %d" % rank for token, rank in vocab]
    (tik / "tokenizer.tiktoken").write_bytes(b"\n".join(lines))
    special = {text: len(vocab) + number for number, text in enumerate(CONTROL)}
    spec = {"pattern": PATTERN, "special_tokens": special}
    (tik / "tiktoken.json").write_text(json.dumps(spec), "utf-8")

    # One control token that is marked, one that is not, as in real models, and a saved setting
    # that would cut every text.
    trained.add_special_tokens([CONTROL[0]])
    trained.add_tokens([AddedToken(CONTROL[1], special=False, normalized=False)])
    trained.enable_truncation(8)
    trained.enable_padding()
    trained.save(str(hub / "tokenizer.json"))
    return {"tiktoken": tik, "hub": hub}


@pytest.fixture(scope="module", params=["tiktoken", "hub"])
def tokenizer(folders, request):
    return load_tokenizer(folders[request.param])


# --- tokenizers


@given(text=TEXTS)
def test_text_round_trips_and_never_becomes_a_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("\ud800", "\ufffd")
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode_batch([text, "a", text]) == [ids, tokenizer.encode("a"), ids]


@given(text=TEXTS)
def test_both_kinds_give_the_same_ids(folders, text):
    tik, hub = (load_tokenizer(folders[kind]) for kind in ("tiktoken", "hub"))
    assert tik.encode(text) == hub.encode(text)
    assert tik.special_tokens == hub.special_tokens


def test_control_tokens_are_known_and_have_no_text(tokenizer):
    assert set(tokenizer.special_tokens) == set(CONTROL)
    ids = [*tokenizer.encode("mill"), *tokenizer.special_tokens.values(), 10**6, -1]
    assert tokenizer.decode(ids) == "mill"
    stream = tokenizer.text_stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "mill"


@given(text=TEXTS)
def test_streamed_text_is_the_text(tokenizer, text):
    stream = tokenizer.text_stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text.replace("\ud800", "\ufffd")


def test_a_stream_never_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("é🐘")
    assert len(ids) > 2
    stream = tokenizer.text_stream()
    assert [piece for piece in map(stream.push, ids[:-1]) if piece] == ["é"]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_that_are_no_text_do_not_hold_a_stream_back(tokenizer):
    stream = tokenizer.text_stream()
    wrong = tokenizer.encode("é")[:1]
    shown = "".join(stream.push(token_id) for token_id in wrong * 40)
    assert len(shown) > 20


def test_text_whose_control_strings_are_in_the_vocabulary(tmp_path):
    # `ignore_merges` takes a word that is in the vocabulary as it is, as Llama 3 does.
    vocab = {char: n for n, char in enumerate("<>abc")} | {"<b>": 5}
    bpe = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    bpe.add_special_tokens(["<b>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<b>") == [0, 3, 1]
    assert tokenizer.decode([2, 5, 2]) in ("aa", "a a")


@pytest.mark.parametrize("old", [False, True])
def test_pieces_of_a_text_get_no_space_before_them(tmp_path, old):
    """SentencePiece models put a space before each text, which would be one before each line."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    if old:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        bpe.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"], vocab_size=300, show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    parts = ["The mill\n", "by the", " river\n"]
    ids = [token_id for part in tokenizer.encode_batch(parts) for token_id in part]
    assert tokenizer.decode(ids) == "".join(parts)
    stream = tokenizer.text_stream()
    assert "".join(map(stream.push, ids)) == "".join(parts)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(BackboneError, match="no tokenizer") as error:
        load_tokenizer(tmp_path)
    assert error.value.exit_code == 5
    for name, content in [("tokenizer.json", "{}"), ("tiktoken.json", "{}")]:
        (tmp_path / name).write_text(content)
        (tmp_path / "tokenizer.tiktoken").write_text("!")
        with pytest.raises(BackboneError, match="damaged"):
            load_tokenizer(tmp_path)


# --- chunks


@given(text=TEXTS, chunk_tokens=st.sampled_from([1, 7, 64]), first=st.sampled_from([0, 5]))
def test_chunks_joined_are_the_tokens_of_the_text(tokenizer, text, chunk_tokens, first):
    text = text.replace("\ud800", "").lstrip()
    passages = list(open_text(text).passages()) if text else []
    chunks = list(read_chunks(passages, tokenizer, chunk_tokens, first))
    ids = [token_id for chunk in chunks for token_id in chunk.ids]
    assert ids == tokenizer.encode(text)
    assert count_tokens(passages, tokenizer) == len(ids)
    assert [chunk.first for chunk in chunks] == list(range(first, first + len(ids), chunk_tokens))
    assert all(len(chunk.ids) == chunk_tokens for chunk in chunks[:-1])
    for chunk in chunks:
        covered = {at for entry in chunk.entries for at in range(entry.first, entry.end)}
        assert covered >= set(range(chunk.first, chunk.first + len(chunk.ids)))
        assert all(
            entry.end > chunk.first and entry.first < chunk.first + len(chunk.ids)
            for entry in chunk.entries
        )


def test_long_lines_have_the_tokens_of_the_whole(tokenizer):
    text = "The mill, by the river 1234  of Ada " * 300 + "\nend"
    ids = [i for chunk in read_chunks(open_text(text).passages(), tokenizer, 64) for i in chunk.ids]
    assert ids == tokenizer.encode(text)


@given(text=TEXTS, chunk_tokens=st.sampled_from([1, 7, 64]))
@settings(max_examples=50)
def test_every_token_leads_back_to_its_line(folders, text, chunk_tokens):
    tokenizer = load_tokenizer(folders["tiktoken"])
    passages = list(open_text("start\n" + text).passages())
    seen: list[int] = []
    for chunk in read_chunks(passages, tokenizer, chunk_tokens, first=3):
        seen += chunk.ids
        for entry in chunk.entries:
            held = seen[entry.first - 3 : entry.end - 3]
            assert held == entry.ids[: len(held)] and held
            assert Passage(tokenizer.decode(entry.ids), entry.place) in passages


def test_reading_is_lazy_and_memory_is_flat(folders):
    tokenizer = load_tokenizer(folders["tiktoken"])
    num_pulled = 0

    def passages():
        nonlocal num_pulled
        place = Place("a", None, None, 1)
        for _ in range(20_000):
            num_pulled += 1
            yield Passage("The mill by the river, the niece of Ada.\n", place)

    chunks = read_chunks(passages(), tokenizer, 512)
    tracemalloc.start()
    num_tokens = 0
    for chunk in chunks:
        if num_tokens == 0:
            assert num_pulled < 500
        num_tokens += len(chunk.ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_tokens > 200_000
    assert peak < 1_000_000
