from onnxpq.figures import Interval, table


def test_table_aligns_numbers_on_the_right() -> None:
    assert table([("name", "n"), ("a", "5"), ("long name", "123"), ("b", "-")]) == (
        "  name         n\n  a            5\n  long name  123\n  b            -"
    )


def test_intervals_are_values() -> None:
    assert Interval(0.5, 0.25, 0.75) == Interval(0.5, 0.25, 0.75)
