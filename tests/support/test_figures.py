from onnxpq.support.figures import Interval, left_alone, table


def test_table_aligns_numbers_on_the_right() -> None:
    assert table([("name", "n"), ("a", "5"), ("long name", "123"), ("b", "-")]) == (
        "  name         n\n  a            5\n  long name  123\n  b            -"
    )


def test_intervals_are_values() -> None:
    assert Interval(0.5, 0.25, 0.75) == Interval(0.5, 0.25, 0.75)


def test_nodes_that_are_left_alone_for_one_reason_share_a_line() -> None:
    skipped = [
        ("c1", "Conv", "It is a convolution."),
        ("fc", "Gemm", "It is small."),
        ("c2", "Conv", "It is a convolution."),
        ("g", "MatMul", "It is small."),
    ]
    assert left_alone(skipped).splitlines() == [
        "Left alone",
        "  c1, c2 (2 Conv): It is a convolution.",
        "  fc (Gemm): It is small.",
        "  g (MatMul): It is small.",
    ]
    assert left_alone([]) == ""
