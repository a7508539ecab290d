"""The sample store: bounded, balanced, and honest about what is held out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sanderling.agent.errors import StorageFullError
from sanderling.agent.store import Store, is_held_out


def sample(number: int, size: int = 100) -> bytes:
    return number.to_bytes(8, "big") + bytes(size - 8)


def fill(store: Store, labels: list[int], first: int = 0) -> None:
    store.add([(sample(first + i), label) for i, label in enumerate(labels)])


def stored(store: Store, held_out: bool) -> list[tuple[bytes, int]]:
    return store.fetch(store.identifiers(held_out=held_out))


def test_held_out_is_a_property_of_the_sample(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=10**6, held_out=0.25)
    fill(store, [0] * 1000)
    judged = {data for data, _ in stored(store, True)}
    learned = {data for data, _ in stored(store, False)}
    assert len(judged) + len(learned) == 1000
    assert 200 < len(judged) < 300
    assert all(is_held_out(data, 0.25) for data in judged)
    assert not any(is_held_out(data, 0.25) for data in learned)
    fill(store, [0] * 1000)  # the same samples again end on the same side
    assert {data for data, _ in stored(store, True)} == judged
    store.close()


def test_bounded_in_bytes_and_rare_classes_survive(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=100_000, held_out=0.2, random_source=random.Random(1))
    fill(store, [1] * 12)
    fill(store, [0] * 3000, first=100)
    fill(store, [2] * 400, first=10_000)
    counts = store.counts()
    assert counts.seen == 3412
    assert counts.stored * 164 <= 80_000
    assert counts.held_out * 164 <= 20_000
    histogram = store.histogram(3)
    assert histogram[1] + sum(label == 1 for _, label in stored(store, True)) == 12  # none of the rare class was lost
    assert abs(histogram[0] - histogram[2]) < 120
    assert sum(histogram) == counts.stored
    store.close()


def test_reservoir_keeps_old_and_new_alike(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=40_000, held_out=0.01, random_source=random.Random(3))
    fill(store, [0] * 2400)
    numbers = [int.from_bytes(data[:8], "big") for data, _ in stored(store, False)]
    early = sum(number < 1200 for number in numbers) / len(numbers)
    assert 0.35 < early < 0.65
    store.close()


def test_survives_and_is_shared(tmp_path: Path) -> None:
    writer = Store(tmp_path / "s.db", capacity=10**6, held_out=0.2)
    reader = Store(tmp_path / "s.db", capacity=10**6, held_out=0.2)
    writer.add([(sample(1), 3)], [True])
    writer.add([(sample(2), 3)], [False])
    assert reader.counts().seen == 2
    assert reader.prequential() == (1, 2)
    for store in (writer, reader):
        store.close()


def test_prequential_looks_back_on_a_window(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=10**6, held_out=0.2)
    for number in range(100):
        store.add([(sample(number), 0)], [number >= 90])
    assert store.prequential() == (10, 64)
    store.close()


def test_full_disk_takes_all_or_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=10**8, held_out=0.2)
    fill(store, [0] * 10)
    pages = store._db.row("PRAGMA page_count")[0]
    store._db.run(f"PRAGMA max_page_count = {pages + 4}")  # what SQLite reports then is what a full disk gives
    with pytest.raises(StorageFullError, match="disk is full"):
        store.add([(sample(1000 + i, 2000), 0) for i in range(50)], [True] * 50)
    assert store.counts().seen == 10
    assert len(store.identifiers(held_out=False)) + len(store.identifiers(held_out=True)) == 10
    store.close()


def test_fetch_leaves_out_what_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", capacity=10**6, held_out=0.2)
    fill(store, [0, 1, 0])
    identifiers = store.identifiers(held_out=False) + store.identifiers(held_out=True)
    assert len(store.fetch([*identifiers, 999])) == 3
    store.close()
