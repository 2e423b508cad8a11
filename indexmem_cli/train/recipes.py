"""The recipes of the embedded model: its shape, stages, and learning rates."""

from dataclasses import dataclass, replace
from itertools import accumulate

from indexmem_cli.train.attention import TILES

Mix = dict[str, float]

COPYING: Mix = {"copy": 0.7, "facts": 0.15, "lm": 0.1, "natural": 0.05}
FADING: Mix = {"copy": 0.35, "facts": 0.35, "lm": 0.12, "natural": 0.18}
LENGTHENING: Mix = {
    "copy": 0.1,
    "facts": 0.34,
    "natural": 0.18,
    "lm": 0.18,
    "qa": 0.15,
    "code": 0.03,
    "chat": 0.02,
}
FINDING: Mix = {"facts": 0.62, "qa": 0.18, "natural": 0.1, "lm": 0.1}
WIDENING: Mix = {
    "facts": 0.5,
    "qa": 0.25,
    "natural": 0.1,
    "lm": 0.1,
    "code": 0.03,
    "chat": 0.02,
}
RECALLING: Mix = {"facts": 0.5, "qa": 0.33, "natural": 0.07, "lm": 0.1}
DEEPENING: Mix = {
    "facts": 0.36,
    "qa": 0.4,
    "natural": 0.08,
    "lm": 0.1,
    "code": 0.03,
    "chat": 0.03,
}
POLISHING: Mix = {"facts": 0.58, "qa": 0.3, "natural": 0.04, "lm": 0.08}
SETTLING: Mix = {
    "facts": 0.36,
    "qa": 0.42,
    "natural": 0.08,
    "lm": 0.08,
    "code": 0.03,
    "chat": 0.03,
}
WORDING: Mix = {
    "facts": 0.35,
    "qa": 0.4,
    "natural": 0.14,
    "lm": 0.05,
    "code": 0.03,
    "chat": 0.03,
}
TELLING_APART: Mix = {
    "facts": 0.42,
    "qa": 0.36,
    "natural": 0.12,
    "lm": 0.04,
    "code": 0.03,
    "chat": 0.03,
}
READING: Mix = {
    "facts": 0.36,
    "qa": 0.32,
    "natural": 0.14,
    "lm": 0.12,
    "code": 0.03,
    "chat": 0.03,
}


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one length with one mix of tasks."""

    num_steps: int
    length_tokens: int
    mix: Mix
    attention: str = "sdpa"
    """transformers' attention, or `TILES`: compiled, the fastest on a CPU from 1,024 tokens on, as
    "eager" is up to 512."""
    compiled: bool = False
    batch_tokens: int = 8192


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, but data and seed."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    window_tokens: int
    stages: tuple[Stage, ...]
    rounds: int = 1
    """How many times the stages follow each other."""
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup_steps: int = 40
    decay_fraction: float = 0.65
    """The last share of all steps, over which the learning rates fall linearly."""
    final_lr_fraction: float = 0.03
    threads: int = 3
    """CPU threads; 0 leaves the choice to torch."""
    checkpoint_steps: int = 100
    measure_steps: int = 200
    device: str = "cpu"
    makers: int = 0
    """Processes that make batches; 0 makes them in a thread."""
    weights_only: bool = False
    """Checkpoints hold the weights in bf16 and nothing else; a resumed run warms up anew."""
    seed_offset: int = 0
    """Added to the seed, so that a run with the stages of its start draws other rows."""
    text_fraction: float = 0.0
    """Share of a document's tokens that are trained as plain text, beside the answers."""
    renamed_fraction: float = 0.0
    """Share of the texts with real questions whose names, numbers and words are exchanged."""
    workers: int = 1
    """Processes that each train a copy of the model, on rows of their own, and share what they
    learnt every `share_steps` steps. Each makes `num_steps` steps."""
    share_steps: int = 30
    start: str | None = None
    """The recipe whose model this one begins with; None begins with random weights."""
    doubled: tuple[int, ...] = ()
    """Layers of that model that are doubled: the copy adds nothing until it is trained."""
    averaged: bool = False
    """The model is the mean of the weights the run begins with and those it ends with."""

    def rehearsed(
        self, num_steps: int | None, batch_tokens: int | None, device: str | None
    ) -> "Recipe":
        """Return the recipe with fewer steps, smaller batches, or another device.

        Every stage stays, with at least one step. What is compiled for a GPU runs plainly on a CPU.
        """
        plain = device == "cpu" and self.device != "cpu"
        share = num_steps / self.num_steps if num_steps else 1.0
        stages = tuple(
            replace(
                stage,
                num_steps=max(1, round(stage.num_steps * min(1.0, share * self.rounds))),
                batch_tokens=batch_tokens or stage.batch_tokens,
                compiled=stage.compiled and not plain,
            )
            for stage in self.stages
        )
        warmup = max(1, round(self.warmup_steps * share))
        device = device or self.device
        rounds = max(1, round(self.rounds * share))
        return replace(self, stages=stages, rounds=rounds, warmup_steps=warmup, device=device)

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return self.rounds * sum(stage.num_steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """Return the stage that `step` (counted from 0) belongs to."""
        step %= self.num_steps // self.rounds
        ends = accumulate(stage.num_steps for stage in self.stages)
        return next(stage for stage, end in zip(self.stages, ends, strict=True) if step < end)

    def lr_fraction(self, step: int) -> float:
        """Share of the full learning rate at `step`: warm-up, plateau, decay."""
        decay_steps = max(1, round(self.num_steps * self.decay_fraction))
        progress = max(0.0, 1 - (self.num_steps - step) / decay_steps)
        decay = self.final_lr_fraction + (1 - self.final_lr_fraction) * (1 - progress)
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * decay


# A length that has not been trained for a thousand steps is half forgotten, so all take turns.
ALL_LENGTHS = (
    Stage(1, 512, SETTLING, "eager", compiled=True),
    Stage(1, 1024, SETTLING, TILES, compiled=True),
    Stage(1, 256, SETTLING, "eager", compiled=True),
    Stage(1, 512, SETTLING, "eager", compiled=True),
    Stage(1, 1024, SETTLING, TILES, compiled=True),
    Stage(1, 512, SETTLING, "eager", compiled=True),
    Stage(1, 2048, SETTLING),
    Stage(1, 256, SETTLING, "eager", compiled=True),
    Stage(1, 512, SETTLING, "eager", compiled=True),
    Stage(1, 1024, SETTLING, TILES, compiled=True),
)

# The same with one row in twenty of 2,048 tokens, and more questions made from the prose itself.
ALL_WORDINGS = tuple(
    replace(stage, mix=WORDING)
    for stage in (*ALL_LENGTHS, *ALL_LENGTHS[:6], ALL_LENGTHS[4], *ALL_LENGTHS[7:])
)

# The same with more facts among others that are easily taken for them.
ALL_APART = tuple(replace(stage, mix=TELLING_APART) for stage in ALL_WORDINGS)

CPU_SHALLOW = Recipe(
    hidden=256,
    layers=4,
    heads=4,
    kv_heads=2,
    intermediate=768,
    window_tokens=2048,
    stages=(
        Stage(320, 128, COPYING, "eager", compiled=True),
        Stage(230, 128, FADING, "eager", compiled=True),
        Stage(300, 256, LENGTHENING, "eager", compiled=True),
        Stage(150, 512, READING, "eager", compiled=True),
        Stage(250, 128, FINDING, "eager", compiled=True),
        Stage(500, 128, FINDING, "eager", compiled=True, batch_tokens=4096),
        Stage(700, 256, WIDENING, "eager", compiled=True, batch_tokens=4096),
        Stage(500, 512, WIDENING, "eager", compiled=True, batch_tokens=4096),
        Stage(1050, 512, READING, "eager", compiled=True, batch_tokens=4096),
        Stage(1000, 1024, READING, batch_tokens=4096),
        Stage(300, 2048, READING),
        Stage(650, 1024, RECALLING, batch_tokens=4096),
        Stage(150, 2048, RECALLING, batch_tokens=4096),
    ),
)
CPU_DEEP = replace(
    CPU_SHALLOW,
    layers=6,
    stages=(
        Stage(800, 256, DEEPENING, "eager", compiled=True),
        Stage(1100, 512, DEEPENING, "eager", compiled=True),
        Stage(650, 1024, DEEPENING),
        Stage(60, 2048, DEEPENING),
        Stage(190, 512, DEEPENING, "eager", compiled=True),
        Stage(130, 1536, DEEPENING),
        Stage(120, 512, DEEPENING, "eager", compiled=True),
        Stage(250, 512, POLISHING, "eager", compiled=True),
    ),
    muon_lr=0.015,
    adam_lr=2e-3,
    decay_fraction=0.8,
    start="cpu-shallow",
    doubled=(1, 2),
)
CPU_TURNS = replace(
    CPU_DEEP, stages=ALL_LENGTHS, rounds=340, decay_fraction=0.85, start="cpu-deep", doubled=()
)
CPU_AGAIN = replace(
    CPU_TURNS,
    rounds=200,
    muon_lr=0.01,
    adam_lr=1.3e-3,
    seed_offset=1,
    start="cpu-turns",
    averaged=True,
)
CPU_LABELS = replace(CPU_AGAIN, rounds=64, seed_offset=2, start="cpu-again")
CPU_WORDS = replace(CPU_AGAIN, rounds=120, seed_offset=3, start="cpu-labels")
CPU_EIGHT = replace(
    CPU_DEEP,
    layers=8,
    stages=ALL_WORDINGS,
    rounds=170,
    muon_lr=0.013,
    adam_lr=1.7e-3,
    decay_fraction=0.85,
    seed_offset=5,
    start="cpu-words",
    doubled=(2, 4),
    averaged=True,
    text_fraction=0.4,
)
CPU_RENAMED = replace(
    CPU_EIGHT,
    rounds=75,
    muon_lr=0.01,
    adam_lr=1.3e-3,
    seed_offset=6,
    start="cpu-eight",
    doubled=(),
    renamed_fraction=0.8,
    threads=1,
    workers=4,
    checkpoint_steps=60,
    measure_steps=150,
)
CPU_LINES = replace(CPU_RENAMED, rounds=48, seed_offset=7, start="cpu-renamed")
CPU = replace(CPU_LINES, stages=ALL_APART, rounds=50, seed_offset=8, start="cpu-lines")

RECIPES = {
    "cpu": CPU,
    "cpu-lines": CPU_LINES,
    "cpu-renamed": CPU_RENAMED,
    "cpu-eight": CPU_EIGHT,
    "cpu-words": CPU_WORDS,
    "cpu-labels": CPU_LABELS,
    "cpu-again": CPU_AGAIN,
    "cpu-turns": CPU_TURNS,
    "cpu-deep": CPU_DEEP,
    "cpu-shallow": CPU_SHALLOW,
    "gpu": Recipe(
        hidden=512,
        layers=9,
        heads=8,
        kv_heads=2,
        intermediate=1536,
        window_tokens=4096,
        stages=(
            Stage(400, 128, COPYING, compiled=True, batch_tokens=262_144),
            Stage(200, 256, FADING, compiled=True, batch_tokens=262_144),
            Stage(400, 512, LENGTHENING, compiled=True, batch_tokens=262_144),
            Stage(1400, 1024, READING, compiled=True, batch_tokens=262_144),
            Stage(900, 2048, READING, compiled=True, batch_tokens=262_144),
            Stage(600, 4096, READING, compiled=True, batch_tokens=262_144),
        ),
        threads=0,
        checkpoint_steps=400,
        measure_steps=400,
        device="cuda",
        makers=4,
        weights_only=True,
    ),
}
