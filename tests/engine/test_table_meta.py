"""The meta section by itself; what a writer puts into it is tested in `test_sstable.py`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.table_meta import TableMeta, TagCount, decode_meta, encode_meta, quantiles_of

u64 = st.integers(0, (1 << 64) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
metas = st.builds(
    TableMeta,
    entry_count=u64,
    live_count=u64,
    raw_bytes=u64,
    position_min=i64,
    position_max=i64,
    expiring_count=u64,
    expiries_ms=st.lists(u64, max_size=65).map(lambda numbers: tuple(sorted(numbers))),
    key_min=st.binary(max_size=300),
    key_max=st.binary(max_size=300),
    tags=st.dictionaries(st.integers(0, 255), st.builds(TagCount, u64, u64)),
    block_count=u64,
    file_bytes=u64,
)


@given(metas)
def test_what_is_encoded_is_decoded(meta: TableMeta) -> None:
    assert decode_meta(encode_meta(meta), meta.block_count, meta.file_bytes) == meta


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65, 66, 1000])
def test_quantiles_are_few_and_spread_from_first_to_last(count: int) -> None:
    quantiles = quantiles_of(list(range(count)))
    assert len(quantiles) == min(count, 65)
    if count > 1:
        steps = [b - a for a, b in itertools.pairwise(quantiles)]
        assert (quantiles[0], quantiles[-1]) == (0, count - 1)
        assert max(steps) - min(steps) <= 1
