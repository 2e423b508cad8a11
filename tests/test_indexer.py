"""The learned scorers: when scores are made, what they depend on, and that they can be learned."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from families import Fixed, make_backbone, make_model, stream, token_ids
from safetensors import safe_open
from safetensors.torch import save_file

from indexmem_cli.errors import BackboneError, ConfigError, IndexMemError
from indexmem_cli.memory.adapter import Adapter, hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import (
    FORMS,
    IndexerConfig,
    make_indexer,
    make_indexer_scorer,
)
from indexmem_cli.train import quick, ridge
from indexmem_cli.train.loss import distil_loss, reverse_kl, soft_gate, streaming_kl
from indexmem_cli.train.teachers import (
    Streaming,
    WholeModel,
    attention_labels,
    hide_evicted,
    reconstruction_scores,
)

IDS = token_ids(300)
QUESTION = token_ids(9, seed=1)


def make_config(form, layers=(0, 1, 2), **options):
    return IndexerConfig(form, layers, 64, 2, 4, 16, group_layers=2, hidden=32, **options)


def seeded_indexer(form, **options):
    torch.manual_seed(3)
    indexer = make_indexer(make_config(form, **options)).requires_grad_(False)
    if form == "shared-heads":
        torch.nn.init.normal_(indexer.head_term.weight)
    return indexer


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("qwen3")


def kept(reader):
    return [layer.positions[0, :, : layer.held].tolist() for layer in reader.state.managed]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_a_stream_under_its_budget(backbone, form):
    reader = stream(backbone, make_indexer_scorer(seeded_indexer(form)), IDS)
    assert reader.state.held == 64 and reader.state.seen == len(IDS)
    assert not reader.state.hidden, "states are let go when they are scored"
    groups = seeded_indexer(form).config.groups
    by_head = form in ("retention", "shared-heads")
    for group in groups:
        places = {str(kept(reader)[i]) for i in group}
        assert len(places) == (len(group) if by_head else 1)
    assert reader.state.uniform == (form == "shared")


@pytest.mark.parametrize("form", ["shared", "retention"])
def test_scores_are_made_once_and_travel_with_their_tokens(backbone, form):
    scorer = make_indexer_scorer(seeded_indexer(form))
    made = {}
    score = scorer.score

    def watched(block):
        scores = score(block)
        for i, layer in enumerate(block.state.managed):
            places = layer.positions[0, :, : layer.held]
            for g in range(2):
                row = scores[i].expand(-1, 2, -1)[0, g].tolist()
                for place, value in zip(places[g].tolist(), row, strict=True):
                    assert made.setdefault((i, g, place), value) == value
        return scores

    scorer.score = watched
    stream(backbone, scorer, IDS)
    assert len({place for _, _, place in made}) == len(IDS)


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_frozen_scores_keep_the_same_tokens_in_any_chunks(backbone, chunk):
    table = torch.rand(1, 1, len(IDS), generator=torch.Generator().manual_seed(0))
    at_once = stream(backbone, Fixed(table), IDS, chunk=300, budget=80, span_tokens=1)
    reader = stream(backbone, Fixed(table), IDS, chunk=chunk, budget=80, span_tokens=1)
    assert kept(reader) == kept(at_once)


def test_hidden_by_mask_is_the_same_as_evicted(backbone):
    table = torch.rand(1, 1, len(IDS), generator=torch.Generator().manual_seed(0))
    reader = stream(backbone, Fixed(table), IDS, chunk=40, budget=80, span_tokens=5)
    plan = reader.plan
    streamed, _, _ = backbone.predict(QUESTION, reader.state)
    whole = WholeModel(make_backbone("qwen3"))
    ids = torch.tensor([IDS + QUESTION])
    table = torch.cat([table, torch.zeros(1, 1, len(QUESTION))], dim=2)
    shape = Streaming(40, plan.sink_tokens, plan.recent_tokens, plan.span_tokens)
    mask = hide_evicted(table, [len(IDS)], [80], shape)
    masked = whole.predict_from(whole.run(ids, gates=[mask] * 3).output[0, -1])
    torch.testing.assert_close(streamed, masked, atol=1e-4, rtol=1e-4)
    dense = whole.predict_from(whole.run(ids).output[0, -1])
    assert (dense - streamed).abs().max() > 0.01


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "phi3"])
def test_a_whole_pass_is_the_models_own(family):
    plain = make_model(family)
    with torch.no_grad():
        expected = plain(torch.tensor([IDS[:90]]), output_attentions=True)
    whole = WholeModel(make_backbone(family))
    rows = torch.zeros(1, 90, dtype=torch.bool)
    rows[:, [50, 89]] = True
    run = whole.run(torch.tensor([IDS[:90]]), rows=rows, watched=(0,), want_logits=True)
    torch.testing.assert_close(
        whole.predict_from(run.output)[0], expected.logits[0], atol=1e-3, rtol=1e-3
    )
    for paid, layer in zip(run.received, whole.managed, strict=True):
        weights = expected.attentions[layer][0][:, [50, 89]].amax(1)
        torch.testing.assert_close(
            paid[0], weights.unflatten(0, (2, 2)).amax(1), atol=1e-4, rtol=1e-4
        )


def test_query_scores_follow_the_papers_formula_and_survive_eviction(backbone):
    indexer = seeded_indexer("query")
    scorer = make_indexer_scorer(indexer)
    reader = stream(backbone, scorer, IDS)
    reader.state.watched_layers = ()
    state = backbone.new_state(slots=400)
    state.watched_layers = scorer.watched_layers
    queries = backbone.read(IDS[:64], state, want_queries=True)
    scores = scorer.score(backbone.block(state, 64, queries))
    q, x = queries[0][0].transpose(0, 1).flatten(1), state.hidden[0][0]

    def unit(rows):
        return rows / (rows.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    small = unit((q @ indexer.queries[0].weight.T).reshape(64, 1, 4))
    keys = unit(x @ indexer.keys[0].weight.T)
    alpha = (x @ indexer.gates[0].weight.T) / 4**0.5
    paid = torch.einsum("si,sit->st", alpha, torch.einsum("sid,td->sit", small, keys).relu())
    best = paid.masked_fill(~torch.ones(64, 64).bool().tril(), float("-inf")).amax(0)
    torch.testing.assert_close(scores[0][0, 0], best, atol=1e-5, rtol=1e-4)
    assert scores[0] is scores[1] and scores[2] is not scores[0]
    for place in (0, 2):
        notes = reader.state.managed[place].notes
        assert notes.shape == (1, 1, 64, 4), "index keys leave with their tokens"
    whole = backbone.new_state(slots=400)
    whole.watched_layers = scorer.watched_layers
    backbone.read(IDS[:32], whole)
    first = indexer.make_keys(0, whole.hidden[0])[0]
    held = reader.state.managed[0].positions[0, 0, :64]
    of_first_chunk = held[held < 32]
    torch.testing.assert_close(
        reader.state.managed[0].notes[0, 0, : len(of_first_chunk)], first[of_first_chunk]
    )


def test_scores_do_not_depend_on_later_tokens(backbone):
    indexer = seeded_indexer("shared")
    runs = []
    for last in (7, 8):
        state = backbone.new_state(slots=64)
        state.watched_layers = indexer.config.watched_layers
        backbone.read([*IDS[:40], last], state)
        runs.append(indexer(state.hidden)[0][0, 0])
    assert torch.equal(runs[0][:40], runs[1][:40])
    assert runs[0][40] != runs[1][40]


def test_asking_in_between_leaves_the_scores_alone(backbone):
    plain = stream(backbone, make_indexer_scorer(seeded_indexer("shared")), IDS)
    asked = stream(backbone, make_indexer_scorer(seeded_indexer("shared")), IDS[:160])
    backbone.probe(QUESTION, asked.state)
    assert not asked.state.hidden
    for _ in asked.read(IDS[first : first + 32] for first in range(160, 300, 32)):
        pass
    assert kept(plain) == kept(asked)


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_of_an_indexer_learns_from_its_labels(form):
    whole = WholeModel(make_backbone("qwen3"))
    indexer = make_indexer(make_config(form, activation="none"))
    config, ids = indexer.config, torch.tensor([IDS[:60], IDS[60:120]])
    rows = torch.zeros(2, 60, dtype=torch.bool)
    rows[:, 40:] = True
    run = whole.run(ids, rows=rows, watched=config.watched_layers, want_logits=True)
    if form == "query":
        loss = 0
        for group, layer in enumerate(config.watched_layers):
            states = run.hidden[layer]
            keys = indexer.make_keys(group, states)
            paid = indexer.relevance(group, run.queries[config.groups[group][0]], states, keys)
            loss = loss + streaming_kl(paid.amax(1), run.logits[0].amax(1), ~rows)
    else:
        by_head = form in ("retention", "shared-heads")
        groups = [(i,) for i in range(3)] if by_head else config.groups
        labels = attention_labels(run.received, groups, by_head)
        loss = distil_loss(indexer(run.hidden), labels, ~rows)
    loss.backward()
    for name, weight in indexer.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
    assert all(weight.grad is None for weight in whole.model.parameters())


@pytest.mark.parametrize("form", ["shared", "retention", "shared-heads"])
def test_the_soft_gate_carries_the_answers_loss_to_the_scores(form):
    whole = WholeModel(make_backbone("qwen3"))
    indexer = make_indexer(make_config(form))
    ids = torch.tensor([IDS[:60]])
    run = whole.run(ids, watched=indexer.config.watched_layers)
    scores = indexer(run.hidden)
    mask = torch.zeros(1, scores[0].shape[1], 60, 60)
    mask[..., 30:, 10:14] = float("-inf")
    scale = torch.nn.Parameter(torch.ones(()))
    gates = [soft_gate(score, mask, recent=4, sinks=2) * scale + mask for score in scores]
    student = whole.run(ids, gates=gates)
    pick = slice(50, 60)
    loss = reverse_kl(
        whole.predict_from(student.output[0, pick]), whole.predict_from(run.output[0, pick])
    )
    assert loss > 1e-3, "a gate that is flat over history, with pins, is not the dense model"
    loss.backward()
    assert scale.grad.isfinite() and scale.grad != 0
    for name, weight in indexer.named_parameters():
        blind = name.endswith("out.bias") or name == "head_term.bias"
        assert weight.grad is not None and (blind or weight.grad.abs().max() > 0), name


def test_the_gate_does_not_see_a_constant():
    scores = torch.randn(1, 1, 30)
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 5] = float("-inf")
    one, other = (soft_gate(s, mask, recent=3, sinks=2) for s in (scores, scores + 7))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (one[0, 0, 20, :2] == 0).all() and (one[0, 0, 20, 18:21] == 0).all()
    assert one[0, 0, 20, 5] == 0
    seen = [j for j in range(2, 18) if j != 5]
    assert one[0, 0, 20, seen].logsumexp(0).exp() == pytest.approx(64, rel=1e-4)


def test_reconstruction_is_scored_chunk_by_chunk():
    whole = WholeModel(make_backbone("qwen3"))
    text = torch.tensor([IDS[:20], IDS[20:40]])
    scores, hidden = reconstruction_scores(whole, text, [5, 6], [7, 8, 9], watched=(1,))
    assert len(scores) == 3 and scores[0].shape == (2, 2, 20)
    alone, _ = reconstruction_scores(whole, text[1:], [5, 6], [7, 8, 9])
    first_pass = whole.run(torch.tensor([[5, 6, *IDS[:20]]]), watched=(1,)).hidden[1][:, 2:]
    torch.testing.assert_close(hidden[1][:1], first_pass, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(scores[2][1:], alone[2], atol=1e-5, rtol=1e-4)
    plain = make_model("qwen3")
    ids = [5, 6, *IDS[:20], 7, 8, 9, *IDS[:20]]
    weights = plain(torch.tensor([ids]), output_attentions=True).attentions[1][0]
    best = weights[:, -21:, 2:22].amax(1).unflatten(0, (2, 2)).amax(1)
    torch.testing.assert_close(scores[1][0], best, atol=1e-4, rtol=1e-3)


@pytest.fixture
def saved(tiny_model_dir, tmp_path):
    """An adapter file for the tiny model."""
    config = IndexerConfig("shared", (0, 1), 32, 2, 4, 16)
    path = tmp_path / "adapter.safetensors"
    adapter = Adapter(make_indexer(config), *hash_model(tiny_model_dir), [512], {"kept": 0.5})
    adapter.layer_shares = torch.tensor([0.5, 1.5])
    save_adapter(adapter, path)
    return path, adapter


def test_an_adapter_comes_back_as_it_was(saved, tiny_model_dir):
    path, adapter = saved
    again = load_adapter(path, tiny_model_dir)
    states = {1: torch.randn(1, 7, 32)}
    assert torch.equal(again.indexer(states)[0], adapter.indexer(states)[0])
    assert again.trained_tokens == [512] and again.scores == {"kept": 0.5}
    assert torch.equal(again.layer_shares, adapter.layer_shares) and again.log_mass is None
    assert not any(weight.requires_grad for weight in again.indexer.parameters())


@pytest.mark.parametrize("name", ["model_hash", "tokenizer_hash", "trained_tokens", "scores"])
def test_an_adapter_that_does_not_say_what_it_is_of_is_refused(saved, tiny_model_dir, name):
    path, _ = saved
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["indexmem"])
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    del manifest[name]
    save_file(tensors, path, {"indexmem": json.dumps(manifest)})
    with pytest.raises(BackboneError, match="no readable adapter"):
        load_adapter(path, tiny_model_dir)


def test_an_adapter_of_another_model_is_refused(saved, tiny_model_dir):
    path, adapter = saved
    adapter.model_hash = "0" * 32
    save_adapter(adapter, path)
    with pytest.raises(BackboneError, match="another model.*00000000") as caught:
        load_adapter(path, tiny_model_dir)
    assert "indexmem train adapter" in caught.value.hint
    adapter.model_hash, adapter.tokenizer_hash = hash_model(tiny_model_dir)[0], "1" * 32
    save_adapter(adapter, path)
    with pytest.raises(BackboneError, match="another tokenizer"):
        load_adapter(path, tiny_model_dir)


@pytest.mark.parametrize("damage", ["cut", "text", "format", "form", "missing"])
def test_a_damaged_adapter_is_refused_without_a_trace(saved, tiny_model_dir, damage):
    path, _ = saved
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + size])
    manifest = json.loads(head["__metadata__"]["indexmem"])
    if damage == "format":
        manifest["format"] = 99
    if damage == "form":
        manifest["indexer"]["form"] = "nothing"
    if damage == "missing":
        manifest.pop("indexer")
    head["__metadata__"]["indexmem"] = json.dumps(manifest)
    packed = json.dumps(head).encode()
    packed = len(packed).to_bytes(8, "little") + packed + whole[8 + size :]
    damaged = {"cut": whole[:-30], "text": b"no such thing"}.get(damage, packed)
    path.write_bytes(damaged)
    with pytest.raises((BackboneError, ConfigError)) as caught:
        load_adapter(path, tiny_model_dir)
    assert caught.value.hint


def test_the_adapter_beside_a_model_does_not_change_its_hash(saved, tiny_model_dir):
    path, _ = saved
    before = hash_model(tiny_model_dir)
    beside = tiny_model_dir / path.name
    beside.write_bytes(path.read_bytes())
    try:
        assert hash_model(tiny_model_dir) == before
    finally:
        beside.unlink()


def test_a_linear_fit_finds_a_score_that_is_linear_in_the_states():
    torch.manual_seed(0)
    states = torch.randn(8, 50, 64)
    config = make_config("shared")
    config = dataclasses.replace(config, hidden=0)
    truth = torch.nn.functional.layer_norm(states, (64,)) @ torch.randn(64)
    indexer, correlation = ridge._fit(config, states, (truth - truth.mean()) / truth.std(), 2)
    assert correlation > 0.95
    scores = indexer({2: states})[0][:, 0]
    assert torch.corrcoef(torch.stack([scores.flatten(), truth.flatten()]))[0, 1] > 0.95
    noise = torch.randn(8, 50)
    assert ridge._fit(config, states, noise, 2)[1] < quick.LEAST_CORRELATION


def test_a_document_too_short_to_fit_is_refused_before_torch_is_loaded(tiny_model_dir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the mill passes to Ruth\n", "utf-8")
    code = (
        "import sys\nfrom pathlib import Path\nfrom indexmem_cli.train.quick import fit_adapter\n"
        f"try:\n    fit_adapter({str(tiny_model_dir)!r}, Path({str(text)!r}), Path('out'))\n"
        "except Exception as error:\n    print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "text.txt has 8 tokens: too few to fit anything False\n", done.stderr


def test_a_quick_adapter_serves_its_model(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "CHUNK_TOKENS", 60)
    monkeypatch.setattr(quick, "LEAST_CORRELATION", -1.0)
    text = tmp_path / "text.txt"
    text.write_text("the mill passes to Ruth, and the brown fox to her lazy dog\n" * 30, "utf-8")
    threads = torch.get_num_threads()
    path, scores = quick.fit_adapter(str(tiny_model_dir), text, tmp_path / "out", threads=1)
    torch.set_num_threads(threads)
    adapter = load_adapter(path, tiny_model_dir)
    assert adapter.indexer.config.hidden == 0 and adapter.scores == scores
    monkeypatch.setattr(quick, "LEAST_CORRELATION", 1.1)
    with pytest.raises(IndexMemError, match="rank correlation"):
        quick.fit_adapter(str(tiny_model_dir), text, tmp_path / "refused", threads=1)
    assert not (tmp_path / "refused").exists()
