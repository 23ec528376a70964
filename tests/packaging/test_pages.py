"""Pages are easy to read: lines at most 120 characters, table cells at most 15 words, and each says first who it is for."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Not written by hand, or written once: the list of names, the record of decisions, the change log.
SKIPPED = ("docs/api.md", "docs/adr/", "CHANGELOG.md")
PAGES = [
    name
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if not (name := str(page.relative_to(ROOT))).startswith(SKIPPED)
]
MAX_LINE_CHARS, MAX_CELL_WORDS, MAX_SENTENCE_WORDS = 120, 15, 25
# Page -> how many of its table cells are longer, of its sentences are longer. These may only fall.
LONGER_CELLS = {
    "docs/operator/reference.md": 2,  # meanings of exit codes, as `--help` prints them
    "docs/sources.md": 3,  # reasons, as `edge-agent status` prints them
}
LONGER_SENTENCES: dict[str, int] = {}
# Riddles and old words; the plain ones: again, reported, repair, permanently, next to, discard, the person who.
UNUSUAL_WORDS = r"anew|told|mend(?:s|ed|ing)?|for ever|beside|whoever|lets? go of|of its own accord"


def parts(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a page with their kind: code, row or text."""
    in_fence = is_indented = is_after_blank = False
    for line in text.splitlines():
        bare = line.strip()
        is_fence = bare.startswith("```")
        # Four spaces after an empty line are code, unless they continue an item of a list.
        is_indented = line.startswith("    ") and (is_indented or is_after_blank) and not re.match(r"[-*]|\d+\.", bare)
        kind = "code" if in_fence or is_fence or is_indented else "row" if bare.startswith("|") else "text"
        in_fence ^= is_fence
        is_after_blank = not bare
        yield kind, line


def cells(row: str) -> list[str]:
    """The cells of a table's row; a bar within backticks separates nothing, and a link is its text."""
    row = re.sub(r"`[^`]*`", lambda code: code.group().replace("|", "/"), row.strip().strip("|"))
    return [cell.strip() for cell in re.sub(r"\]\([^)]*\)", "]", row).split("|")]


def sentences(text: str) -> Iterator[str]:
    """The sentences and clauses of a page's running text: what stands between two of `. : ; ? !`."""
    paragraph: list[str] = []
    for kind, line in [*parts(text), ("text", "")]:
        bare = line.strip()
        if kind == "text" and bare and not bare.startswith("#"):
            item = re.match(r"(?:[-*]|\d+\.)\s", bare)
            if not item:
                paragraph.append(bare)
                continue
            bare = bare[item.end() :]
        else:
            bare = ""
        joined = re.sub(r"\]\([^)]*\)", "]", " ".join(paragraph))
        yield from (sentence for sentence in re.split(r"(?<=[.:;?!])[*_)]*\s+", joined) if sentence)
        paragraph = [bare] if bare else []


def longer(pieces: Iterator[str], most_words: int) -> list[str]:
    """The pieces of more words."""
    return [piece for piece in pieces if len(piece.split()) > most_words]


def longer_cells(text: str) -> list[str]:
    return longer((cell for kind, line in parts(text) if kind == "row" for cell in cells(line)), MAX_CELL_WORDS)


@pytest.mark.parametrize("name", PAGES)
def test_a_line_of_text_has_at_most_120_characters(name: str) -> None:
    text = (ROOT / name).read_text()
    assert [line for kind, line in parts(text) if kind == "text" and len(line) > MAX_LINE_CHARS] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_table_cell_has_at_most_15_words(name: str) -> None:
    found = longer_cells((ROOT / name).read_text())
    allowed = LONGER_CELLS.get(name, 0)
    assert len(found) <= allowed, found
    assert len(found) == allowed, f"{name} has only {len(found)} left: lower its number"


@pytest.mark.parametrize("name", PAGES)
def test_a_sentence_has_at_most_25_words(name: str) -> None:
    found = longer(sentences((ROOT / name).read_text()), MAX_SENTENCE_WORDS)
    allowed = LONGER_SENTENCES.get(name, 0)
    assert len(found) <= allowed, found
    assert len(found) == allowed, f"{name} has only {len(found)} left: lower its number"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_written_in_the_words_of_the_field(name: str) -> None:
    text = "\n".join(line for kind, line in parts((ROOT / name).read_text()) if kind != "code")
    assert re.findall(rf"\b(?:{UNUSUAL_WORDS})\b", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_who_it_is_for_before_its_first_section(name: str) -> None:
    opening = (ROOT / name).read_text().split("\n## ")[0]
    assert re.search(r"\b[Ff]or\b|\b[Yy]ou\b", opening), "open with the reader: `For the operator who ...`"


def test_long_lines_cells_and_sentences_are_found() -> None:
    row = "| `a|b` " + "word " * 15 + "| [text](https://example.org/of/a/long/address) |"
    sentence = "word " * 26 + "end."
    page = f"# Page\n\n{row}\n\n    code {sentence}\n\n- item\n  goes on\n- {sentence}\n\n```sh\n{sentence}\n```\n"
    assert [len(cell.split()) for cell in cells(row)] == [16, 1]
    assert len(longer_cells(page)) == 1
    assert list(sentences(page)) == ["item goes on", sentence]
    assert [kind for kind, line in parts(page) if len(line) > MAX_LINE_CHARS] == ["row", "code", "text", "code"]
