"""Readable output: plain letters where a terminal or file cannot show every character, and numbers with their nouns."""

import codecs
import io
import unicodedata

HANDLER = "harness.plain"

_PLAIN = {
    "✓": "+",
    "✗": "x",
    "±": "+-",
    "×": "x",
    "–": "-",
    "—": "-",
    "─": "-",
    "│": "|",
    "→": "->",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
    "†": "+",
    "•": "*",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "Δ": "Delta",
    "ε": "epsilon",
    "λ": "lambda",
    "σ": "sigma",
    "∞": "inf",
}


def degrade(stream: object) -> None:
    """Let a text stream replace what its encoding lacks. A stream that can encode everything is left as it is."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=HANDLER)


def plain(text: str) -> str:
    """The nearest ASCII text: known symbols by name, letters without accents, `?` for all others."""
    return "".join(_PLAIN.get(character) or _letter(character) for character in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 record`, `1,204 records`; give the plural if it is more than an added s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def memory_size(size: float | None) -> str:
    """A size in bytes as `12 GiB`, `1.5 GiB` or `93 MiB`; `unknown` for None."""
    if size is None:
        return "unknown"
    return f"{size / 2**30:.{0 if size >= 10 * 2**30 else 1}f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"


def _letter(character: str) -> str:
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return base or ("" if unicodedata.combining(character) else "?")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _replace)
