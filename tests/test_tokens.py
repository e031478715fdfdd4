import open_clip
import pytest
import torch

from fsad_lib.errors import FsadError
from fsad_lib.foundation.tokens import end_positions, inject, insert_concepts

TOKENIZE = open_clip.SimpleTokenizer()
OBJECT = 14115


def test_positions_of_several_placeholders_and_rows():
    prompts = ["a photo of a <c_n>", "a flawless bolt", "<c_a> and <c_n>, and <c_a>."]
    ids, positions = insert_concepts(prompts, TOKENIZE, ["<c_n>", "<c_a>"])
    found = [(row, name) for row, _, name in positions]
    assert found == [(0, "<c_n>"), (2, "<c_a>"), (2, "<c_n>"), (2, "<c_a>")]
    assert all(ids[row, column] == OBJECT for row, column, _ in positions)
    plain = ["a photo of a object", "a flawless bolt", "object and object, and object."]
    assert torch.equal(ids, TOKENIZE(plain))


@pytest.mark.parametrize(
    "prompt",
    ["a <c_n>.", "a <c_n>'s edge", "a damaged<c_n>", "  odd   spaces <c_n>", "naïve “<c_n>” photo object"],
)
def test_position_holds_in_odd_prompts(prompt):
    ids, [(row, column, name)] = insert_concepts([prompt], TOKENIZE, ["<c_n>"])
    assert (row, name) == (0, "<c_n>") and ids[0, column] == OBJECT


def test_without_concepts_prompts_are_tokenized_as_they_are():
    ids, positions = insert_concepts(["a photo of an object"], TOKENIZE)
    assert positions == [] and torch.equal(ids, TOKENIZE(["a photo of an object"]))


@pytest.mark.parametrize("name", ["bottle", "c_n", "", "<start_of_text>", "<end_of_text>", "<c n>"])
def test_bad_concept_names(name):
    with pytest.raises(FsadError, match="concept name"):
        insert_concepts(["a photo"], TOKENIZE, [name])


def test_placeholder_without_vector_names_what_is_known():
    with pytest.raises(FsadError, match=r"<c_a>; known concepts: <c_n>"):
        insert_concepts(["a <c_a>"], TOKENIZE, ["<c_n>"])
    with pytest.raises(FsadError, match="none"):
        insert_concepts(["a <c_a>"], TOKENIZE)


def test_placeholder_cut_off_and_string_instead_of_list():
    with pytest.raises(FsadError, match="Shorten"):
        insert_concepts(["very " * 80 + "<c_n>"], TOKENIZE, ["<c_n>"])
    with pytest.raises(FsadError, match="list of strings"):
        insert_concepts("a photo", TOKENIZE)


def test_inject_touches_only_the_positions_and_passes_gradient():
    embeddings = torch.randn(2, 5, 3)
    before, c = embeddings.clone(), torch.randn(3, requires_grad=True)
    out = inject(embeddings, [(0, 1, "<c>"), (1, 3, "<c>")], {"<c>": c})
    changed = (out != before).any(-1)
    assert changed.nonzero().tolist() == [[0, 1], [1, 3]] and torch.equal(embeddings, before)
    out.sum().backward()
    assert torch.equal(c.grad, torch.full((3,), 2.0))
    with pytest.raises(FsadError, match="another model"):
        inject(embeddings, [(0, 1, "<c>")], {"<c>": torch.zeros(4)})


def test_end_positions_first_occurrence_and_missing():
    assert end_positions(torch.tensor([[5, 7, 7], [5, 9, 7]]), 7).tolist() == [1, 2]
    with pytest.raises(FsadError, match="end-of-text"):
        end_positions(torch.tensor([[1, 2]]), 7)
