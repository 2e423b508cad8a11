"""Questions that name something of source code lead to where it is defined."""

import pytest

from indexmem_cli.archive import Archive
from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.memory.naming import find_definitions, find_names
from indexmem_cli.memory.recall import Recall, load_gate
from indexmem_cli.tokens import read_chunks

FILES = {
    "sizes.py": "MAX_BYTES: int = 7\n\n\ndef parse_size(text):\n    return len(text)\n",
    "uses.py": "\n".join(f"x{i} = parse_size('{i}') < MAX_BYTES == {i}" for i in range(40)),
    "join.c": "#define RING_SIZE 8\n\nchar *sdsjoin(char **argv) {\n    return argv[0];\n}\n",
    "ring.c": "int ring(void) {\n    return RING_SIZE + sdsjoin_all(0);\n}\n" * 9,
    "app.js": "class Option {\n  hideHelp(hide) {\n    return hide;\n  }\n}\n",
    "options.py": 'def run(x: bool):\n    return option("--offline", x)\n',
}


class Words:
    """A tokenizer of characters."""

    def encode_batch(self, texts):
        return [list(map(ord, text)) for text in texts]


@pytest.fixture
def archive(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    archive = Archive.create(None, lambda ids: "".join(map(chr, ids)))
    documents = open_sources([str(tmp_path)], ReadConfig()).documents
    for chunk in read_chunks((p for d in documents for p in d.passages()), Words(), 64):
        archive.add(chunk.entries)
    archive.commit(last=True)
    yield archive
    archive.close()


@pytest.mark.parametrize(
    ("question", "file", "line"),
    [
        ("Where is parse_size defined?", "sizes.py", "def parse_size"),
        ("Which file sets MAX_BYTES?", "sizes.py", "MAX_BYTES: int = 7"),
        ("What is RING_SIZE?", "join.c", "#define RING_SIZE 8"),
        ("What does the function sdsjoin do?", "join.c", "char *sdsjoin("),
        ("What does hideHelp do?", "app.js", "hideHelp(hide) {"),
        ("Where is the option --offline?", "options.py", '"--offline"'),
    ],
)
def test_the_block_that_defines_a_name_comes_first(archive, question, file, line):
    [number] = find_definitions(archive, question)
    block = archive.block(number)
    assert block.entries[0].place.file.endswith(file)
    assert line in archive.text(block)
    recall = Recall(archive, question, load_gate())
    recall.run(200, 400)
    assert number in [found.block.number for found in recall.rounds[0][1]]


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Who inherits the mill of Zanzibar?", []),
        ("Which version of jest is in devDependencies?", ["devDependencies"]),
        ("What does the function run do, and load() and --no-save?", ["--no-save", "run", "load"]),
        ("What is __init__ or _x?", ["__init__"]),
    ],
)
def test_words_of_prose_are_no_names(question, names):
    assert find_names(question) == names
