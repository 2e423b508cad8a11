"""Saved memories: what is loaded is what was saved, and everything else is refused by name."""

import json
import os
import random
import shutil
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from safetensors.torch import load_file, save_file
from saved import blank

from indexmem_cli.archive import Archive
from indexmem_cli.config import POLICIES, AnswerConfig, MemoryConfig
from indexmem_cli.documents import Place
from indexmem_cli.engine import make_reader
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.library import MANIFEST, Library
from indexmem_cli.library.disk import blake2b, write_atomic
from indexmem_cli.library.listing import find_memory
from indexmem_cli.library.manifest import Key, Part
from indexmem_cli.library.saver import Saver, find_base, known_chunks, restore
from indexmem_cli.memory.adapter import Adapter
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer
from indexmem_cli.plan import make_plan
from indexmem_cli.tokens import Entry

CHUNK = 32
IDS = token_ids(300)
QUESTION = token_ids(9, seed=1)


@pytest.fixture(scope="module")
def backbones():
    made = {}
    return lambda family: made.setdefault(family, make_backbone(family))


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "memories")


def new_reader(backbone, policy="knorm"):
    config = MemoryConfig(budget_tokens=96, chunk_tokens=CHUNK, policy=policy)
    plan, _ = make_plan(config, WINDOW, 0, len(QUESTION))
    return make_reader(backbone, plan, config, QUESTION)


def chunks(ids):
    return [ids[first : first + CHUNK] for first in range(0, len(ids), CHUNK)]


def decode(ids):
    return "".join(f" w{i}" for i in ids)


def read(saver, reader, ids=IDS, checkpoint_at=()):
    """Read and save as a session does; return the manifest."""
    archive = Archive.create(path := saver.new_archive(), decode)
    for number, chunk in enumerate(chunks(ids)):
        place = Place("book.txt", None, None, number + 1)
        archive.add([Entry(saver.chain.tokens, list(chunk), place)])
        if number in checkpoint_at:
            saver.checkpoint(reader.state, reader.scorer)
        list(reader.read([chunk]))
        saver.chain.add(chunk)
    archive.commit(last=True)
    archive.close()
    return saver.finish(reader.state, reader.scorer, path, {"tokens_read": len(ids)}, 1.0)


def start(library, manifest=None, **options):
    saver = Saver(library, manifest or blank(chunk_tokens=CHUNK), CHUNK, **options)
    saver.begin()
    return saver


def load(library, manifest, backbone, policy="knorm", saved=None):
    reader = new_reader(backbone, policy)
    restore(
        library,
        manifest,
        saved or manifest.states[-1],
        reader.state,
        reader.scorer,
        backbone.kv_shapes,
        backbone.model.dtype,
        backbone.layer_devices,
    )
    return reader


def answer(reader):
    return [step.token_id for step in reader.fork().answer(QUESTION, AnswerConfig(8), set())]


def assert_same(a, b):
    assert (a.seen, a.held, a.compact, a.uniform) == (b.seen, b.held, b.compact, b.uniform)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.held == other.held
        for name in ("keys", "values", "positions", "scores"):
            if hasattr(one, name):
                first = getattr(one, name)[:, :, : one.held]
                assert torch.equal(first, getattr(other, name)[:, :, : one.held]), name


@pytest.fixture
def saved(library, backbones):
    """A whole memory of three parts: a base, the end and the text."""
    saver = start(library)
    return read(saver, new_reader(backbones("qwen3")), checkpoint_at=(9,))


class TestRoundTrip:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_reading_goes_on_as_if_it_had_never_stopped(self, backbones, library, policy):
        backbone = backbones("qwen3")
        torch.manual_seed(0)
        indexer = make_indexer(IndexerConfig("shared", (0, 1, 2), 64, 2, 4, 16))
        backbone.load_adapter = lambda: Adapter(indexer, "", "")
        whole, first = new_reader(backbone, policy), new_reader(backbone, policy)
        list(whole.read(chunks(IDS)))
        list(first.read(chunks(IDS)[:5]))
        saver = start(library)
        for chunk in chunks(IDS)[:5]:
            saver.chain.add(chunk)
        saver.checkpoint(first.state, first.scorer)
        manifest = library.load_checkpoint(saver.blank.key)
        second = load(library, manifest, backbone, policy)
        assert_same(second.state, first.state)
        list(second.read(chunks(IDS)[5:]))
        assert_same(second.state, whole.state)
        assert answer(second) == answer(whole)

    @pytest.mark.parametrize("family", ["gemma3", "mistral-sliding", "phi3"])
    def test_every_kind_of_layer_is_saved(self, backbones, library, family):
        backbone = backbones(family)
        reader = new_reader(backbone)
        manifest = read(start(library), reader)
        again = load(library, manifest, backbone)
        assert_same(again.state, reader.state)
        assert answer(again) == answer(reader)

    def test_a_base_is_kept_for_a_text_that_grows(self, backbones, library, saved):
        assert [state.chunks for state in saved.states] == [9, 10]
        grown = chunks(IDS + token_ids(50, seed=3))
        known = known_chunks(grown, saved.chain)
        assert known == 9, "the last chunk was not full, so it is another one now"
        base = find_base(saved, known, CHUNK)
        reader = load(library, saved, backbones("qwen3"), saved=base)
        list(reader.read(grown[base.chunks :]))
        whole = new_reader(backbones("qwen3"))
        list(whole.read(grown))
        assert_same(reader.state, whole.state)

    def test_a_text_that_changed_early_has_no_base(self, saved):
        changed = [7, *IDS[1:]]
        assert known_chunks(chunks(changed), saved.chain) == 0
        assert find_base(saved, 0, CHUNK) is None

    def test_nothing_is_left_over_beside_what_is_named(self, library, saved):
        folder = library.folder(saved.id)
        assert {path.name for path in folder.iterdir()} == {MANIFEST, *saved.parts}
        assert library.verify(saved.id) == saved == library.find(saved.key)

    def test_a_memory_is_only_for_its_owner(self, library, saved):
        assert library.folder(saved.id).stat().st_mode & 0o077 == 0

    def test_a_new_reading_replaces_the_old_one_at_its_end(self, library, saved, backbones):
        saver = start(library)
        saver.checkpoint(
            new_reader(backbones("qwen3")).state, new_reader(backbones("qwen3")).scorer
        )
        assert library.verify(saved.id) == saved, "the old one is whole until the new one is"
        saver = start(library)
        new = read(saver, new_reader(backbones("qwen3")))
        assert library.verify(saved.id) == new != saved
        assert not set(new.parts) & set(saved.parts)
        assert len(list(library.folder(saved.id).iterdir())) == 1 + len(new.parts)


def test_what_has_no_manifest_yet_is_found_by_its_id_alone(library):
    library.folder("0" * 12).mkdir(parents=True)
    assert find_memory(library, "0000") == "0" * 12
    with pytest.raises(MemoryFileError, match="no memory"):
        find_memory(library, "?")


def test_what_vanishes_meanwhile_hides_no_other_leftover(library):
    library.root.mkdir()
    for name in (".gone-a", ".gone-b"):
        (library.root / name).mkdir()
        os.utime(library.root / name, (0, 0))
    (library.root / ".gone-vanished").symlink_to("nowhere")  # listed, and no longer there
    assert {path.name for path in library.leftovers()} == {".gone-a", ".gone-b"}


def rewrite(library, manifest, **changes):
    """Write a manifest whose checksum is right, whatever it says."""
    data = {**asdict(manifest), **changes}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    outer = {"checksum": blake2b(text.encode()), "manifest": data}
    write_atomic(library.folder(manifest.id) / MANIFEST, json.dumps(outer).encode())


def resign(library, manifest, name):
    """Make the manifest agree with a part that was changed: only its content is wrong then."""
    data = (library.folder(manifest.id) / name).read_bytes()
    parts = {**manifest.parts, name: Part(len(data), blake2b(data))}
    changed = replace(manifest, parts=parts)
    library.write(changed)
    return changed


@dataclass
class Touching:
    """Leaves a file when it is unpickled."""

    path: Path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestDamage:
    def test_every_flipped_bit_and_every_cut_is_found(self, library, saved, backbones):
        """300 cases over all files; each is refused by name, or changes nothing that is loaded."""
        chance = random.Random(5)
        folder = library.folder(saved.id)
        whole = load(library, saved, backbones("qwen3"))
        for case in range(300):
            path = folder / chance.choice([MANIFEST, *sorted(saved.parts)])
            good = path.read_bytes()
            data = bytearray(good)
            kind = case % 4
            if kind == 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del data[chance.randrange(len(data)) :]
            elif kind == 2:
                at = chance.randrange(len(data))
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            else:
                data += chance.randbytes(chance.randrange(1, 64))
            path.write_bytes(data)
            try:
                found = library.verify(saved.id)
                reader = load(library, found, backbones("qwen3"))
            except MemoryFileError as error:
                assert saved.id in error.message and error.hint and error.exit_code == 4
            else:
                assert data == good or path.name == MANIFEST, (case, path.name)
                assert found == saved
                assert_same(reader.state, whole.state)
            path.write_bytes(good)
        assert library.verify(saved.id) == saved

    @pytest.mark.parametrize("missing", ["manifest", "state", "text"])
    def test_a_missing_file_is_named(self, library, saved, missing):
        next(library.folder(saved.id).glob(f"{missing}*")).unlink()
        with pytest.raises(MemoryFileError, match=saved.id):
            library.load(saved.id)

    @pytest.mark.parametrize("version", [0, 2, "2", None])
    def test_another_format_version_is_refused(self, library, saved, version):
        rewrite(library, saved, format=version)
        with pytest.raises(MemoryFileError, match="format") as caught:
            library.load(saved.id)
        assert ("newer" in caught.value.hint) == (version == 2)

    def test_a_memory_under_another_id_is_refused(self, library, saved):
        other = "0" * 12
        shutil.copytree(library.folder(saved.id), library.folder(other))
        with pytest.raises(MemoryFileError, match=other):
            library.load(other)

    @pytest.mark.parametrize(
        "changes",
        [
            {"tokens": -1},
            {"tokens": "300"},
            {"tokens": True},
            {"chain": []},
            {"states": []},
            {"parts": {}},
            {"archive": "../text.sqlite"},
            {"archive": 3},
            {"files": {"a": 1}},
            {"more": 1},
            {"name": ["x"]},
        ],
        ids=str,
    )
    def test_a_manifest_that_makes_no_sense_is_refused(self, library, saved, changes):
        rewrite(library, saved, **changes)
        with pytest.raises(MemoryFileError, match="manifest"):
            library.load(saved.id)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", "null", "[" * 100_000, '{"checksum": 1}'])
    def test_a_manifest_that_is_none_is_refused(self, library, saved, text):
        (library.folder(saved.id) / MANIFEST).write_text(text)
        with pytest.raises(MemoryFileError, match="manifest"):
            library.load(saved.id)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("keys", lambda t: t[..., :-1]),
            ("keys", lambda t: t[:, :1]),
            ("keys", lambda t: t.half()),
            ("values", lambda t: t[:, :, :-1]),
            ("values", lambda t: t[0]),
            ("positions", lambda t: t.flip(-1)),
            ("positions", lambda t: t + 1000),
            ("positions", lambda t: t - 1),
            ("positions", lambda t: t.int()),
            ("scores", lambda t: t.double()),
            ("scores", None),
            ("more", lambda t: torch.zeros(3)),
        ],
    )
    def test_tensors_of_another_model_are_refused(self, library, saved, backbones, name, change):
        part = saved.states[-1].part
        path = library.folder(saved.id) / part
        tensors = load_file(path)
        full = f"layers.1.{name}"
        old = tensors.pop(full, None)
        if change:
            tensors[full] = change(old).contiguous()
        save_file(tensors, path)
        changed = resign(library, saved, part)
        with pytest.raises(MemoryFileError, match=part):
            load(library, changed, backbones("qwen3"))

    def test_layers_without_a_token_are_refused(self, library, saved, backbones):
        part = saved.states[-1].part
        path = library.folder(saved.id) / part
        save_file({n: t[:, :, :0].contiguous() for n, t in load_file(path).items()}, path)
        changed = resign(library, saved, part)
        with pytest.raises(MemoryFileError, match=part):
            load(library, changed, backbones("qwen3"))

    def test_a_memory_of_another_model_is_refused(self, library, saved, backbones):
        for family in ("gemma3", "mistral-sliding"):
            other = backbones(family)
            with pytest.raises(MemoryFileError, match="model|layer"):
                load(library, saved, other)

    def test_ids_that_collide_are_told_apart(self, library, backbones, monkeypatch):
        monkeypatch.setattr(Key, "id", "0" * 12)
        manifest = read(start(library), new_reader(backbones("qwen3")))
        assert library.find(manifest.key) == manifest
        with pytest.raises(MemoryFileError, match="another"):
            library.find(replace(manifest.key, model="another"))

    @pytest.mark.parametrize(
        "header", [2**62, 2**27, 0, 7], ids=["huge", "over the limit", "empty", "cut"]
    )
    def test_a_header_of_any_length_is_refused(self, library, saved, backbones, header):
        part = saved.states[-1].part
        (library.folder(saved.id) / part).write_bytes(struct.pack("<Q", header) + b'{"a":{}}' * 8)
        changed = resign(library, saved, part)
        with pytest.raises(MemoryFileError, match=part):
            load(library, changed, backbones("qwen3"))

    def test_tensors_that_overlap_or_lie_outside_are_refused(self, library, saved, backbones):
        part = saved.states[-1].part
        path = library.folder(saved.id) / part
        good = path.read_bytes()
        (size,) = struct.unpack("<Q", good[:8])
        header = json.loads(good[8 : 8 + size])
        for offsets in ([0, 10**12], [4, 2], [-4, 0], [0, 0]):
            name = next(name for name in header if name.endswith("keys"))
            bad = {**header, name: {**header[name], "data_offsets": offsets}}
            text = json.dumps(bad).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + size :])
            changed = resign(library, saved, part)
            with pytest.raises(MemoryFileError, match=part):
                load(library, changed, backbones("qwen3"))

    def test_a_pickle_is_never_opened(self, library, saved, backbones, tmp_path):
        part = saved.states[-1].part
        path = library.folder(saved.id) / part
        torch.save(Touching(tmp_path / "ran"), path)  # noqa: TID251
        changed = resign(library, saved, part)
        with pytest.raises(MemoryFileError, match=part):
            load(library, changed, backbones("qwen3"))
        assert not (tmp_path / "ran").exists()
