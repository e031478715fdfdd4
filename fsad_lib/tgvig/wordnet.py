"""Words that WordNet relates to a noun: synonyms, hypernyms, hyponyms, parts and wholes, step by step.

Three sources, one walk. nltk's WordNet where its corpus is installed (every word, any depth); else the lemma relations that
ship with the project, ``data/wordnet/relations.csv``: made once, for the object names of all data sets, from the files of
Princeton's WordNet 3.0 (lemmas and relations only, no glosses; licence in the same folder)::

    python -m fsad_lib.tgvig.wordnet --dict /usr/share/wordnet --out data/wordnet/relations.csv

Only nouns. Each relation is followed on its own: a hypernym's hyponyms (a word's "sisters") are not collected.
"""

from __future__ import annotations

import argparse
import csv
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fsad_lib.errors import FsadError

__all__ = ["RELATIONS", "SHIPPED_DEPTH", "Related", "WordNetFiles", "base_form", "installed", "lookup", "related"]

RELATIONS = ("synonym", "hypernym", "hyponym", "part", "whole")
"""In the paper's words: synonyms, hypernyms, hyponyms, and part-whole relationships in both directions."""
SHIPPED_DEPTH = 3
HEADER = ("word", "sense", "relation", "depth", "lemma")

_METHODS = {
    "hypernym": ("hypernyms", "instance_hypernyms"), "hyponym": ("hyponyms", "instance_hyponyms"),
    "part": ("part_meronyms", "substance_meronyms", "member_meronyms"),
    "whole": ("part_holonyms", "substance_holonyms", "member_holonyms"),
}  # fmt: skip
_SYMBOLS = {
    "@": "hypernyms", "@i": "instance_hypernyms", "~": "hyponyms", "~i": "instance_hyponyms", "%p": "part_meronyms",
    "%s": "substance_meronyms", "%m": "member_meronyms", "#p": "part_holonyms", "#s": "substance_holonyms", "#m": "member_holonyms",
}  # fmt: skip


class Related(NamedTuple):
    """One related word: `lemma` stands in `relation` to sense number `sense` of the word, `depth` steps away (a synonym: 0)."""

    lemma: str
    relation: str
    depth: int
    sense: int


class _Synset:
    """The part of nltk's synset that the walk needs, over a line of Princeton's data.noun."""

    def __init__(self, files: WordNetFiles, offset: int) -> None:
        fields = files.line(offset)
        count = int(fields[3], 16)
        self._lemmas = fields[4 : 4 + 2 * count : 2]
        self._files, self._pointers, at = files, {}, 4 + 2 * count
        for i in range(int(fields[at])):
            symbol, target, kind = fields[at + 1 + 4 * i : at + 4 + 4 * i]
            if kind == "n" and symbol in _SYMBOLS:
                self._pointers.setdefault(_SYMBOLS[symbol], []).append(int(target))

    def lemma_names(self) -> list[str]:
        return list(self._lemmas)

    def __getattr__(self, name: str) -> Callable[[], list[_Synset]]:
        if name not in _SYMBOLS.values():
            raise AttributeError(name)
        return lambda: [self._files.synset(offset) for offset in self._pointers.get(name, ())]


class WordNetFiles:
    """Princeton's own noun files (``index.noun``, ``data.noun``), read without any package.

    Args:
        folder: where the two files lie, as in ``/usr/share/wordnet`` of Debian's package wordnet-base.

    Raises:
        FsadError: a file is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        paths = [Path(folder) / name for name in ("index.noun", "data.noun")]
        if missing := [str(p) for p in paths if not p.is_file()]:
            raise FsadError(f"no {' and no '.join(missing)}; expected WordNet's database files. Install Debian's wordnet-base.")
        self._data = paths[1].read_bytes()
        self._index: dict[str, list[int]] = {}
        for line in paths[0].read_text(encoding="ascii").splitlines():
            if not line.startswith(" "):  # the licence at the head of the file is indented
                lemma, _, rest = line.partition(" ")
                fields = rest.split()
                self._index[lemma] = [int(v) for v in fields[-int(fields[1]) :]]
        self._known: dict[int, _Synset] = {}

    def line(self, offset: int) -> list[str]:
        """The fields before the gloss of the synset that begins at byte `offset`."""
        return self._data[offset : self._data.index(b"\n", offset)].split(b"|")[0].decode("ascii").split()

    def synset(self, offset: int) -> _Synset:
        """The synset that begins at byte `offset`, parsed once."""
        if offset not in self._known:
            self._known[offset] = _Synset(self, offset)
        return self._known[offset]

    def synsets(self, word: str) -> list[_Synset]:
        """The senses of a noun, most frequent first; empty when WordNet does not hold it."""
        return [self.synset(offset) for offset in self._index.get(word.lower().replace(" ", "_"), ())]


def walk(synsets: Sequence[Any], depth: int) -> Iterator[Related]:
    """Every related lemma of the senses, in order: sense by sense, relation by relation, near before far.

    Args:
        synsets: nltk's, or those of :class:`WordNetFiles`.
        depth: how many steps each relation is followed, at least 1. Parts are those of the word itself and parts of parts.
    """
    for number, synset in enumerate(synsets, start=1):
        yield from (Related(_plain(lemma), "synonym", 0, number) for lemma in synset.lemma_names())
        for relation, methods in _METHODS.items():
            front, seen = [synset], {synset}
            for step in range(1, depth + 1):
                front = [target for s in front for method in methods for target in getattr(s, method)()]
                front = [s for s in front if not (s in seen or seen.add(s))]
                for found in front:
                    yield from (Related(_plain(lemma), relation, step, number) for lemma in found.lemma_names())


def _plain(lemma: str) -> str:
    return lemma.replace("_", " ")


def base_form(word: str) -> tuple[str, ...]:
    """The word and what it may be the plural of, the likeliest first.

    >>> base_form("batteries"), base_form("capsules"), base_form("gas")
    (('batteries', 'battery', 'batterie'), ('capsules', 'capsule'), ('gas', 'ga'))
    """
    forms = [word]
    if len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        forms += [word[:-3] + "y"] * word.endswith("ies") + [word[:-1]]
        forms += [word[:-2]] * word.endswith(("ches", "shes", "xes", "sses", "zes"))
    return tuple(forms)


def _nltk_wordnet() -> Any | None:
    """nltk's WordNet reader, or None where nltk or its corpus is missing. nltk is optional, so it is not imported by name."""
    try:
        reader = importlib.import_module("nltk.corpus").wordnet
        reader.ensure_loaded()
        return reader
    except (ImportError, LookupError, AttributeError):
        return None


def installed() -> bool:
    """Whether related words come from nltk's corpus (else from the shipped relations)."""
    return _nltk_wordnet() is not None


@lru_cache(maxsize=4)
def _shipped(path: Path, state: tuple) -> dict[str, list[Related]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        if (head := tuple(next(rows, ()))) != HEADER:
            raise FsadError(f"{path}: first line {head}; expected {','.join(HEADER)}. Restore the file from the project.")
        table: dict[str, list[Related]] = {}
        for word, sense, relation, depth, lemma in rows:
            table.setdefault(word, []).append(Related(lemma, relation, int(depth), int(sense)))
    return table


def relations_file() -> Path:
    """Where the shipped relations lie: <project root>/data/wordnet/relations.csv."""
    from fsad_lib.runs import project_root

    return project_root() / "data" / "wordnet" / "relations.csv"


def shipped(path: str | Path | None = None) -> dict[str, list[Related]]:
    """The shipped relations by word, to depth :data:`SHIPPED_DEPTH`.

    >>> [r.lemma for r in shipped()["hazelnut"] if r.relation == "synonym"][:6]
    ['hazelnut', 'hazel', 'hazelnut tree', 'hazelnut', 'filbert', 'cobnut']

    Raises:
        FsadError: the file is missing or in another form.
    """
    path = Path(path) if path else relations_file()
    try:
        stat = path.stat()
    except OSError:
        raise FsadError(f"no WordNet relations at {path}; they ship with the project in data/wordnet. Restore the file.") from None
    return _shipped(path, (stat.st_mtime_ns, stat.st_size))


def lookup(word: str, depth: int, source: str = "auto") -> tuple[list[Related], str]:
    """The relations of one noun as it is written (lower case, spaces), and where they came from; an empty list if it is unknown.

    Args:
        depth: at least 1. The shipped file ends at :data:`SHIPPED_DEPTH`.
        source: "nltk", "shipped", or "auto": nltk where its corpus is installed, else the shipped file.

    Raises:
        FsadError: nltk asked for and not there, or a depth that the shipped file does not reach.

    Example:
        >>> found, source = lookup("gear", depth=1, source="shipped")
        >>> [r.lemma for r in found if r.relation == "part" and r.sense == 1]
        ['cog', 'sprocket', 'tooth']
        >>> lookup("gears", depth=1, source="shipped")[0]  # a plural: see related
        []
    """
    if source not in ("auto", "nltk", "shipped"):
        raise FsadError(f"source {source!r} found; expected 'auto', 'nltk' or 'shipped'")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise FsadError(f"depth {depth!r} found; expected a whole number of steps, at least 1")
    reader = _nltk_wordnet() if source != "shipped" else None
    if reader is not None:
        return list(walk(reader.synsets(word.replace(" ", "_"), pos="n"), depth)), "nltk's WordNet"
    if source == "nltk":
        raise FsadError("nltk's WordNet is not installed: pip install nltk, then put its corpus 'wordnet' where nltk looks for it; or use source='shipped'.")
    if depth > SHIPPED_DEPTH:
        raise FsadError(f"depth {depth} found; the shipped relations reach {SHIPPED_DEPTH} steps. Lower it, or install nltk and its WordNet.")
    return [r for r in shipped().get(word.lower(), ()) if r.depth <= depth], "WordNet 3.0, shipped relations"


def related(words: Sequence[str], depth: int, source: str = "auto") -> tuple[str | None, list[Related], str]:
    """The first of `words` (or of their singulars) that the source knows: (that form or None, its relations, the source).

    Example:
        >>> word, found, source = related(["metal gears", "gears"], depth=1, source="shipped")
        >>> word, found == lookup("gear", 1, "shipped")[0], source
        ('gear', True, 'WordNet 3.0, shipped relations')
        >>> related(["zorbulator"], depth=1, source="shipped")[:2]
        (None, [])
    """
    where = ""
    for word in words:
        for form in base_form(word):
            found, where = lookup(form, depth, source)
            if found:
                return form, found, where
    return None, [], where


def object_words() -> list[str]:
    """Every word for which relations ship: all names of all data sets, their single words, and what stands in for unknown ones."""
    from fsad_lib import datasets
    from fsad_lib.datasets.minifab.designs import NOUNS
    from fsad_lib.tgvig.keyword_prompts import ALIASES, LAST_RESORT

    names = {datasets.class_name(d, c) for d in datasets.DATASETS if d != "folder" for c in datasets.categories(d)}
    words = {form for name in names | {*NOUNS} for word in (name, *name.split()) for form in base_form(word)}
    return sorted(words | {*ALIASES.values(), LAST_RESORT})


def write_relations(folder: str | Path, out: str | Path, words: Sequence[str], depth: int = SHIPPED_DEPTH) -> int:
    """Write the relations of `words` from Princeton's files; returns the number of rows. Repeated rows are left out."""
    from fsad_lib.runs import replacing

    files, count = WordNetFiles(folder), 0
    with replacing(Path(out)) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write("# WordNet 3.0, Copyright 2006 by Princeton University. Lemmas and relations of nouns; licence in this folder.\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(HEADER)
        for word in words:
            for r in dict.fromkeys(walk(files.synsets(word), depth)):
                rows.writerow((word, r.sense, r.relation, r.depth, r.lemma))
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dict", type=Path, required=True, help="folder with index.noun and data.noun")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=SHIPPED_DEPTH)
    args = parser.parse_args()
    print(f"{write_relations(args.dict, args.out, object_words(), args.depth)} rows")


if __name__ == "__main__":
    main()
