"""A token opens one session, once, of its kind, and not for long."""

from holdfast.streaming.tokens import SECONDS, Tokens


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_used_once() -> None:
    tokens = Tokens[str](Clock())
    first, second = tokens.issue("exec", "one"), tokens.issue("exec", "two")
    assert tokens.take(second) == "two"
    assert tokens.take(second) is None
    assert tokens.take(first) == "one"


def test_what_it_looks_like() -> None:
    kind, token = Tokens[str](Clock()).issue("attach", "x").split("/")[1:]
    assert kind == "attach"
    assert len(token) == 43  # 256 bits, six to a character
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_under_another_kind_it_is_not_there_and_not_used_up() -> None:
    tokens = Tokens[str](Clock())
    path = tokens.issue("exec", "x")
    for wrong in (path.replace("exec", "attach"), path[:-1], f"{path}/", path.upper(), "", "/", "/exec/"):
        assert tokens.take(wrong) is None
    assert tokens.take(path) == "x"


def test_it_expires() -> None:
    clock = Clock()
    tokens = Tokens[str](clock)
    early = tokens.issue("exec", "early")
    clock.now += SECONDS / 2
    late = tokens.issue("exec", "late")
    clock.now += SECONDS / 2
    assert tokens.take(early) is None
    assert tokens.take(late) == "late"


def test_too_many_push_out_the_oldest_and_none_that_is_too_old_counts() -> None:
    clock = Clock()
    tokens = Tokens[int](clock, most=3)
    paths = [tokens.issue("exec", number) for number in range(5)]
    assert [tokens.take(path) for path in paths] == [None, None, 2, 3, 4]
    tokens.issue("exec", 5)
    clock.now += SECONDS
    kept = [tokens.issue("exec", number) for number in range(3)]
    assert [tokens.take(path) for path in kept] == [0, 1, 2]


def test_no_two_are_alike() -> None:
    tokens = Tokens[int](Clock(), most=5000)
    assert len({tokens.issue("exec", number) for number in range(5000)}) == 5000
