from holdfast.model.clock import Clock


def test_times_grow_even_when_the_clock_goes_back() -> None:
    readings = iter([1000, 400, 400, 2000])
    clock = Clock(lambda: next(readings))
    assert [clock.now() for _ in range(4)] == [1000, 1001, 1002, 2000]


def test_nothing_is_earlier_than_what_the_store_knows() -> None:
    clock = Clock(lambda: 10)
    clock.not_before(500)
    assert clock.now() == 501
