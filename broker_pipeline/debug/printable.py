"""Lines that no terminal obeys."""


def printable(line: str) -> str:
    """The line, whatever is in names, texts and payloads: what is not printable is escaped."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
