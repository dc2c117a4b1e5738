from onnxpq.support.figures import Interval, LeftAlone, left_alone, table


def test_table_aligns_numbers_on_the_right() -> None:
    assert table([("name", "n"), ("a", "5"), ("long name", "123"), ("b", "-")]) == (
        "  name         n\n  a            5\n  long name  123\n  b            -"
    )


def test_intervals_are_values() -> None:
    assert Interval(0.5, 0.25, 0.75) == Interval(0.5, 0.25, 0.75)


def test_nodes_that_are_left_alone_for_one_reason_share_a_line() -> None:
    skipped = [
        LeftAlone("fc", "Gemm", "It is small.", 40),
        LeftAlone("c1", "Conv", "The constant 'k1' is a kernel.", 1000),
        LeftAlone("c2", "Conv", "The constant 'k2' is a kernel.", 234),
        LeftAlone("up", "ConvTranspose", "The constant 'k1' is a kernel.", 0),
        LeftAlone("g", "MatMul", "The weight 'w' is 'odd'.", 50),
    ]
    assert left_alone(skipped).splitlines() == [
        "Left alone",
        "  1,234 bytes in 2 Conv, 1 ConvTranspose (c1, c2, up): The constant is a kernel.",
        "     50 bytes in 1 MatMul (g): The weight 'w' is 'odd'.",
        "     40 bytes in 1 Gemm (fc): It is small.",
    ]
    assert left_alone([]) == ""


def test_of_many_nodes_some_are_named() -> None:
    skipped = [LeftAlone(f"n{number}", "Conv", "It is a convolution.", 1) for number in range(9)]
    assert left_alone(skipped).splitlines()[1] == (
        "  9 bytes in 9 Conv (n0, n1, n2, n3, n4, n5 and 3 more): It is a convolution."
    )
