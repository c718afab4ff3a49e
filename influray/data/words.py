"""Text cut into words, for whatever counts or compares n-grams. Writing without spaces is cut by character.

Chinese and Japanese, and Thai, Lao, Khmer, Burmese, Tibetan and their relatives put no space between words, and
finding words there takes a dictionary of each language. Their characters, each with its marks, stand in for words: an
n-gram is then n characters.
"""

from __future__ import annotations

import re
import unicodedata

# Blocks of the scripts that are written without spaces, letters, marks and digits alike (Unicode 16).
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # radicals of Han
    (0x3005, 0x3007),  # marks that stand for characters of Han
    (0x3021, 0x3029),
    (0x3031, 0x3035),
    (0x3038, 0x303C),
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)
_JOINERS = "\u3099\u309a\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"  # marks of other blocks, variation selectors


def _ranges(wanted: str) -> str:
    """Return the characters of the scripts whose category begins with one of the letters, as the inside of a set."""
    found = []
    for first, last in _SPACELESS:
        if last - first > 0x1000:  # Han and its like: letters all through
            found += [f"{chr(first)}-{chr(last)}"] if "L" in wanted else []
            continue
        found += [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code))[0] in wanted]
    return "".join(found)


_MARKS = _ranges("M") + _JOINERS
_CHARACTER = f"[{_ranges('LN')}{_MARKS}][{_MARKS}]*"
_LETTER = f"(?:(?![{_ranges('LN')}])\\w)"
_WORD = re.compile(rf"{_CHARACTER}|{_LETTER}+|[^\w\s]+")
_PIECE = re.compile(rf"{_CHARACTER}|(?:(?![{_ranges('LN')}])\S)+")


def words_and_points(text: str) -> list[str]:
    r"""Return the words and the runs of signs of a text, as NLTK's WordPunctTokenizer (\w+|[^\w\s]+) has them.

    Unlike there a character of a script without spaces is a word, with its marks.
    """
    return _WORD.findall(text)


def spaced_words(text: str) -> list[str]:
    """Return what stands between the spaces of a text; a character of a script without spaces is a word of its own."""
    return text.split() if text.isascii() else _PIECE.findall(text)
