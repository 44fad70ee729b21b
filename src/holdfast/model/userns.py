"""The ids of a pod that has a user namespace of its own (user_namespaces(7))."""

from dataclasses import dataclass
from typing import Final

_UIDS: Final = "uidmap="
_GIDS: Final = "gidmap="


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """User 0 inside is `uid` outside, and so on for `uids` of them; groups likewise."""

    uid: int
    gid: int
    uids: int
    gids: int

    @property
    def uid_map(self) -> tuple[int, int, int]:
        """A line of uid_map: inside, outside, how many."""
        return (0, self.uid, self.uids)

    @property
    def gid_map(self) -> tuple[int, int, int]:
        return (0, self.gid, self.gids)

    @property
    def options(self) -> tuple[str, str]:
        """Options of a mount whose files are to be shown through the mapping, as containerd writes them."""
        return (f"{_UIDS}0:{self.uid}:{self.uids}", f"{_GIDS}0:{self.gid}:{self.gids}")

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """What ids inside are outside; those without one stay what they are."""
        return (
            self.uid + uid if 0 <= uid < self.uids else uid,
            self.gid + gid if 0 <= gid < self.gids else gid,
        )


def is_mapping(option: str) -> bool:
    """Whether a mount option is part of one."""
    return option.startswith((_UIDS, _GIDS))


def from_options(options: tuple[str, ...]) -> tuple[UserNamespace | None, tuple[str, ...]]:
    """The mapping that a mount's options ask for, if any, and the other options. Raises ValueError."""
    found = {sign: [one for one in options if one.startswith(sign)] for sign in (_UIDS, _GIDS)}
    rest = tuple(one for one in options if not is_mapping(one))
    if not any(found.values()):
        return None, rest
    try:
        (uids,), (gids,) = found.values()
        inside, uid, length = map(int, uids.removeprefix(_UIDS).split(":"))
        inside_too, gid, length_too = map(int, gids.removeprefix(_GIDS).split(":"))
    except ValueError:
        raise ValueError(f"{_UIDS}0:ID:COUNT and {_GIDS}0:ID:COUNT are needed, once each, not {found}") from None
    if inside or inside_too:
        raise ValueError(f"a mapping has to begin with 0, not {uids} {gids}")
    return UserNamespace(uid, gid, length, length_too), rest
