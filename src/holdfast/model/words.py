"""Words that come from elsewhere: names of files, mounts and processes are bytes, and need be no text."""


def readable(text: str) -> str:
    """The same for whoever stores, sends or shows it: bytes that os.fsdecode has kept although no text, as \\udcNN."""
    return text.encode(errors="backslashreplace").decode()
