"""Zero shards cover the flat parameters once, and keep the weight decay of every element."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt.distributed.zero import (
    ALIGNMENT,
    ZeroShard,
    segments_of_shard,
    shard_of,
    shard_size,
)


@given(
    num_parameters=st.integers(1, 500).map(lambda n: 8 * n),
    num_shards=st.integers(1, 9),
)
def test_shards_are_aligned_and_cover_everything_once(num_parameters: int, num_shards: int) -> None:
    shards = [shard_of(num_parameters, num_shards, rank) for rank in range(num_shards)]
    size = shard_size(num_parameters, num_shards)
    starts = [min(rank * size, num_parameters) for rank in range(num_shards)]
    assert [shard.start for shard in shards] == starts
    assert [shard.stop for shard in shards] == [*starts[1:], num_parameters]
    assert all(shard.start % ALIGNMENT == 0 for shard in shards)
    assert size * num_shards - num_parameters < ALIGNMENT * num_shards or num_shards == 1


@settings(max_examples=50)
@given(data=st.data())
def test_the_segments_of_a_shard_keep_the_decay_of_every_element(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, 99), max_size=6)))
    bounds = [0, *cuts, 100]
    whole = np.zeros(100, bool)
    segments = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        segments.append((start, stop, i % 2 == 0))
        whole[start:stop] = i % 2 == 0
    start = data.draw(st.integers(0, 99))
    shard = ZeroShard(start, data.draw(st.integers(start + 1, 100)))
    found = np.zeros(shard.size, bool)
    reached = 0
    for first, last, decay in segments_of_shard(segments, shard):
        assert first == reached
        found[first:last] = decay
        reached = last
    assert reached == shard.size
    np.testing.assert_array_equal(found, whole[shard.start : shard.stop])
