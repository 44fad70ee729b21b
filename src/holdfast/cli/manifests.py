"""What -f names: files, the manifests of a directory, stdin; and what objects those are of."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from holdfast.cli.agent_client import DEFAULT
from holdfast.cli.errors import CommandError

SUFFIXES: Final = (".json", ".yaml", ".yml")  # kubectl's


class Named(NamedTuple):
    kind: str  # "pod"
    namespace: str
    name: str


def read(paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Each file's name and text. Raises CommandError."""
    for text in paths:
        path = Path(text)
        try:
            if text == "-":
                yield "stdin", sys.stdin.buffer.read()
            elif path.is_dir():
                found = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
                if not found:
                    raise CommandError(f"cannot read {text}: no file of it is a manifest ({', '.join(SUFFIXES)})")
                yield from ((str(one), one.read_bytes()) for one in found)
            else:
                yield text, path.read_bytes()
        except OSError as exc:
            raise CommandError(f"cannot read {exc.filename or text}: {exc.strerror}") from exc


def objects(text: bytes) -> list[Named]:
    """What a manifest is of, whatever it says of it. Raises CommandError."""
    import yaml

    try:
        documents = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one is not None]
        return [_named(one) for document in documents for one in _items(document)]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as exc:
        raise CommandError(f"cannot tell what it is a manifest of: {' '.join(str(exc).split())}") from exc


def _items(document: Any) -> list[Any]:
    return list(document["items"]) if document["kind"] == "List" else [document]


def _named(one: Any) -> Named:
    meta = one["metadata"]
    return Named(str(one["kind"]).lower(), str(meta.get("namespace") or DEFAULT), str(meta["name"]))
