"""The ledger of memory, beside one that looks at everything at each step."""

from hypothesis import given
from hypothesis import strategies as st

from mimo_role.rehearsal.memory_ledger import MemoryLedger, Purpose

PLACES = [("a", Purpose.ACTIVATIONS), ("a", Purpose.GRADIENTS), ("b", Purpose.OTHER)]
BLOCKS = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(1, 1000), st.integers(0, 5)), max_size=40)


@given(BLOCKS)
def test_the_peak_and_its_parts_are_those_of_the_moment_with_most(blocks):
    ledger, alive, moments = MemoryLedger(), [], [{}]
    for place, size, freed in blocks:
        ledger.add(place, size)
        alive.append((place, size))
        moments.append({each: sum(size for at, size in alive if at == each) for each in PLACES})
        for at, given_back in [alive.pop(0) for _ in range(min(freed, len(alive)))]:
            ledger.add(at, -given_back)
    found = ledger.as_dict()
    assert ledger.total == sum(size for _, size in alive)
    assert found["peak_bytes"] == max(sum(moment.values()) for moment in moments)
    assert found["peak_bytes"] == sum(found[purpose.value] for purpose in Purpose)
    assert found["peak_bytes"] == sum(sum(parts.values()) for parts in found["modules"].values())
    peaks = [moment for moment in moments if sum(moment.values()) == found["peak_bytes"]]
    parts = {(path, Purpose(name)): size for path, sizes in found["modules"].items() for name, size in sizes.items()}
    assert parts in [{place: size for place, size in moment.items() if size} for moment in peaks]


def test_what_is_recognized_at_a_peak_has_its_new_purpose():
    ledger = MemoryLedger()
    ledger.before_peak = lambda: ledger.move(("", Purpose.TEMPORARY), ("layer", Purpose.GRADIENTS), 10)
    ledger.add(("", Purpose.TEMPORARY), 10)
    assert ledger.as_dict()["gradients"] == 10
    assert ledger.as_dict()["modules"] == {"layer": {"gradients": 10}}
