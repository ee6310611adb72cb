"""Numbers for people."""


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{number(n_bytes)} {unit}"
        n_bytes /= 1000
    return f"{number(n_bytes)} GB"
