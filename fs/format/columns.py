"""Values of databases that somebody else wrote: a column may hold whatever it likes, whatever its type says."""


def as_bytes(value: object) -> bytes:
    """*value*, which must be text or bytes: of a number, ``bytes`` would make as many zeros. Raises TypeError."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    raise TypeError(f"{value!r} is no text")


def as_text(value: object) -> str:
    """*value* as text, with surrogates for what is not UTF-8. Raises TypeError."""
    return value if isinstance(value, str) else as_bytes(value).decode("utf-8", "surrogateescape")


def as_number(value: object) -> int:
    """*value*, which must be a number that is not negative. Raises ValueError."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number")
    return value
