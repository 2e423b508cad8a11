"""kvpress's own scorers on the texts of `indexers.py`, in a stream: are our baselines strawmen?

PYTHONPATH=FOLDER_OF_KVPRESS python benchmarks/kvpress_scorers.py --data DIR --cache DIR --count 20
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import copy
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import torch
from indexer_texts import Text, Texts
from indexers import MAX_ANSWER_TOKENS, grade, summarise
from transformers import DynamicCache

from indexmem_cli.bench.rows import append_row, common_fields, option_parser, print_table
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.train.data import Corpus, prepare

PRESSES = {
    "keydiff": "KeyDiffPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "expected-attention": "ExpectedAttentionPress",
    "knorm": "KnormPress",
}
COLUMNS = ["task", "kept", "mode", "n", "documents", "score", "interval_95"]


class Stream:
    """A plain transformers model that reads in chunks under a `DecodingPress`."""

    def __init__(self, options: Namespace) -> None:
        checkpoint = find_checkpoint(options.model, offline=True)
        settings = ModelConfig(options.model, dtype=options.dtype, device=options.device)
        backbone = load_backbone(checkpoint, settings)
        self.eos = backbone.eos_ids
        backbone.detach()
        self.model, self.chunk = backbone.model, options.chunk
        self.model.set_attn_implementation("sdpa")
        self.prompt = load_prompt(checkpoint)
        self.encoding = prepare(
            options.data, options.cache, checkpoint.path, checkpoint.window_tokens
        )
        corpus = Corpus(options.cache, self.encoding, "valid")
        self.texts = Texts(corpus, options.data, options.tokens)

    @torch.no_grad()
    def step(self, ids: list[int], cache: DynamicCache, seen: int) -> torch.Tensor:
        """Read tokens at their true positions; return the last logits."""
        places = torch.arange(seen, seen + len(ids))
        out = self.model.model(
            input_ids=torch.tensor([ids]),
            past_key_values=cache,
            position_ids=places[None],
            cache_position=places,  # the hooks of kvpress 0.5.5 want it
            use_cache=True,
        )
        return self.model.lm_head(out.last_hidden_state[0, -1])

    def read(self, text: Text, mode: str, budget: int) -> tuple[DynamicCache, int]:
        """Read a text chunk by chunk; return what is left of its cache, and the tokens read."""
        import kvpress

        press = kvpress.DecodingPress(
            getattr(kvpress, PRESSES[mode])(), compression_interval=1, target_size=budget
        )
        ids, cache = [*self.prompt.opening, *text.ids], DynamicCache(config=self.model.config)
        with press(self.model):
            # The first chunk takes what is over: SnapKV wants 64 tokens in the last one.
            cuts = [0, *range(len(ids) % self.chunk + self.chunk, len(ids) + 1, self.chunk)]
            for first, end in zip(cuts, cuts[1:], strict=False):
                self.step(ids[first:end], cache, first)
        held = {layer.keys.shape[2] for layer in cache.layers}
        assert held == {budget}, f"{mode} holds {held}, not {budget}"
        return cache, len(ids)

    def answer(self, cache: DynamicCache, seen: int, question: str) -> str:
        """Answer greedily from a copy of the cache."""
        cache, given = copy.deepcopy(cache), []
        ids = self.prompt.closing(self.encoding.encode_ordinary(question))
        while len(given) < MAX_ANSWER_TOKENS:
            token = int(self.step(ids, cache, seen).argmax())
            if token in self.eos:
                break
            seen += len(ids)
            ids = [token]
            given.append(token)
        return self.encoding.decode(given).strip()


def main(arguments: list[str] | None = None) -> None:
    """Measure, append rows, print a table."""
    parser = option_parser(__doc__.partition("\n")[0], "indexers")
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--cache", type=Path, required=True, help="token cache of a training run")
    add("--tasks", default="single,keys,squadshifts")
    add("--modes", default=",".join(PRESSES))
    add("--fractions", default="0.25,0.125")
    add("--tokens", type=int, default=1024)
    add("--count", type=int, default=10)
    add("--first", type=int, default=0)
    parser.set_defaults(threads=1, chunk=128, dtype="float32", device="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    stream, results = Stream(options), []
    for number in range(options.first, options.first + options.count):
        for task in options.tasks.split(","):
            text = stream.texts.make(task, number)
            for fraction in map(float, options.fractions.split(",")):
                for mode in options.modes.split(","):
                    cache, seen = stream.read(text, mode, round(len(text.ids) * fraction))
                    scores = [
                        grade(task, stream.answer(cache, seen, ask.question), ask)
                        for ask in text.asks
                    ]
                    row = {"task": task, "number": number, "mode": f"kvpress {mode}"}
                    row |= {"kept": fraction, "scores": scores, "evidence_kept": None}
                    results.append(row)
    said = common_fields(find_checkpoint(options.model, offline=True), options.device)
    said |= {"benchmark": "kvpress_scorers", "kvpress": version("kvpress")}
    said |= {"threads": options.threads, "tokens": options.tokens, "chunk_tokens": options.chunk}
    rows = list(summarise(results))
    for row in rows:
        append_row(options.out, said | row)
    print_table(sorted(rows, key=lambda r: (r["task"], -r["kept"], -r["score"])), COLUMNS)


if __name__ == "__main__":
    main()
