"""What manifests have last said of ConfigMaps and Secrets, in one file, `<root>/data.json`.

Without it an agent that begins while a directory of manifests cannot be read could not start a container again that has
a variable, or a file, of them. It is as secret as the manifests are, and root's alone.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from holdfast.agent.pod.manifest import Data
from holdfast.linux import files, spare
from holdfast.model.errors import Damaged

FILE: Final = "data.json"
VERSION: Final = 1
MOST: Final = 1 << 30

Said = Mapping[str, tuple[Data, ...]]  # by file


def save(root: Path, said: Said) -> None:
    """On disk on return. Raises OSError."""
    plain = {path: [_plain(one) for one in found] for path, found in said.items()}
    spare.write(root / FILE, json.dumps({"version": VERSION, "files": plain}).encode())


def load(root: Path) -> Said:
    """Nothing where there is none. Raises Damaged, OSError."""
    try:
        plain = json.loads(files.read_bounded(root / FILE, MOST))
        if plain["version"] != VERSION:
            raise Damaged(f"cannot read {root / FILE}: it is another version's")
        return {path: tuple(map(_data, found)) for path, found in plain["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as exc:
        raise Damaged(f"cannot read {root / FILE}: {exc}") from exc


def _plain(one: Data) -> dict[str, Any]:
    content = {key: base64.b64encode(value).decode() for key, value in one.data.items()}
    return {"kind": one.kind, "namespace": one.namespace, "name": one.name, "data": content}


def _data(plain: Mapping[str, Any]) -> Data:
    kind, namespace, name = (str(plain[field]) for field in ("kind", "namespace", "name"))
    return Data(kind, namespace, name, {str(key): base64.b64decode(one) for key, one in plain["data"].items()})
