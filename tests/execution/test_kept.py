from __future__ import annotations

from mmq_sweeps.execution.kept import Kept, share_of_memory


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept: Kept[str] = Kept(10)
    kept.put("a", "A", 4)
    kept.put("b", "B", 4)
    assert kept.get("a") == "A"
    kept.put("c", "C", 4)
    assert [kept.get(key) for key in "abc"] == ["A", None, "C"]
    assert kept.size_bytes == 8
    kept.put("a", "again", 6)
    assert (kept.get("a"), kept.size_bytes) == ("again", 10)
    kept.put("d", "too large", 11)
    assert (kept.get("d"), kept.get("a")) == (None, "again")
    kept.clear()
    assert (kept.get("a"), kept.size_bytes) == (None, 0)


def test_the_bound_is_a_part_of_what_is_free() -> None:
    assert share_of_memory() > 0
