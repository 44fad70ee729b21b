"""Which images there are, by id and by name. No I/O."""

from dataclasses import replace

from holdfast.images import reference
from holdfast.model.errors import InvalidArgument, NotFound
from holdfast.model.image import Image, parse_config
from holdfast.store.images import ImageRow


class Known:
    """A name belongs to one image at a time. What is not whole can not be found, and keeps its layers."""

    def __init__(self) -> None:
        self._by_id: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self.incomplete: dict[str, Image] = {}  # has lost a layer
        self.unreadable: set[str] = set()  # ids of rows that say nothing about their layers

    def __len__(self) -> int:
        return len(self._by_id)

    def bytes(self) -> int:
        """Of their blobs, each image by itself."""
        return sum(image.size for image in self._by_id.copy().values())

    def all(self) -> list[Image]:
        return sorted(self._by_id.values(), key=lambda image: image.tags or (image.id,))

    def find(self, wanted: str) -> Image:
        """By reference, by id, or by the unique beginning of an id. Raises NotFound."""
        found = self._by_id.get(wanted) or self._by_id.get(f"sha256:{wanted}")
        if found is None:
            found = self._by_name(wanted) or self._by_prefix(wanted)
        if found is None:
            raise NotFound(f"cannot find image {wanted!r}: it is not on this node")
        return found

    def remember(self, row: ImageRow) -> Image:
        for name in row.names:
            old = self._names.get(name)
            self._names[name] = row.id
            if old is not None and old != row.id:
                self._refresh(old)
        self._by_id[row.id] = parse_config(row.id, row.config, row.size, (), ())
        self.incomplete.pop(row.id, None)
        self.unreadable.discard(row.id)
        return self._refresh(row.id)

    def forget(self, image: Image) -> None:
        self._by_id.pop(image.id, None)
        self._names = {name: owner for name, owner in self._names.items() if owner != image.id}

    def _refresh(self, image_id: str) -> Image:
        """Bring an image's names up to date."""
        names = sorted(name for name, owner in self._names.items() if owner == image_id)
        image = replace(
            self._by_id[image_id],
            tags=tuple(name for name in names if "@" not in name),
            digests=tuple(name for name in names if "@" in name),
        )
        self._by_id[image_id] = image
        return image

    def _by_name(self, wanted: str) -> Image | None:
        try:
            ref = reference.parse(wanted)
        except InvalidArgument:
            return None
        name = f"{ref.name}@{ref.digest}" if ref.digest else f"{ref.name}:{ref.tag}"
        return self._by_id.get(self._names.get(name, ""))

    def _by_prefix(self, wanted: str) -> Image | None:
        prefix = wanted if wanted.startswith("sha256:") else f"sha256:{wanted}"
        if len(prefix) < len("sha256:") + 3:
            return None
        matches = [image for image_id, image in self._by_id.items() if image_id.startswith(prefix)]
        return matches[0] if len(matches) == 1 else None
