"""The meta section by itself; what a writer puts into it is tested in `test_sstable.py`."""

from __future__ import annotations

import itertools
from dataclasses import replace

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
    complete_count=u64,
    key_bytes=u64,
)


@given(metas)
def test_what_is_encoded_is_decoded(meta: TableMeta) -> None:
    assert decode_meta(encode_meta(meta), meta.block_count, meta.file_bytes, version=2) == meta


@given(metas)
def test_version_1_said_nothing_of_keys_and_complete_entries(meta: TableMeta) -> None:
    data = encode_meta(meta)
    old = decode_meta(data[:48] + data[64:], meta.block_count, meta.file_bytes, version=1)
    assert old == replace(meta, complete_count=None, key_bytes=None)
    assert (old.delta_count, old.value_bytes) == (None, None)


@given(metas, st.data())
def test_another_length_is_an_error(meta: TableMeta, data: st.DataObject) -> None:
    encoded = encode_meta(meta)
    length = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:length], encoded + b"\0"):
        with pytest.raises(ValueError, match="meta section"):
            decode_meta(wrong, 0, 0, version=2)


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65, 66, 1000])
def test_quantiles_are_few_and_spread_from_first_to_last(count: int) -> None:
    quantiles = quantiles_of(list(range(count)))
    assert len(quantiles) == min(count, 65)
    if count > 1:
        steps = [b - a for a, b in itertools.pairwise(quantiles)]
        assert (quantiles[0], quantiles[-1]) == (0, count - 1)
        assert max(steps) - min(steps) <= 1
