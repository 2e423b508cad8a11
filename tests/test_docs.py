"""The pages: made from the code where they speak of it, with links that lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from test_architecture import ALLOWED, LEAVES

from indexmem_cli import ops
from indexmem_cli.bench.reader import ModelReader
from indexmem_cli.config import POLICIES, MemoryConfig, ModelConfig, ReadConfig
from indexmem_cli.documents import formats, open_sources
from indexmem_cli.engine import Reader
from indexmem_cli.memory.policies import SCORERS, make_scorer
from indexmem_cli.plan import make_plan
from indexmem_cli.session import Memory

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *(p for part in ("benchmarks", "docs", "examples", "models")
                               for p in (ROOT / part).rglob("*.md"))]  # fmt: skip
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def generate():
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_made_from_the_code_are_current(generate) -> None:
    pages = generate.make_pages()
    stale = [p for p, text in pages.items() if (DOCS / p).read_text("utf-8") != text]
    assert not stale, "run: python docs/generate.py"
    known = {DOCS / path for path in pages}
    assert not [path for path in (DOCS / "commands").iterdir() if path not in known]


def test_the_diagram_has_every_import_and_none_that_is_forbidden(generate) -> None:
    imports = generate.read_imports()
    assert imports.keys() == ALLOWED.keys() - generate.LEAVES
    assert all(targets <= ALLOWED[module] for module, targets in imports.items())
    drawn = {module: set() for module in imports}
    for line in list(generate.draw_imports(imports))[1:]:
        module, target = line.split(" --> ")
        drawn[module.strip()].add(target)
    assert sum(map(len, drawn.values())) < sum(map(len, imports.values()))
    for module in imports:
        assert generate.reached(drawn, module) == generate.reached(imports, module)
    assert LEAVES.keys() <= generate.LEAVES


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    lines = BLOCK.sub("", page.read_text("utf-8")).splitlines()
    titles = (line.lstrip("#").strip().lower() for line in lines if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), target
        assert not anchor or anchor in headings(goal), target


def test_every_page_is_reached_from_the_index() -> None:
    linked = {DOCS / link for link in LINK.findall((DOCS / "README.md").read_text("utf-8"))}
    assert linked == set(DOCS.rglob("*.md")) - {DOCS / "README.md"}


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "concepts.html").exists()


def code(heading: str) -> list[str]:
    """The blocks of code under a heading of the page on extending."""
    section = (DOCS / "extending.md").read_text("utf-8").partition(f"## {heading}\n")[2]
    return [body for _, body in BLOCK.findall(section.partition("\n## ")[0])]


def run(source: str) -> dict:
    """What the code of a page defines."""
    names = {"__name__": "page"}
    exec(compile(source, "extending.md", "exec"), names)
    return names


class TestExtending:
    def test_the_loader_reads_its_files(self, tmp_path: Path, monkeypatch) -> None:
        module, toml = code("A loader")
        point = toml.partition('"]\n')[2].replace('"', "")
        info = tmp_path / "site" / "vcards-1.dist-info"
        info.mkdir(parents=True)
        (info.parent / "vcards.py").write_text(module, "utf-8")
        (info / "METADATA").write_text("Name: vcards\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{formats.LOADERS}]\n{point}")
        monkeypatch.syspath_prepend(info.parent)
        formats._loaders.cache_clear()
        book = tmp_path / "book.vcf"
        book.write_text("BEGIN:VCARD\nFN:Ruth\nTEL:12\nEND:VCARD\nBEGIN:VCARD\nFN:Ann\nEND:VCARD\n")
        (document,) = open_sources([str(book)], ReadConfig()).documents
        found = [(p.text, p.place.line, p.place.member) for p in document.passages()]
        formats._loaders.cache_clear()
        assert document.kind == "vcard"
        assert found == [
            ("Name: Ruth\n", 1, "Ruth"),
            ("Tel: 12\n", 1, "Ruth"),
            ("Name: Ann\n", 2, "Ann"),
        ]

    def test_the_scorer_decides_what_is_kept(self, tiny_model_dir: Path, monkeypatch) -> None:
        for table in (SCORERS, POLICIES):
            monkeypatch.setitem(table, "value-norm", None)  # taken away again after the test
        run(*code("A scorer"))
        text = "the mill passes to Ruth and the fox jumps over the dog. " * 40
        options = {"model": str(tiny_model_dir), "budget": 32, "chunk_tokens": 32, "recall": False}
        memory = Memory.read_text(text, policy="value-norm", **options)
        answer = memory.ask("Who?", max_tokens=2)
        assert answer.memory.policy == "value-norm" and answer.memory.kv_tokens == 32
        backbone = make_backbone("qwen3")
        norms = {}
        for policy in ("value-norm", "random"):
            layer = make_stream(backbone, policy).state.managed[0]
            norms[policy] = layer.all_values().norm(dim=-1).mean()
        assert norms["value-norm"] > 1.1 * norms["random"], norms

    def test_the_latent_memory_joins_what_was_evicted(self) -> None:
        names = run(*code("A latent memory"))
        reader = make_stream(make_backbone("qwen3"), "keydiff", names["remember"])
        assert all(layer.latent.count == 300 - layer.held for layer in reader.state.managed)
        latent, layer = reader.state.managed[0].latent, reader.state.managed[0]
        query = torch.randn(1, 4, 3, 16, generator=torch.Generator().manual_seed(0))
        seen = ops.attend_with_lse(query, layer.all_keys(), layer.all_values(), 0.25, causal=False)
        means = [total / latent.count for total in (latent.keys, latent.values)]
        slots = zip((layer.all_keys(), layer.all_values()), means, strict=True)
        whole, _ = ops.attend_with_lse(
            query, *(torch.cat(pair, dim=2) for pair in slots), 0.25, causal=False
        )
        joined = latent.read(query, *seen, 0.25)
        torch.testing.assert_close(joined, whole)
        assert not torch.allclose(joined, seen[0])
        again = names["MeanMemory"]()
        assert again.is_silent
        again.load(latent.save())
        assert again.nbytes == latent.nbytes > 0
        assert torch.equal(again.clone().read(query, *seen, 0.25), joined)

    def test_the_task_is_measured(self, tiny_model_dir: Path) -> None:
        names = run(*code("A task"))
        reader = ModelReader(ModelConfig(model=str(tiny_model_dir), offline=True))
        (row,) = names["measure"](reader)
        assert (row["task"], row["n"], row["value"]) == ("keys", 4, 0.0)  # its weights are random


def make_stream(backbone, policy: str, prepare=lambda reader: None) -> Reader:
    """A reader that has read 300 tokens in a budget of 64."""
    plan, _ = make_plan(MemoryConfig(64, 32, "keydiff", span_tokens=1), WINDOW, 0, 9)
    reader = Reader(backbone, plan, make_scorer(policy))
    prepare(reader)
    ids = token_ids(300)
    for _ in reader.read(ids[at : at + 32] for at in range(0, len(ids), 32)):
        pass
    return reader
