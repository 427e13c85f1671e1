import pytest

from webai_api.errors import DuplicateId, IdReused
from webai_api.protocol import DEDUPE_WINDOW, SessionStore
from webai_api.testing.vocabulary import contents, ids, numbered, present, said
from webai_api.types import History, Item

__all__ = ["Repeats"]


class Repeats:
    """What happens when ids come again."""

    async def test_a_retried_append_stores_nothing_twice(self, store: SessionStore) -> None:
        item = said("hi")
        first = await store.append("s", [item])
        assert await store.append("s", [item]) == first
        assert await contents(store, "s") == [item.id]

    async def test_a_retried_turn_stores_nothing_twice(self, store: SessionStore) -> None:
        await store.append("s", [said("before")])
        first = present(await store.append("s", numbered(3)))
        await store.append("s", [said("after")])
        now = await store.read("s")
        for _ in range(3):
            assert present(await store.append("s", numbered(3))) == present(now)
        assert await store.read("s") == now
        assert present(now).version > first.version

    async def test_a_repeat_succeeds_whatever_is_expected(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(2), expected=0))
        for expected in (0, 1, first.version, first.version + 1):
            assert present(await store.append("s", numbered(2), expected=expected)) == first
        await store.append("s", [said("x", "x")], expected=first.version)

    async def test_a_repeat_does_not_apply_metadata_and_keep_again(self, store: SessionStore) -> None:
        await store.append("s", numbered(3), metadata={"title": "first"}, keep=2)
        await store.append("s", numbered(3, "j"), metadata={"title": "second"})
        before = await store.read("s")
        await store.append("s", numbered(3), metadata={"title": "first"}, keep=2)
        await store.append("s", numbered(3, "j"), metadata={}, keep=1)
        assert await store.read("s") == before

    async def test_a_repeat_brings_the_news_without_its_own_items(self, store: SessionStore) -> None:
        known = present(await store.append("s", [said("a", "a")]))
        await store.append("s", [said("theirs", "theirs")])
        await store.append("s", numbered(2))
        await store.append("s", [said("later", "later")])
        again = await store.append("s", numbered(2), after=known.last_seq, epoch=known.epoch)
        assert ids(again) == ["theirs", "later"]
        assert present(again) == present(await store.read("s"))
        assert (await store.append("s", numbered(2))).items == ()

    async def test_one_item_of_a_turn_alone_is_a_repeat(self, store: SessionStore) -> None:
        first = present(await store.append("s", numbered(4)))
        for part in ([0], [3], [1, 2], [0, 1, 2]):
            assert present(await store.append("s", [numbered(4)[n] for n in part])) == first

    async def test_the_same_id_with_other_content_is_refused(self, store: SessionStore) -> None:
        await store.append("s", numbered(3))
        before = await store.read("s")
        with pytest.raises(IdReused) as caught:
            await store.append("s", [said("i0", "i0"), said("other secret", "i1"), said("i2", "i2")], metadata={"k": 1})
        assert caught.value.session_id == "s"
        assert caught.value.item_ids == ("i1",)
        assert "secret" not in str(caught.value)
        assert await store.read("s") == before

    async def test_another_key_or_another_value_is_other_content(self, store: SessionStore) -> None:
        await store.append("s", [Item(id="a", data={"role": "user", "content": "x", "n": 1})])
        for payload in (
            {"role": "user", "content": "x"},
            {"role": "user", "content": "x", "n": 1, "m": None},
            {"role": "user", "content": "x", "n": 2},
            {"role": "user", "content": "x", "n": "1"},
            {"role": "user", "content": "x ", "n": 1},
            {},
        ):
            with pytest.raises(IdReused):
                await store.append("s", [Item(id="a", data=payload)])
        assert await contents(store, "s") == ["a"]

    async def test_the_order_of_keys_is_not_content(self, store: SessionStore) -> None:
        first = present(await store.append("s", [Item(id="a", data={"x": 1, "y": {"p": 1, "q": [2]}})]))
        assert present(await store.append("s", [Item(id="a", data={"y": {"q": [2], "p": 1}, "x": 1})])) == first

    async def test_a_mix_of_known_and_new_ids_is_refused(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        before = await store.read("s")
        for items, known in (
            ([said("new", "n"), said("i1", "i1")], ("i1",)),
            ([*numbered(2), said("new", "n")], ("i0", "i1")),
            ([said("i0", "i0"), said("new", "n"), said("i1", "i1")], ("i0", "i1")),
        ):
            with pytest.raises(DuplicateId) as caught:
                await store.append("s", items, ttl=100, keep=1, metadata={"k": 1})
            assert caught.value.session_id == "s"
            assert caught.value.item_ids == known
        assert await store.read("s") == before

    async def test_items_that_were_not_stored_as_one_unit_are_refused(self, store: SessionStore) -> None:
        a, b, c = numbered(3)
        await store.append("s", [a, b])
        await store.append("s", [c])
        before = await store.read("s")
        for items in ([b, a], [a, c], [c, a, b]):
            with pytest.raises(DuplicateId):
                await store.append("s", items)
        assert await store.read("s") == before

    async def test_the_same_id_in_another_session_is_another_item(self, store: SessionStore) -> None:
        await store.append("s", [said("one", "a")])
        await store.append("other", [said("two", "a")])
        assert (await store.read("other")).items[0].data["content"] == "two"

    async def test_an_id_is_known_while_it_is_one_of_the_last_64(self, store: SessionStore) -> None:
        await store.append("s", [said("x", "x")])
        await store.append("s", numbered(DEDUPE_WINDOW - 1))
        await store.append("s", [said("x", "x")])
        assert len(await contents(store, "s")) == DEDUPE_WINDOW
        with pytest.raises(IdReused):
            await store.append("s", [said("y", "x")])

    async def test_an_id_is_forgotten_after_64_others(self, store: SessionStore) -> None:
        await store.append("s", [said("x", "x")])
        await store.append("s", numbered(DEDUPE_WINDOW - 4))
        await store.append("s", numbered(4, "j"))
        await store.append("s", [said("y", "x")])
        found = await contents(store, "s")
        assert len(found) == DEDUPE_WINDOW + 2
        assert found.count("x") == 2

    async def test_of_items_that_share_an_id_the_newest_is_removed(self, store: SessionStore) -> None:
        await store.append("s", [said("x", "x")])
        await store.append("s", numbered(DEDUPE_WINDOW))
        await store.append("s", [said("y", "x")])
        assert (await store.remove("s", ["x"])).ids == ("x",)
        assert (await store.read("s")).items[0].data["content"] == "x"
        assert await contents(store, "s") == ["x", *(f"i{n}" for n in range(DEDUPE_WINDOW))]
        assert (await store.remove("s", ["x"])).ids == ("x",)
        assert (await store.remove("s", ["x"])).ids == ()

    @pytest.mark.parametrize("count", [DEDUPE_WINDOW, DEDUPE_WINDOW + 1, 130, 2000])
    async def test_a_call_as_large_as_the_window_and_larger_can_be_retried(
        self, store: SessionStore, count: int
    ) -> None:
        await store.append("s", numbered(3, "before"))
        first = await store.append("s", numbered(count))
        assert await store.append("s", numbered(count)) == first
        assert present(await store.append("s", numbered(count)[:10])) == present(first)
        assert present(await store.read("s")) == present(first)

    async def test_after_a_large_call_the_window_is_64_again(self, store: SessionStore) -> None:
        await store.append("s", numbered(200))
        await store.append("s", [said("x", "x")])
        await store.append("s", numbered(200)[-DEDUPE_WINDOW + 1 :])
        assert len(await contents(store, "s")) == 201
        with pytest.raises(DuplicateId):
            await store.append("s", numbered(200)[-DEDUPE_WINDOW:])

    async def test_trimmed_ids_are_still_known(self, store: SessionStore) -> None:
        await store.append("s", numbered(5), keep=1)
        before = await store.read("s")
        await store.append("s", numbered(5))
        await store.append("s", numbered(5)[:2])
        with pytest.raises(IdReused):
            await store.append("s", [said("other", "i0")])
        assert await store.read("s") == before

    async def test_removed_ids_are_still_known(self, store: SessionStore) -> None:
        await store.append("s", numbered(4))
        await store.remove("s", ["i1", "i2"])
        before = await store.read("s")
        assert await store.append("s", numbered(4)) == History(before.session)
        assert await store.append("s", [said("i1", "i1")]) == History(before.session)
        with pytest.raises(IdReused):
            await store.append("s", [said("edited", "i1")])
        with pytest.raises(DuplicateId):
            await store.append("s", [said("i2", "i2"), said("n", "n")])
        assert await store.read("s") == before

    async def test_removals_do_not_make_the_window_smaller(self, store: SessionStore) -> None:
        await store.append("s", numbered(DEDUPE_WINDOW))
        await store.remove("s", [f"i{n}" for n in range(1, DEDUPE_WINDOW)])
        await store.append("s", numbered(DEDUPE_WINDOW))
        assert await contents(store, "s") == ["i0"]

    async def test_a_session_emptied_by_removal_knows_its_ids(self, store: SessionStore) -> None:
        await store.append("s", numbered(2))
        await store.remove("s", ["i0", "i1"])
        await store.append("s", numbered(2), expected=0)
        assert await contents(store, "s") == []

    async def test_an_item_equal_to_another_but_for_its_id_is_another(self, store: SessionStore) -> None:
        await store.append("s", [said("same", "a")])
        await store.append("s", [said("same", "b")])
        assert await contents(store, "s") == ["a", "b"]
