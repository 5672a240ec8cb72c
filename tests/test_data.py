"""PositiveBatchSampler: what is in the batches, and that their order can be had again."""

import pickle
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankreg_ext.data import PositiveBatchSampler


def labels(positives: int, negatives: int) -> torch.Tensor:
    order = torch.randperm(
        positives + negatives, generator=torch.Generator().manual_seed(positives * 1000 + negatives)
    )
    return (torch.arange(positives + negatives) < positives)[order]


@st.composite
def samplers(draw):
    positives = labels(draw(st.integers(1, 20)), draw(st.integers(1, 60)))
    batch_size = draw(st.integers(2, 16))
    return PositiveBatchSampler(
        positives,
        batch_size,
        draw(st.integers(1, batch_size - 1)),
        seed=draw(st.integers(-5, 2**70)),
        drop_last=draw(st.booleans()) and (~positives).sum().item() >= batch_size - 1,
    ), positives


@given(samplers())
def test_what_is_in_the_batches(sampler_and_positives):
    sampler, positives = sampler_and_positives
    uses = Counter(positives.nonzero().flatten().tolist())
    for _ in range(3):
        epoch = sampler.epoch
        batches = list(sampler)
        assert (sampler.epoch, sampler.batch) == (epoch + 1, 0)
        assert len(batches) == len(sampler)
        negatives = []
        for batch in batches:
            flags = positives[torch.tensor(batch)].tolist()
            k = sampler.positives_per_batch
            assert flags == [True] * k + [False] * (len(batch) - k)
            uses.update(batch[:k])
            negatives += batch[k:]
        full = batches if sampler.drop_last else batches[:-1]
        assert all(len(batch) == sampler.batch_size for batch in full)
        assert len(set(negatives)) == len(negatives)
        if not sampler.drop_last:
            assert sorted(negatives) == (~positives).nonzero().flatten().tolist()
        # Equally often, over epochs as well.
        assert max(uses.values()) - min(uses.values()) <= 1


@given(samplers(), st.data())
def test_resumes_anywhere(sampler_and_positives, data):
    sampler, positives = sampler_and_positives
    whole = [batch for _ in range(3) for batch in sampler]
    used = data.draw(st.integers(0, 2 * len(sampler)))

    def again():
        return PositiveBatchSampler(
            positives,
            sampler.batch_size,
            sampler.positives_per_batch,
            seed=sampler.seed,
            drop_last=sampler.drop_last,
        )

    def until_the_end(first):
        return [batch for _ in range(3 - first.epoch) for batch in first]

    interrupted = again()
    for _ in range(used // len(sampler)):
        list(interrupted)
    if used % len(sampler):
        list(islice(interrupted, used % len(sampler)))
    resumed = again()
    resumed.load_state_dict(pickle.loads(pickle.dumps(interrupted.state_dict())))
    assert until_the_end(resumed) == whole[used:]

    counted = again()  # as with workers, from one's own count
    counted.set_epoch(used // len(sampler), batch=used % len(sampler))
    assert until_the_end(counted) == whole[used:]


def test_after_the_last_batch_nothing_is_left_of_the_epoch():
    first = PositiveBatchSampler(labels(2, 6), 3, 1)
    epochs = [list(first) for _ in range(2)]
    sampler = PositiveBatchSampler(labels(2, 6), 3, 1)
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(len(sampler))] == epochs[0]  # and not one more
    resumed = PositiveBatchSampler(labels(2, 6), 3, 1)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == []
    assert list(resumed) == epochs[1]


def test_order_depends_on_seed_and_epoch_alone():
    def epochs(seed):
        sampler = PositiveBatchSampler(labels(5, 50), 8, 2, seed=seed)
        return [list(sampler) for _ in range(3)]

    torch.manual_seed(1)
    first = epochs(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert epochs(0) == first
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    other = epochs(1)
    flat = [str(epoch) for epoch in first + other]
    assert len(set(flat)) == 6  # seed 1, epoch 0 is not seed 0, epoch 1 either

    sampler = PositiveBatchSampler(labels(5, 50), 8, 2)
    sampler.set_epoch(2)
    assert list(sampler) == first[2]
    sampler.set_epoch(0)
    assert list(sampler) == first[0] and list(sampler) == first[1]


def test_an_epoch_broken_off_is_over():
    whole = PositiveBatchSampler(labels(5, 50), 8, 2)
    expected = [list(whole) for _ in range(2)]
    sampler = PositiveBatchSampler(labels(5, 50), 8, 2)
    for batch in sampler:
        assert batch == expected[0][0]
        break
    assert list(sampler) == expected[1]


def test_few_positives_are_reused_within_a_batch():
    sampler = PositiveBatchSampler(labels(2, 10), 8, 5)
    for batch in sampler:
        assert sorted(Counter(batch[:5]).values()) == [2, 3]


def test_negatives_are_shuffled_between_epochs():
    sampler = PositiveBatchSampler(labels(1, 100), 11, 1)
    orders = [[i for batch in sampler for i in batch[1:]] for _ in range(2)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_drop_last():
    assert len(PositiveBatchSampler(labels(3, 11), 6, 1)) == 3
    assert len(PositiveBatchSampler(labels(3, 11), 6, 1, drop_last=True)) == 2
    assert len(PositiveBatchSampler(labels(3, 10), 6, 1)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(workers):
    positives = labels(4, 40)
    data = torch.utils.data.TensorDataset(torch.arange(44), positives)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=PositiveBatchSampler(positives, 10, 2), num_workers=workers
    )
    expected = PositiveBatchSampler(positives, 10, 2)
    assert len(loader) == 5
    for _ in range(2):
        seen = [(index.tolist(), flags.sum().item()) for index, flags in loader]
        assert seen == [(batch, 2) for batch in expected]


def test_does_not_change_or_share_the_labels():
    positives = labels(3, 9)
    before = positives.clone()
    sampler = PositiveBatchSampler(positives, 4, 1)
    first = list(sampler)
    assert torch.equal(positives, before)
    positives.fill_(True)
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([True, False], 2, 1), TypeError, "positives must be a bool torch.Tensor, got list"),
        ((torch.tensor([1, 0]), 2, 1), TypeError, "bool .*got torch.int64 .*labels == 1"),
        ((torch.ones(2, 1) > 0, 2, 1), ValueError, r"positives must have 1 dim.*shape \(2, 1\)"),
        ((torch.tensor(True), 2, 1), ValueError, r"positives must have 1 dimension.*shape \(\)"),
        ((torch.zeros(3) > 0, 2, 1), ValueError, "at least one positive, got none among 3"),
        ((torch.zeros(3) == 0, 2, 1), ValueError, "at least one negative, got none among 3"),
        ((torch.zeros(0) > 0, 2, 1), ValueError, "at least one positive, got none among 0"),
        ((labels(2, 5), 1, 1), ValueError, "batch_size must be .*at least 2, got 1"),
        ((labels(2, 5), 4.0, 1), TypeError, "batch_size must be an integer.*got 4.0"),
        ((labels(2, 5), 4, 0), ValueError, "positives_per_batch must be .*at least 1, got 0"),
        ((labels(2, 5), 4, 4), ValueError, r"positives_per_batch must lie in \[1, .*= 3\], got 4"),
        ((labels(2, 5), 4, True), TypeError, "positives_per_batch must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^PositiveBatchSampler: .*{message}"):
        PositiveBatchSampler(*arguments)


def test_bad_keywords():
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        PositiveBatchSampler(labels(2, 5), 4, 1, seed=0.5)
    with pytest.raises(ValueError, match=r"drop_last must leave a batch, got 5 .* and 6 needed"):
        PositiveBatchSampler(labels(2, 5), 8, 2, drop_last=True)
    sampler = PositiveBatchSampler(labels(2, 5), 4, 1)
    with pytest.raises(ValueError, match=r"set_epoch: epoch must be .*at least 0, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(TypeError, match=r"set_epoch: batch must be an integer"):
        sampler.set_epoch(0, batch=1.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: PositiveBatchSampler(labels(2, 5), 4, 1, seed=1), "seed must be .*, 0, got 1"),
        (lambda: PositiveBatchSampler(labels(2, 5), 5, 1), "batch_size must be .*, 4, got 5"),
        (lambda: PositiveBatchSampler(labels(2, 5), 4, 2), "positives_per_batch must be"),
        (lambda: PositiveBatchSampler(labels(3, 5), 4, 1), "positives must be .*, 2, got 3"),
        (lambda: PositiveBatchSampler(labels(2, 6), 4, 1), "negatives must be .*, 5, got 6"),
        (lambda: PositiveBatchSampler(labels(2, 5), 4, 1, drop_last=True), "drop_last must be"),
    ],
)
def test_the_state_of_another_sampler_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        PositiveBatchSampler(labels(2, 5), 4, 1).load_state_dict(other().state_dict())
