from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    LAYER_KINDS,
    PART_ORDER,
    SLOTS,
    Numbered,
    Rule,
    Setting,
    Slot,
    Structure,
    bits_label,
    block_groups,
    covers_part,
    mean_bits,
    numbered_of,
    part_order,
    rules_of_slots,
    rules_of_units,
)

SETTINGS = st.sampled_from([Setting(bits, method) for bits in (2, 3) for method in ("a", "b")])


def units_of(rules: list[Rule], structure: Structure) -> dict[Numbered, Setting]:
    """Spell rules out; fail if two rules name the same unit."""
    found: dict[Numbered, Setting] = {}
    for rule in rules:
        inside = list(rule.units)
        inside += [unit for slot, units in structure.slots().items() for unit in units if slot in slots_of(rule)]
        for unit in inside:
            assert unit not in found
            found[unit] = rule.setting
    return found


def slots_of(rule: Rule) -> list[Slot]:
    return [(group, kind) for group in rule.blocks for kind in rule.layers]


def whole(blocks: int) -> Structure:
    return Structure(blocks, tuple((block, kind) for block in range(blocks) for kind in LAYER_KINDS))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(SLOTS), SETTINGS), st.integers(1, 7))
def test_slots_and_the_units_that_they_hold_have_one_form(by_slot: dict[Slot, Setting], blocks: int) -> None:
    structure = whole(blocks)
    rules = rules_of_slots(by_slot)
    numbered = {unit: by_slot[slot] for slot, units in structure.slots().items() if slot in by_slot for unit in units}
    assert units_of(rules, structure) == numbered
    assert {slot: rule.setting for rule in rules for slot in slots_of(rule)} == by_slot
    if blocks >= len(BLOCK_GROUPS):
        assert rules_of_units(numbered, structure) == rules


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7))
def test_rules_by_number_assign_what_was_given(data: st.DataObject, blocks: int) -> None:
    kinds = data.draw(st.lists(st.sampled_from(LAYER_KINDS), min_size=1, unique=True))
    structure = Structure(
        blocks, tuple((block, kind) for block in range(blocks) for kind in LAYER_KINDS if kind in kinds)
    )
    assigned = data.draw(st.dictionaries(st.sampled_from(structure.units), SETTINGS))
    rules = rules_of_units(assigned, structure)
    assert units_of(rules, structure) == assigned
    again = rules_of_units(dict(reversed(assigned.items())), structure)
    assert again == rules


def test_a_part_of_few_blocks_that_is_quantized_as_a_whole_has_the_form_of_a_number() -> None:
    setting = Setting(4, "a")
    for structure in (whole(1), whole(2), Structure(2, ((0, "mlp"), (1, "mlp")))):
        (rule,) = rules_of_units(dict.fromkeys(structure.units, setting), structure)
        assert rule == Rule(setting, BLOCK_GROUPS, LAYER_KINDS)


def test_groups_are_thirds() -> None:
    assert block_groups(2) == {"front": range(0), "middle": range(1), "end": range(1, 2)}
    assert [len(span) for span in block_groups(32).values()] == [10, 11, 11]


def test_labels_read_as_a_person_writes() -> None:
    everything = {"blocks": list(BLOCK_GROUPS), "layers": list(LAYER_KINDS)}
    assert bits_label({"bits": 3, **everything}) == "3"
    assert bits_label({"bits": 8}) == "8"
    assert bits_label({"bits": 3, **everything, "group_size": 64}) == "3 g64"
    assert bits_label({"bits": 3, "blocks": ["front"], "layers": ["attention"]}) == "3 (front attention)"
    kinds = [{"bits": bits, **everything, "layers": [kind]} for bits, kind in ((4, "attention"), (3, "mlp"))]
    assert bits_label({"rules": kinds}) == "attention 4, mlp 3"
    numbered = [{"rules": [kinds[0], {"bits": 2, "units": [unit]}]} for unit in ("0.mlp", "1.mlp")]
    labels = [bits_label(selection) for selection in numbered]
    assert all(label.startswith("2 to 4 by unit (") for label in labels)
    assert len(set(labels)) == 2
    assert covers_part({"bits": 3, **everything})
    assert not covers_part({"rules": kinds})
    assert not covers_part({"bits": 3, "blocks": ["front"], "layers": ["mlp"]})


def test_units_are_named_by_block_and_kind() -> None:
    assert numbered_of(["17.mlp", "0.attention"]) == ((17, "mlp"), (0, "attention"))


def test_bits_of_a_part_are_the_mean_of_what_is_quantized() -> None:
    selection = {"rules": [{"bits": 4, "units": ["0.mlp"]}, {"bits": 2, "units": ["1.mlp"]}]}
    # 30 weights of 4 bits, 10 of 2 and 60 parameters left at 16.
    size = {"parameters": 100, "quantized_weights": 40, "bpw_paper": (30 * 4 + 10 * 2 + 60 * 16) / 100}
    assert mean_bits(selection, size) == 3.5
    assert mean_bits(selection, None) is None  # A failed cell has no size.
    assert mean_bits({"bits": 3, "module": ["head"]}, None) == 3


def test_parts_have_one_order() -> None:
    assert sorted(["head", "audio", "language", "embeddings", "vision", "connector"], key=part_order) == [
        *PART_ORDER,
        "audio",
    ]


def test_a_label_says_which_rule_has_a_method_of_its_own() -> None:
    rules = [
        {"bits": 4, "blocks": ["front", "middle", "end"], "layers": ["attention"]},
        {"bits": 3, "blocks": ["front", "middle", "end"], "layers": ["mlp"], "method": {"_target_": "gptq"}},
    ]
    assert bits_label({"rules": rules}) == "attention 4, mlp 3 gptq"
    # Where all of a part has the same method, the name of the cell's methods says it.
    assert bits_label({"rules": [{**rule, "method": {"_target_": "gptq"}} for rule in rules]}) == "attention 4, mlp 3"
