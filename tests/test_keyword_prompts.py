"""WordNet's relations from each source, the words of every object name, and equation 1."""

import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_clip import tiny_clip

from fsad_lib import datasets
from fsad_lib.errors import FsadError
from fsad_lib.tgvig import wordnet
from fsad_lib.tgvig.keyword_prompts import ALIASES, best_prompt, candidate_words, prompt, select
from fsad_lib.tgvig.wordnet import Related, WordNetFiles, lookup, walk

DEBIAN = Path("/usr/share/wordnet")
# lemmas, pointers (symbol, target): bolt -> fastener -> thing; bolt has a head, whose part is a slot; a cycle; a verb pointer
TOY = [
    (["bolt", "Machine_Bolt"], [("@", 1), ("%p", 2), ("~", 4), ("+", 3)]),
    (["fastener"], [("@", 3), ("~", 0)]),
    (["head"], [("#p", 0), ("%p", 5)]),
    (["thing"], [("~", 1)]),
    (["stud_bolt"], [("@", 0), ("~", 6)]),
    (["slot"], [("#p", 2)]),
    (["bolt"], [("@", 4)]),  # a second sense, and a word that is its own hyponym's hyponym
]


def toy_files(folder: Path) -> Path:
    """Princeton's two files for TOY; offsets are found by writing twice, since a line's length does not depend on them."""
    head = "  1 This line stands for the licence.\n"
    offsets = [0] * len(TOY)
    for _ in range(2):
        text, found = head, []
        for lemmas, pointers in TOY:
            found.append(len(text))
            kinds = [f"{symbol} {offsets[t]:08d} {'v' if symbol == '+' else 'n'} 0000" for symbol, t in pointers]
            text += f"{found[-1]:08d} 06 n {len(lemmas):02x} {' '.join(f'{w} 0' for w in lemmas)} {len(pointers):03d} {' '.join(kinds)} | gloss | with a bar  \n"
        offsets = found
    folder.mkdir(exist_ok=True)
    (folder / "data.noun").write_text(text)
    words = {}
    for i, (lemmas, _) in enumerate(TOY):
        for w in lemmas:
            words.setdefault(w.lower(), []).append(offsets[i])
    index = [f"{w} n {len(o)} 2 @ ~ {len(o)} 0 {' '.join(f'{v:08d}' for v in o)}  " for w, o in sorted(words.items())]
    (folder / "index.noun").write_text(head + "\n".join(index) + "\n")
    return folder


def test_walk_over_princetons_files(tmp_path):
    files = WordNetFiles(toy_files(tmp_path))
    first = [r for r in walk(files.synsets("bolt"), 2) if r.sense == 1]
    assert first == [
        Related("bolt", "synonym", 0, 1), Related("Machine Bolt", "synonym", 0, 1),
        Related("fastener", "hypernym", 1, 1), Related("thing", "hypernym", 2, 1),
        Related("stud bolt", "hyponym", 1, 1), Related("bolt", "hyponym", 2, 1),
        Related("head", "part", 1, 1), Related("slot", "part", 2, 1),
    ]  # fmt: skip
    assert {r.depth for r in walk(files.synsets("bolt"), 1)} == {0, 1}
    assert [r.lemma for r in walk(files.synsets("slot"), 5)] == ["slot", "head", "bolt", "Machine Bolt"]
    assert len(files.synsets("machine bolt")) == 1 and not files.synsets("nut")
    assert list(walk(files.synsets("thing"), 9)), "ends although hyponyms run in a circle"
    with pytest.raises(FsadError, match=r"data\.noun.*wordnet-base"):
        WordNetFiles(tmp_path / "none")


def test_written_relations_read_back(tmp_path):
    folder, out = toy_files(tmp_path), tmp_path / "relations.csv"
    assert wordnet.write_relations(folder, out, ["bolt", "unknown"], depth=3) == sum(len(v) for v in wordnet.shipped(out).values())
    assert wordnet.shipped(out)["bolt"] == list(dict.fromkeys(walk(WordNetFiles(folder).synsets("bolt"), 3)))
    out.write_text("a,b\n")
    with pytest.raises(FsadError, match="expected word,sense,relation,depth,lemma"):
        wordnet.shipped(out)
    with pytest.raises(FsadError, match="Restore"):
        wordnet.shipped(tmp_path / "none.csv")


def test_nltk_is_used_where_its_corpus_is(tmp_path, monkeypatch):
    files = WordNetFiles(toy_files(tmp_path))
    asked = []

    class Corpus(types.ModuleType):
        class wordnet:  # noqa: N801
            ensure_loaded = staticmethod(lambda: None)
            synsets = staticmethod(lambda word, pos: asked.append((word, pos)) or files.synsets(word))

    monkeypatch.setattr(wordnet.importlib, "import_module", lambda name: Corpus(name))
    found, where = lookup("machine bolt", 7)
    assert where == "nltk's WordNet" and asked == [("machine_bolt", "n")] and {r.lemma for r in found} >= {"thing", "slot"}
    assert lookup("hazelnut", 1, "shipped")[1].startswith("WordNet 3.0")

    def missing():
        raise LookupError("corpus not found")

    Corpus.wordnet.ensure_loaded = staticmethod(missing)
    assert lookup("hazelnut", 1)[1].startswith("WordNet 3.0")
    with pytest.raises(FsadError, match="pip install nltk"):
        lookup("hazelnut", 1, "nltk")


def test_the_shipped_file_holds_what_wordnet_says_and_no_more():
    table = wordnet.shipped()
    assert {r.relation for rows in table.values() for r in rows} == set(wordnet.RELATIONS)
    assert max(r.depth for rows in table.values() for r in rows) == wordnet.SHIPPED_DEPTH
    assert all(r.depth == 0 if r.relation == "synonym" else r.depth for rows in table.values() for r in rows)
    # the paper's best word for the hazelnut is one of its synonyms
    assert Related("cobnut", "synonym", 0, 2) in table["hazelnut"]
    text = (Path(wordnet.relations_file()).parent / "README.md").read_text()
    assert "Princeton University" in text and wordnet.relations_file().stat().st_size < 500_000


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's wordnet-base")
def test_the_shipped_file_is_made_by_the_command_that_its_readme_gives(tmp_path):
    wordnet.write_relations(DEBIAN, tmp_path / "again.csv", wordnet.object_words())
    assert (tmp_path / "again.csv").read_bytes() == wordnet.relations_file().read_bytes()


# ---------------------------------------------------------------- words of an object's name
@pytest.mark.parametrize("dataset", [d for d in datasets.DATASETS if d != "folder"])
def test_every_category_has_words(dataset):
    for category in datasets.categories(dataset):
        found = candidate_words(datasets.class_name(dataset, category), source="shipped")
        assert len(found.words) >= 5 and len(set(found.words)) == len(found.words) == len(found.origin)
        assert found.looked_up != ("object",), f"{category} has no relations of its own"
        assert bool(found.note) == (found.looked_up[0] not in wordnet.base_form(found.object_name))


def test_fallbacks_say_so():
    assert candidate_words("pushpins", source="shipped").looked_up == ("pushpin",)
    assert candidate_words("pcb1", source="shipped").looked_up == (ALIASES["pcb"],)
    assert "our own choice" in candidate_words("pcb1", source="shipped").note
    found = candidate_words("juice_bottle", source="shipped")
    assert found.looked_up == ("bottle", "juice") and found.object_name == "juice bottle"
    assert found.origin[0].startswith("bottle") and found.origin[-1].startswith("juice")
    assert candidate_words("my Screw 12", source="shipped").looked_up == ("screw",)
    assert candidate_words("qwertz", source="shipped").looked_up == ("object",)
    assert "hazelnut" not in candidate_words("Hazelnut", source="shipped").words


def test_depth_relations_and_limit():
    near, far = (candidate_words("nut", d, source="shipped").words for d in (1, 3))
    assert set(near) < set(far)
    parts = candidate_words("bottle", 1, ["part"], source="shipped")
    assert set(parts.words) == {"bottlecap", "mouth", "nipple"}
    assert all("part, 1 step" in o for o in parts.origin)
    assert candidate_words("nut", limit=3, source="shipped").words == near[:3]
    for call in (
        lambda: candidate_words(""), lambda: candidate_words("nut", 0), lambda: candidate_words("nut", 4, source="shipped"),
        lambda: candidate_words("nut", relations=["antonym"]), lambda: candidate_words("nut", relations=[]),
        lambda: candidate_words("nut", source="web"), lambda: candidate_words("nut", limit=0), lambda: candidate_words("nut", True),
    ):  # fmt: skip
        with pytest.raises(FsadError):
            call()


# ---------------------------------------------------------------- equation 1
def at(cosines):
    """Unit vectors (T, 3) with these cosines to (1, 0, 0)."""
    c = torch.tensor(cosines)
    return torch.stack([c, (1 - c.square()).sqrt(), torch.zeros_like(c)], dim=1)


IMAGE = torch.tensor([[1.0, 0.0, 0.0]])


def test_the_printed_filter_is_a_no_op_on_the_papers_cosines_and_its_reverse_keeps_nothing():
    g = at([0.17, 0.25, 0.33])
    chosen = select(IMAGE, g, ["worst", "middle", "best"])
    assert (chosen.best, chosen.worst) == ("best", "worst") and chosen.kept.all() and "does nothing" in chosen.note
    assert chosen.distance.tolist() == pytest.approx([1.288, 1.225, 1.158], abs=1e-3)
    with pytest.raises(FsadError, match="keeps no prompt"):
        select(IMAGE, g, ["worst", "middle", "best"], filter="reversed")
    # where it does act, it removes the best prompts: d <= 0.5 is cos >= 0.875
    assert select(IMAGE, at([0.9, 0.6, 0.1]), ["near", "next", "far"]).best == "next"
    assert select(IMAGE, at([0.9, 0.6, 0.1]), ["near", "next", "far"], filter="reversed").best == "near"


@pytest.mark.parametrize("share,kept", [(0.0, 10), (0.25, 8), (0.5, 5), (0.99, 1)])
def test_dropping_the_farthest_never_changes_the_best(share, kept):
    cosines = torch.linspace(0.1, 0.4, 10)[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    names = [f"{c:.3f}" for c in cosines]
    chosen = select(IMAGE, at(cosines.tolist()), names, filter="farthest", farthest=share)
    assert int(chosen.kept.sum()) == kept and (chosen.best, chosen.worst) == ("0.400", "0.100")
    assert cosines[chosen.kept].min() >= cosines.sort(descending=True).values[kept - 1] - 1e-6


def test_several_images_count_by_their_mean_direction():
    f = F.normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]), dim=1)
    assert select(f, at([0.8, 0.2]), ["along", "across"]).best == "along"
    assert torch.allclose(select(f, at([0.3, 0.2]), ["a", "b"]).cosine, torch.tensor([0.3, 0.2]))


def test_best_prompt_with_a_clip_and_any_batch_size():
    clip, x = tiny_clip(), torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    words = candidate_words("hazelnut", source="shipped")
    chosen = best_prompt(clip, x, words)
    again = best_prompt(clip, x, words, batch_size=3)
    assert chosen.prompts == tuple(prompt("hazelnut", w) for w in words.words)
    assert torch.allclose(chosen.cosine, again.cosine, atol=1e-5) and chosen.best == chosen.prompts[int(chosen.cosine.argmax())]
    f, g = F.normalize(clip.encode_image(x).mean(0), dim=0), clip.encode_text([chosen.best])[0]
    assert float(f @ g) == pytest.approx(float(chosen.cosine.max()), abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: select(IMAGE, 2 * at([0.1]), ["a"]), lambda: select(IMAGE[:0], at([0.1]), ["a"]), lambda: select(IMAGE, at([0.1]), []),
        lambda: select(IMAGE[:, :2], at([0.1]), ["a"]), lambda: select(IMAGE, at([0.1]), ["a"], filter="best"),
        lambda: select(IMAGE, at([0.1]), ["a"], farthest=0.5), lambda: select(IMAGE, at([0.1]), ["a"], filter="farthest", farthest=1.0),
        lambda: select(IMAGE * torch.nan, at([0.1]), ["a"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call):
    with pytest.raises(FsadError):
        call()


@pytest.mark.parametrize("name", ["metal_nut", "screw_bag", "capsules"])
def test_no_candidate_repeats_the_name_or_another_candidate(name):
    found = candidate_words(name, source="shipped")
    words = [word.lower() for word in found.words]
    assert len(set(words)) == len(words) == len(found.origin), "CLIP reads lower case"
    assert not set(words) & {name, *name.split("_"), *found.looked_up}
