"""Output to terminals and files that cannot show every character: plain letters instead, never an exception."""

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


def _letter(character: str) -> str:
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return base or ("" if unicodedata.combining(character) else "?")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _replace)
