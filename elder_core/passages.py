"""Passages that two texts have in common, whatever documents they are cut into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

PASSAGE = 32  # words in a row; manuals of different pages share half a per cent of their words in such passages
PART = 2**20  # words of calibration that are looked at in one go

# Letters and digits in a row; of scripts that write no spaces between words, each letter.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")

Codes = NDArray[np.uint64]


def copied(calibration: Iterable[str], evaluation: Iterable[str]) -> float:
    """Share of the words of `evaluation` that stand in passages of `PASSAGE` words which `calibration` has too.

    Memory: some 20 bytes for each word of `evaluation`; `calibration` is read in parts.
    """
    words = np.concatenate([np.empty(0, np.uint64), *_codes(evaluation)])
    wanted = _passages(words)
    found = np.zeros(len(wanted), dtype=bool)
    before = np.empty(0, np.uint64)
    for codes in _codes(calibration):
        known = np.concatenate([before, codes])
        found |= np.isin(wanted, _passages(known))
        before = known[1 - PASSAGE :]
    inside = np.zeros(len(words), dtype=bool)
    for place in range(PASSAGE):
        inside[place : place + len(found)] |= found
    return float(inside.mean()) if len(words) else 0.0


def _codes(documents: Iterable[str]) -> Iterator[Codes]:
    """A number for each word, the same for equal ones, within this process; `PART` words at a time."""
    words = (hash(match.group()) for document in documents for match in WORD.finditer(document))
    while len(codes := np.fromiter(islice(words, PART), np.int64)):
        yield codes.view(np.uint64)


def _passages(words: Codes) -> Codes:
    """A number for each run of `PASSAGE` words `[words − PASSAGE + 1]`, the same for equal ones."""
    found = np.zeros(max(0, len(words) - PASSAGE + 1), dtype=np.uint64)
    for place in range(PASSAGE):
        found = found * np.uint64(0x9E3779B97F4A7C15) + words[place : place + len(found)]  # modulo 2⁶⁴
    return found
