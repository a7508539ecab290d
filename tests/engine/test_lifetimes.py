"""Where bytes lie: the arena inside a session, and the buffer between sessions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sanderling.engine.lifetimes import ALIGNMENT, Span, Work, arena_bytes, last_uses, place, trace


def chain(*names: str, overwrites: bool = False, alias: bool = False) -> list[Work]:
    """Each name is made from the one before it."""
    pairs = itertools.pairwise(names)
    return [Work((a,), (b,), alias=a if alias else "", overwrites=a if overwrites else "") for a, b in pairs]


def test_a_tensor_lives_until_its_last_use() -> None:
    works = [Work(("x",), ("a",)), Work(("a",), ("b",)), Work(("a", "b"), ("c",)), Work(("c",), ("y",))]
    assert last_uses([w.reads for w in works]) == {"x": 0, "a": 2, "b": 2, "c": 3}
    reached, alive = trace(works, {"a": 1024, "b": 2048, "c": 512}, {"x", "y"})
    assert (reached, alive) == (3584, [1024, 3072, 3584, 512])


def test_results_take_the_memory_of_inputs_where_they_may() -> None:
    sizes = dict.fromkeys("abc", 1024)
    assert arena_bytes(chain("x", "a", "b", "c", "y"), sizes, {"x", "y"}) == 2048
    assert arena_bytes(chain("x", "a", "b", "c", "y", overwrites=True), sizes, {"x", "y"}) == 1024
    assert arena_bytes(chain("x", "a", "b", "c", "y", alias=True), sizes, {"x", "y"}) == 0  # x under other names
    # a is read once more, so b must not overwrite it
    kept = [*chain("x", "a", "b", "c", overwrites=True), Work(("a", "c"), ("y",))]
    assert arena_bytes(kept, sizes, {"x", "y"}) == 2048


def test_a_kernel_s_own_memory_counts_while_it_runs() -> None:
    works = [Work(("x",), ("a",), temporary=5000), Work(("a",), ("b",), temporary=100), Work(("b",), ("y",))]
    assert arena_bytes(works, {"a": 1024, "b": 256}, {"x", "y"}) == 1024 + 5120


def test_the_smallest_piece_that_fits_is_taken() -> None:
    # a (2048) and c (1024) die, b and d stay between them; e (1024) goes where c was, f (2048) where a was
    works = [
        Work((), ("a",)), Work((), ("b",)), Work((), ("c",)), Work((), ("d",)), Work(("a", "c"), ()),
        Work((), ("e",)), Work((), ("f",)), Work(("b", "d", "e", "f"), ()),
    ]  # fmt: skip
    sizes = {"a": 2048, "b": 256, "c": 1024, "d": 256, "e": 1024, "f": 2048}
    assert arena_bytes(works, sizes, ()) == 2048 + 256 + 1024 + 256


spans = st.dictionaries(
    st.integers(0, 99).map(str),
    st.builds(lambda size, first, more: Span(size, first, first + more), st.integers(0, 5000), st.integers(0, 9),
              st.integers(0, 9)),
    max_size=20,
)  # fmt: skip


@given(spans)
def test_placed_tensors_never_overlap_while_both_are_needed(given_spans: dict[str, Span]) -> None:
    offsets, total = place(given_spans)
    entries = [(offsets[n], offsets[n] + s.size, s) for n, s in given_spans.items()]
    for index, (begin, end, span) in enumerate(entries):
        assert begin % ALIGNMENT == 0 and end <= total
        for other_begin, other_end, other in entries[:index]:
            together = span.first <= other.last and other.first <= span.last
            assert not together or end <= other_begin or other_end <= begin or 0 in (span.size, other.size)
    needed = max((sum(s.size for s in given_spans.values() if s.first <= t <= s.last) for t in range(20)), default=0)
    assert needed <= total <= sum(-(-s.size // ALIGNMENT) * ALIGNMENT for s in given_spans.values())
