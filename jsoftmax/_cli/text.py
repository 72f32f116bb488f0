"""Splits a text into words: Python's own documentation, or any UTF-8 file.

A word is a run of letters, digits and underscores, or a run of one other mark, cut after three. The space
before a word belongs to it, so that the joined words are the text. The end of a paragraph is the word ¶.

The last tenth is held out. The vocabulary contains the words that occur at least twice in the rest, the most
frequent first, up to its size. Any other word, held out or not, becomes <unk>.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from jsoftmax._cli.errors import UserError

UNKNOWN, PARAGRAPH = " <unk>", "¶"
UNKNOWN_ID, PARAGRAPH_ID = 0, 1
WORD = re.compile(r" ?(?:\w+(?:['’]\w+)*|([^\w\s])\1*)")
UNDERLINE = re.compile(r"^[ ]*([^\w\s])\1{3,}[ ]*$", re.MULTILINE)
FEWEST_WORDS = 100
HELD_OUT = 10  # one word in 10

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """A text as numbers: the index of each word in the vocabulary."""

    name: str
    vocabulary: tuple[str, ...]  # UNKNOWN, PARAGRAPH, then the others by decreasing frequency
    train: Ids
    held_out: Ids

    @property
    def frequencies(self) -> NDArray[np.float32]:
        """The unigram model: the share of each word in the training words, with every count raised by 1."""
        counts = np.bincount(self.train, minlength=len(self.vocabulary)) + 1
        return (counts / counts.sum()).astype(np.float32)

    def written(self, ids: Ids) -> str:
        """The text of these words, with a blank line between paragraphs."""
        text = "".join(self.vocabulary[i] for i in ids)
        return "\n\n".join(part.strip() for part in text.split(PARAGRAPH) if part.strip())


def load(path: Path | None, vocabulary: int) -> Corpus:
    """The corpus of a file, or of Python's documentation, with at most `vocabulary` different known words."""
    name = "Python's documentation" if path is None else str(path)
    words = split(documentation() if path is None else _read(path))
    if not words:
        raise UserError(f"{name}: no words, expected a text of at least {FEWEST_WORDS}")
    if len({word.strip() for word in words} - {PARAGRAPH}) == 1:
        raise UserError(f"{name}: no word but {words[0].strip()!r}, expected different ones")
    if len(words) < FEWEST_WORDS:
        raise UserError(f"{name}: too short, {len(words)} words, expected at least {FEWEST_WORDS}")
    held_out = len(words) // HELD_OUT
    counts = Counter(words[:-held_out])
    del counts[PARAGRAPH]
    known = [word for word, count in counts.most_common(vocabulary) if count > 1]
    if not known:
        raise UserError(
            f"{name}: no word occurs twice in its first {len(words) - held_out}, expected some that do"
        )
    every = (UNKNOWN, PARAGRAPH, *known)
    numbers = {word: number for number, word in enumerate(every)}
    ids = np.array([numbers.get(word, UNKNOWN_ID) for word in words], np.int32)
    return Corpus(name, every, ids[:-held_out], ids[-held_out:])


def split(text: str) -> list[str]:
    """The words of a text, with PARAGRAPH after every paragraph."""
    words = []
    for paragraph in _paragraphs(text):
        # The leading space makes a word at the start of a paragraph the same as within.
        for match in WORD.finditer(" " + " ".join(paragraph.split())):
            words.append(match[0][: match.start(1) - match.start() + 3] if match[1] else match[0])
        words.append(PARAGRAPH)
    return words


def documentation() -> str:
    """The topics of Python's `help`, without tables and without repeated paragraphs."""
    prose = (UNDERLINE.sub("", text) for text in topics.values())
    paragraphs = (" ".join(part.split()) for text in prose for part in _paragraphs(text))
    return "\n\n".join(dict.fromkeys(part for part in paragraphs if not part.startswith(("+-", "|"))))


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8, byte {error.object[error.start]:#x} at {error.start}") from None
    if "\0" in text:
        raise UserError(f"{path}: not a text, a zero byte at character {text.index(chr(0))}")
    return text
