import pytest

from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import ids, numbered, present, said, seqs
from webai_api.types import History

__all__ = ["Reads"]

HUGE = 10**30


class Reads:
    """Which items `SessionStore.read` returns."""

    async def test_a_missing_session_is_neither_an_error_nor_an_empty_one(self, store: SessionStore) -> None:
        assert await store.read("s") == History(None, (), ())
        assert await store.read("s", after=5, before=9, last=2, epoch=1) == History(None, (), ())

    async def test_reading_creates_nothing(self, store: SessionStore) -> None:
        await store.read("s")
        await store.append("s", [], expected=0)

    async def test_reading_changes_nothing(self, store: SessionStore) -> None:
        await store.append("s", numbered(3), ttl=1000)
        first = await store.read("s")
        assert await store.read("s") == first

    @pytest.mark.parametrize(
        ("after", "before", "last", "expected"),
        [
            (0, None, None, range(1, 11)),
            (0, None, 3, range(8, 11)),
            (0, None, 10, range(1, 11)),
            (0, None, 11, range(1, 11)),
            (0, None, HUGE, range(1, 11)),
            (0, None, 0, []),
            (4, None, None, range(5, 11)),
            (4, None, 2, range(9, 11)),
            (4, None, 6, range(5, 11)),
            (4, None, 7, range(5, 11)),
            (9, None, None, [10]),
            (10, None, None, []),
            (11, None, None, []),
            (HUGE, None, None, []),
            (HUGE, None, 3, []),
            (0, 5, None, range(1, 5)),
            (0, 5, 2, [3, 4]),
            (0, 5, 0, []),
            (0, 1, None, []),
            (0, 0, None, []),
            (0, 11, None, range(1, 11)),
            (0, HUGE, None, range(1, 11)),
            (0, HUGE, HUGE, range(1, 11)),
            (2, 7, None, range(3, 7)),
            (2, 7, 2, [5, 6]),
            (2, 7, 100, range(3, 7)),
            (2, 3, None, []),
            (2, 2, None, []),
            (7, 2, None, []),
            (7, 2, 3, []),
            (HUGE, HUGE, HUGE, []),
        ],
    )
    async def test_a_window_is_after_and_before_and_last(
        self, store: SessionStore, after: int, before: int | None, last: int | None, expected: range | list[int]
    ) -> None:
        await store.append("s", numbered(10))
        whole = await store.read("s")
        history = await store.read("s", after=after, before=before, last=last)
        assert seqs(history) == list(expected)
        assert history.items == tuple(item for item in whole.items if item.seq in expected)
        assert history.session == whole.session

    async def test_windows_count_seqs_and_last_counts_items_where_some_were_removed(self, store: SessionStore) -> None:
        await store.append("s", numbered(10))
        await store.remove("s", ["i1", "i4", "i5", "i9"])
        assert seqs(await store.read("s")) == [1, 3, 4, 7, 8, 9]
        assert seqs(await store.read("s", last=4)) == [4, 7, 8, 9]
        assert seqs(await store.read("s", after=2)) == [3, 4, 7, 8, 9]
        assert seqs(await store.read("s", after=5, before=9)) == [7, 8]
        assert seqs(await store.read("s", before=7, last=2)) == [3, 4]
        assert seqs(await store.read("s", after=9)) == []
        assert ids(await store.read("s", before=3)) == ["i0"]

    async def test_windows_work_where_the_oldest_were_trimmed(self, store: SessionStore) -> None:
        await store.append("s", numbered(10), keep=4)
        assert seqs(await store.read("s")) == [7, 8, 9, 10]
        assert seqs(await store.read("s", after=3)) == [7, 8, 9, 10]
        assert seqs(await store.read("s", after=8)) == [9, 10]
        assert seqs(await store.read("s", before=9, last=1)) == [8]
        assert seqs(await store.read("s", before=7)) == []

    async def test_the_epoch_one_knows_brings_only_what_is_new(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        assert ids(await store.read("s", after=known.last_seq, epoch=known.epoch)) == []
        await store.append("s", [said("x", "x")], keep=3)
        assert ids(await store.read("s", after=known.last_seq, epoch=known.epoch)) == ["x"]

    async def test_another_epoch_brings_everything(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        assert ids(await store.read("s", after=2, epoch=known.epoch + 1)) == ["i0", "i1", "i2"]
        await store.remove("s", ["i0"])
        assert ids(await store.read("s", after=known.last_seq, epoch=known.epoch)) == ["i1", "i2"]
        assert ids(await store.read("s", after=known.last_seq)) == []

    async def test_another_epoch_leaves_before_and_last(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(6)))
        assert seqs(await store.read("s", after=5, epoch=known.epoch + 1, last=2)) == [5, 6]
        assert seqs(await store.read("s", after=5, epoch=known.epoch + 1, before=3)) == [1, 2]
        assert seqs(await store.read("s", after=5, epoch=0, last=0)) == []

    async def test_after_beyond_the_last_seq_brings_everything_if_it_comes_with_an_epoch(
        self, store: SessionStore
    ) -> None:
        known = present(await store.append("s", numbered(3)))
        for after in (4, HUGE):
            assert seqs(await store.read("s", after=after, epoch=known.epoch)) == [1, 2, 3]
            assert seqs(await store.read("s", after=after)) == []

    async def test_an_epoch_without_after_brings_everything(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        for epoch in (known.epoch, known.epoch + 1, 0, HUGE):
            assert seqs(await store.read("s", epoch=epoch)) == [1, 2, 3]

    async def test_a_long_history_can_be_read_page_by_page_in_both_directions(self, store: SessionStore) -> None:
        await store.append("s", numbered(250))
        forth: list[int] = []
        while page := seqs(await store.read("s", after=forth[-1] if forth else 0, before=(forth or [0])[-1] + 41)):
            forth += page
        back: list[int] = []
        while page := seqs(await store.read("s", before=back[0] if back else None, last=40)):
            back = page + back
        assert forth == back == list(range(1, 251))
