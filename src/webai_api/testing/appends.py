import pytest

from webai_api.errors import Conflict
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, ids, numbered, present, said, seqs
from webai_api.types import History, Item

__all__ = ["Appends"]

HUGE = 10**30  # no store's integer; a caller may give it all the same


class Appends:
    """What `SessionStore.append` stores, changes and brings along."""

    async def test_items_are_numbered_from_one_in_the_order_given(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        history = await store.read("s")
        assert ids(history) == ["i0", "i1", "i2"]
        assert seqs(history) == [1, 2, 3]

    async def test_numbering_goes_on_from_call_to_call(self, store: SessionStore) -> None:
        for item in numbered(4):
            await store.append("s", [item])
        assert seqs(await store.read("s")) == [1, 2, 3, 4]

    async def test_each_session_has_its_own_numbering(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        await store.append("other", [said("x", "i0")])
        assert seqs(await store.read("other")) == [1]

    async def test_seq_and_time_of_a_given_item_are_the_stores_business(self, store: SessionStore) -> None:
        await store.append("s", [Item(id="a", seq=99, created_at=1.0, data={})])
        (item,) = (await store.read("s")).items
        assert item.seq == 1
        assert item.created_at is not None
        assert item.created_at > 1.5e9

    async def test_the_answer_is_the_session_after_the_call(self, store: SessionStore) -> None:
        answer = await store.append("s", numbered(3), metadata={"title": "t"}, ttl=1000, keep=2)
        assert answer == History(present(await store.read("s")))
        session = present(answer)
        assert (session.id, session.first_seq, session.last_seq, session.count) == ("s", 2, 3, 2)

    async def test_every_append_gives_a_higher_version(self, store: SessionStore) -> None:
        versions = [present(await store.append("s", [item])).version for item in numbered(20)]
        assert versions == sorted(set(versions))
        assert present(await store.read("s")).version == versions[-1]

    async def test_appends_leave_the_epoch(self, store: SessionStore) -> None:
        epochs = {present(await store.append("s", [item])).epoch for item in numbered(5)}
        assert len(epochs) == 1

    async def test_times_are_unix_seconds_and_only_the_last_one_moves(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1)))
        second = present(await store.append("s", [said("more")]))
        assert 1.5e9 < first.created_at <= first.updated_at < 1e11
        assert second.created_at == first.created_at
        assert second.updated_at >= first.updated_at

    async def test_no_items_create_an_empty_session(self, store: SessionStore) -> None:
        session = present(await store.append("s", []))
        assert (session.first_seq, session.last_seq, session.count) == (1, 0, 0)
        assert await store.read("s") == History(session)

    async def test_no_items_and_nothing_else_change_nothing(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(2)))
        assert present(await store.append("s", [])) == first
        assert await contents(store, "s") == ["i0", "i1"]

    async def test_a_new_session_has_no_metadata(self, store: SessionStore) -> None:
        assert present(await store.append("s", numbered(1))).metadata == {}

    async def test_metadata_is_left_alone_by_none(self, store: SessionStore) -> None:
        await store.append("s", [], metadata={"title": "t", "tags": [1, {"x": None}]})
        await store.append("s", numbered(1))
        assert present(await store.read("s")).metadata == {"title": "t", "tags": [1, {"x": None}]}

    async def test_metadata_is_replaced_as_a_whole(self, store: SessionStore) -> None:
        await store.append("s", [], metadata={"title": "t", "owner": "o"})
        assert present(await store.append("s", [], metadata={"title": "u"})).metadata == {"title": "u"}
        assert present(await store.read("s")).metadata == {"title": "u"}

    async def test_empty_metadata_clears(self, store: SessionStore) -> None:
        await store.append("s", [], metadata={"title": "t"})
        await store.append("s", [], metadata={})
        assert present(await store.read("s")).metadata == {}

    async def test_a_change_of_metadata_is_a_new_version_in_the_same_epoch(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(1)))
        second = present(await store.append("s", [], metadata={"title": "t"}))
        assert second.version > first.version
        assert second.epoch == first.epoch

    async def test_keep_leaves_the_newest_items(self, store: SessionStore) -> None:
        await store.append("s", numbered(5))
        session = present(await store.append("s", [said("x", "x")], keep=3))
        assert await contents(store, "s") == ["i3", "i4", "x"]
        assert seqs(await store.read("s")) == [4, 5, 6]
        assert (session.first_seq, session.last_seq, session.count) == (4, 6, 3)

    async def test_keep_trims_the_items_of_its_own_call_too(self, store: SessionStore) -> None:
        await store.append("s", numbered(5), keep=2)
        assert seqs(await store.read("s")) == [4, 5]
        await store.append("s", numbered(4, "j"), keep=1)
        assert await contents(store, "s") == ["j3"]
        assert seqs(await store.read("s")) == [9]

    async def test_keep_leaves_the_epoch(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(5)))
        assert present(await store.append("s", [said("x")], keep=1)).epoch == first.epoch
        assert present(await store.read("s")).epoch == first.epoch

    async def test_keep_without_items_trims_and_is_a_new_version(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(5)))
        second = present(await store.append("s", [], keep=2))
        assert second.version > first.version
        assert second.epoch == first.epoch
        assert await contents(store, "s") == ["i3", "i4"]

    @pytest.mark.parametrize("keep", [5, 6, HUGE])
    async def test_keep_with_nothing_to_trim_changes_nothing(self, store: SessionStore, keep: int) -> None:
        first = present(await store.append("s", numbered(5)))
        assert present(await store.append("s", [], keep=keep)) == first
        assert len(await contents(store, "s")) == 5

    async def test_the_expected_version_lets_the_call_pass(self, store: SessionStore) -> None:
        version = present(await store.append("s", numbered(1))).version
        version = present(await store.append("s", [said("b", "b")], expected=version)).version
        version = present(await store.append("s", [], metadata={"k": 1}, expected=version)).version
        assert present(await store.read("s")).version == version
        assert await contents(store, "s") == ["i0", "b"]

    async def test_another_version_is_a_conflict_and_nothing_changes(self, store: SessionStore) -> None:
        old = present(await store.append("s", numbered(1))).version
        await store.append("s", [said("b", "b")])
        before = await store.read("s")
        for items in ([said("c")], []):
            with pytest.raises(Conflict) as caught:
                await store.append("s", items, expected=old, ttl=10, keep=1, metadata={"k": 1})
            assert (caught.value.session_id, caught.value.expected) == ("s", old)
            assert caught.value.actual == present(before).version
            assert caught.value.missed == History(before.session)
        assert await store.read("s") == before

    async def test_a_conflict_carries_the_items_that_were_missed(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(2)))
        await store.append("s", [said("theirs", "theirs")])
        now = await store.read("s")
        for after, epoch, missed in (
            (known.last_seq, known.epoch, ["theirs"]),
            (known.last_seq, None, ["theirs"]),
            (known.last_seq, known.epoch + 1, ["i0", "i1", "theirs"]),
            (0, known.epoch, ["i0", "i1", "theirs"]),
        ):
            with pytest.raises(Conflict) as caught:
                await store.append("s", [said("mine")], expected=known.version, after=after, epoch=epoch)
            assert ids(caught.value.missed) == missed
            assert caught.value.missed.items == now.items[-len(missed) :]
            assert present(caught.value.missed) == present(now)

    async def test_a_conflict_does_not_show_payloads_in_its_text(self, store: SessionStore) -> None:
        await store.append("s", [said("my secret")])
        with pytest.raises(Conflict) as caught:
            await store.append("s", [said("my other secret")], expected=0, after=0)
        assert ids(caught.value.missed) != []
        assert "secret" not in str(caught.value) + repr(caught.value)

    async def test_expected_zero_means_that_it_must_not_exist(self, store: SessionStore) -> None:
        created = present(await store.append("s", [said("a", "a")], expected=0))
        with pytest.raises(Conflict) as caught:
            await store.append("s", [said("b", "b")], expected=0)
        assert caught.value.actual == created.version
        assert await contents(store, "s") == ["a"]

    async def test_an_empty_session_exists(self, store: SessionStore) -> None:
        version = present(await store.append("s", [])).version
        assert version > 0
        with pytest.raises(Conflict):
            await store.append("s", numbered(1), expected=0)
        await store.append("s", numbered(1), expected=version)

    @pytest.mark.parametrize("expected", [1, HUGE])
    async def test_a_version_of_a_missing_session_is_a_conflict_with_nothing(
        self, store: SessionStore, expected: int
    ) -> None:
        with pytest.raises(Conflict) as caught:
            await store.append("s", numbered(1), expected=expected, after=0)
        assert (caught.value.expected, caught.value.actual) == (expected, 0)
        assert caught.value.missed == History(None)
        assert await store.read("s") == History(None)

    async def test_after_brings_what_others_stored_and_not_the_calls_own_items(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(2)))
        await store.append("s", [said("theirs", "theirs")])
        answer = await store.append("s", [said("mine", "mine")], after=known.last_seq, epoch=known.epoch)
        now = await store.read("s")
        assert answer == History(now.session, now.items[2:3])
        assert ids(answer) == ["theirs"]

    async def test_after_none_brings_nothing(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        assert (await store.append("s", [said("x")])).items == ()
        assert (await store.append("s", [said("y")], epoch=known.epoch)).items == ()
        assert (await store.append("s", [said("z")], epoch=known.epoch + 1)).items == ()

    async def test_after_zero_brings_everything_else(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        assert ids(await store.append("s", [said("x")], after=0)) == ["i0", "i1", "i2"]
        assert ids(await store.append("new", [said("x")], after=0)) == []

    async def test_after_works_without_items(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        assert ids(await store.append("s", [], after=1, epoch=known.epoch)) == ["i1", "i2"]

    async def test_another_epoch_brings_everything(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(3)))
        await store.remove("s", ["i1"])
        answer = await store.append("s", [said("x")], after=known.last_seq, epoch=known.epoch)
        assert ids(answer) == ["i0", "i2"]

    async def test_after_beyond_the_last_seq_brings_everything_if_it_comes_with_an_epoch(
        self, store: SessionStore
    ) -> None:
        known = present(await store.append("s", numbered(3)))
        for after in (4, HUGE):
            assert ids(await store.append("s", [], after=after, epoch=known.epoch)) == ["i0", "i1", "i2"]
            assert ids(await store.append("s", [], after=after)) == []

    async def test_after_does_not_bring_what_keep_trimmed_long_ago(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(5), keep=2))
        assert ids(await store.append("s", [said("x")], after=1, epoch=known.epoch)) == ["i3", "i4"]

    async def test_after_does_not_bring_what_keep_trims_in_the_same_call(self, store: SessionStore) -> None:
        known = present(await store.append("s", numbered(5)))
        assert ids(await store.append("s", [said("x")], after=0, epoch=known.epoch, keep=3)) == ["i3", "i4"]
        assert ids(await store.append("s", [], after=0, keep=1)) == [(await store.read("s")).items[0].id]

    async def test_a_call_of_many_items_is_stored_whole(self, store: SessionStore) -> None:
        await store.append("s", numbered(2500))
        assert await contents(store, "s") == [f"i{n}" for n in range(2500)]
