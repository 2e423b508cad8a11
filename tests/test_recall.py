"""The gate: which blocks are read again for a question, how many, and in which rounds."""

import json
from dataclasses import replace

import pytest
from test_archive import HOSTILE, TOKENIZER, write

from indexmem_cli.archive import Archive
from indexmem_cli.documents import Place
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.memory.candidates import find_candidates, find_links, follow
from indexmem_cli.memory.completing import complete
from indexmem_cli.memory.recall import MAX_ROUNDS, Recall, load_gate
from indexmem_cli.tokens import Entry

FILLER = [f"Nothing of note happened on day {n} of the long voyage by sea." for n in range(90)]
FACTS = {
    10: "The silver lantern was left with Edmund Tarrow.",
    40: "Captain Obed painted the harbour of Vell in the spring.",
    70: "Edmund Tarrow now lives in Quillport by the sea.",
}
LINES = [FACTS.get(n, line) for n, line in enumerate(FILLER)]


@pytest.fixture
def archive(tmp_path):
    return write(tmp_path / "a.sqlite", LINES)


def look(archive, question, room=200, budget=400):
    recall = Recall(archive, question, load_gate())
    recall.run(room, budget)
    return recall


def texts(archive, recall):
    return "".join(map(archive.text, recall.blocks))


def test_the_block_that_states_it_is_found(archive):
    recall = look(archive, "Who painted the harbour of Vell?")
    assert FACTS[40] in texts(archive, recall)
    (query, found), *_ = recall.rounds
    assert query == "Who painted the harbour of Vell?" and 0.5 < found[0].odds < 1


def test_a_second_round_follows_the_name_that_the_first_found(archive):
    recall = look(archive, "In which place does the person with the silver lantern live?")
    assert FACTS[10] in texts(archive, recall) and FACTS[70] in texts(archive, recall)
    second_query, second = recall.rounds[1]
    assert "edmund" in second_query.lower() and FACTS[70] in archive.text(second[0].block)
    assert len(recall.rounds) <= MAX_ROUNDS


def test_a_further_round_proposes_nothing_that_is_known(archive):
    question = "In which place does the person with the silver lantern live?"
    first = look(archive, question).rounds[0][1]
    blocks = [one.block for one in first]
    names, links = find_links(archive, question, blocks)
    assert ("edmund", "tarrow") in names
    numbers = [candidate.number for candidate in follow(archive, question, names, links, blocks)]
    assert numbers and not set(numbers) & {block.number for block in blocks}


def test_blocks_come_in_the_order_of_the_text_and_once(archive):
    recall = look(archive, "Who lives in Quillport and who has the silver lantern of Vell?")
    numbers = [block.number for block in recall.blocks]
    assert len(numbers) > 1 and numbers == sorted(set(numbers))


@pytest.mark.parametrize("budget", [0, 50, 130, 260, 400])
def test_blocks_stay_inside_the_budget(archive, budget):
    for question in ("Who has the silver lantern?", "Where does Edmund Tarrow live by the sea?"):
        blocks = look(archive, question, room=min(130, budget), budget=budget).blocks
        assert sum(block.end - block.first for block in blocks) <= budget


WINTER = "The ship lay in the harbour all winter, and nobody went on board until spring came.\n"
CUT = [
    WINTER,
    "Then the keeper of it,",
    " old Edmund",
    " Tarrow, rang",
    " the bell.",
    " No one heard.\n",
]


def write_lines(path, texts, files=("book.txt",) * 99):
    """An archive of passages that go on in the next one where they have no line end."""
    archive, first = Archive.create(path, TOKENIZER.decode), 0
    for number, (text, file) in enumerate(zip(texts, files, strict=False), 1):
        entry = Entry(first, TOKENIZER.encode(text), Place(file, None, None, number))
        archive.add([entry])
        first = entry.end
    archive.commit(last=True)
    return archive


def completed(archive, number, room=99):
    found = complete(archive, archive.block(number), room)
    return sorted((archive.text_of(entry) for entry in found), key=CUT.index)


def test_a_block_that_cuts_a_sentence_is_completed(tmp_path):
    archive = write_lines(tmp_path / "a", CUT)
    assert [len(block.entries) for block in archive] == [3, 3]
    assert completed(archive, 0) == CUT[3:5]
    assert completed(archive, 1) == CUT[1:3]
    assert completed(archive, 0, room=22) == [] != completed(archive, 0, room=23)
    long = [*CUT[:3], CUT[3] + " and rang" * 5, *CUT[4:]]
    assert completed(write_lines(tmp_path / "b", long), 0) == []
    files = ["a.txt"] * 3 + ["b.txt"] * 3
    assert completed(write_lines(tmp_path / "c", CUT, files), 0) == []
    assert completed(write_lines(tmp_path / "d", [text.strip() + "\n" for text in CUT]), 1) == []


def test_what_completes_blocks_is_read_once_and_inside_the_budget(tmp_path):
    archive, gate = write_lines(tmp_path / "a", [*CUT, *LINES]), load_gate()
    eager = replace(gate, first=replace(gate.first, least=0.0))
    for budget in range(110, 400, 15):
        recall = Recall(archive, "Who rang the bell of the ship that lay in the harbour?", eager)
        recall.run(budget, budget)
        places = [entry.first for entry in recall.entries]
        assert places == sorted(set(places))
        assert sum(len(entry.ids) for entry in recall.entries) <= budget
    assert "".join(map(archive.text_of, recall.entries)).startswith("".join(CUT))
    assert any(one.completing for one in recall.found)


def test_words_that_stand_nowhere_recall_nothing(archive):
    assert look(archive, "Zyx qwv?").rounds == [("Zyx qwv?", [])]
    assert look(archive, "?!").blocks == []
    assert find_candidates(archive, "") == []


def test_where_nothing_is_likely_enough_the_gate_says_none(archive):
    gate = load_gate()
    closed = replace(gate, first=replace(gate.first, least=1.0))
    recall = Recall(archive, "Who painted the harbour of Vell?", closed)
    recall.run(200, 400)
    assert recall.blocks == []


def test_the_room_decides_how_many_blocks_a_round_brings(archive):
    gate = load_gate()
    eager = replace(gate, first=replace(gate.first, least=0.0))
    counts = []
    for room in (130, 260, 400):
        recall = Recall(archive, "Who lives in Vell with the lantern of Obed and Edmund?", eager)
        recall.run(room, room)
        counts.append(len(recall.rounds[0][1]))
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("question", HOSTILE)
def test_no_question_is_a_query(archive, question):
    look(archive, question)
    assert FACTS[40] in texts(
        archive, look(archive, f"{question} Who painted the harbour of Vell?")
    )


def test_a_gate_without_a_feature_is_refused(tmp_path):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({"first": {}, "further": {}}))
    with pytest.raises(MemoryFileError, match="gate.json"):
        load_gate(path)
