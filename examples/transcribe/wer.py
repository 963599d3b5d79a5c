"""Word error rate: the edit distance in words, divided by the length of the reference."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class WordErrors(NamedTuple):
    """How a text differs from its reference, in words."""

    substitutions: int
    deletions: int
    insertions: int
    reference_words: int

    @property
    def rate(self) -> float:
        """Errors for each word of the reference; 0 is perfect, and it can be more than 1."""
        errors = self.substitutions + self.deletions + self.insertions
        if self.reference_words == 0:
            return 0.0 if errors == 0 else float("inf")
        return errors / self.reference_words


def words(text: str) -> list[str]:
    """Lower case, no punctuation; apostrophes inside a word are kept."""
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", folded)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Compare what was recognised with what was said."""
    said, heard = words(reference), words(hypothesis)
    # row[j] = (cost, substitutions, deletions, insertions) of said[:i] against heard[:j]
    row = [(j, 0, 0, j) for j in range(len(heard) + 1)]
    for i, said_word in enumerate(said, start=1):
        diagonal, row[0] = row[0], (i, 0, i, 0)
        for j, heard_word in enumerate(heard, start=1):
            above, left = row[j], row[j - 1]
            if said_word == heard_word:
                best = diagonal
            else:
                best = min(
                    (diagonal[0] + 1, diagonal[1] + 1, diagonal[2], diagonal[3]),
                    (above[0] + 1, above[1], above[2] + 1, above[3]),
                    (left[0] + 1, left[1], left[2], left[3] + 1),
                )
            diagonal, row[j] = above, best
    _, substitutions, deletions, insertions = row[-1]
    return WordErrors(substitutions, deletions, insertions, len(said))
