"""The search for block shapes: its choices by an invented clock, its checks in the interpreter."""

import pytest
import torch
from rankreg_ext.triton_kernels import autotune, rank, tuning
from rankreg_ext.triton_kernels.autotune import Setting, Work

from rankreg_ext import _ops

OPERATIONS = ("rank", "blackbox_rank_backward", "positive_ranks", "positive_ranks_backward",
              "rankreg_loss", "rankreg_loss_backward")  # fmt: skip
SHORT = Work(("rank",), (5, 12), lists=2)


@pytest.fixture(autouse=True)
def settings_of_our_own(monkeypatch):
    """One of every kind, in tuning.py for the length of a test."""
    monkeypatch.setattr(tuning, "WIDTH", 4, raising=False)
    monkeypatch.setattr(tuning, "WIDTHS", {8: 4, 16: 4, 32: 4}, raising=False)
    monkeypatch.setattr(tuning, "width", lambda size: {"W": 4}, raising=False)


def clock(milliseconds):
    """Makes the call, then says how long it took: ``milliseconds`` of what stands in tuning.py."""

    def time(call):
        call()
        return milliseconds()

    return time


def tuned(setting, milliseconds):
    said = []
    outcome = autotune.tune(setting, clock(milliseconds), "cpu", 100, said.append)
    return outcome, said


def test_the_fastest_value_is_kept():
    outcome, said = tuned(Setting("WIDTH", (2, 4, 8), SHORT), lambda: 8 / tuning.WIDTH)
    assert tuning.WIDTH == 8
    assert outcome.best == {None: 8} and outcome.gains == {None: 2.0} and outcome.wrong == []
    assert outcome.text() == "WIDTH = 8  # 2.00 x as fast as before"
    assert said == [
        "WIDTH = 4: 2000.0 us (present)",
        "WIDTH = 2: 4000.0 us",
        "WIDTH = 8: 1000.0 us",
    ]


def test_a_gain_within_the_noise_changes_nothing():
    outcome, _ = tuned(Setting("WIDTH", (2, 8), SHORT), lambda: 1 - tuning.WIDTH / 1000)
    assert tuning.WIDTH == 4
    assert outcome.text() == "WIDTH = 4  # as before"


def test_each_power_of_two_of_a_table_has_a_choice():
    """By the lengths that belong to it; there is none of 32."""
    seen = []

    def milliseconds():
        seen.append(tuning.WIDTHS[32])
        return abs(tuning.WIDTHS[8] - 2) + abs(tuning.WIDTHS[16] - 8) + 1

    outcome, _ = tuned(Setting("WIDTHS", lambda size: (2, size // 2), SHORT), milliseconds)
    assert tuning.WIDTHS == {8: 2, 16: 8, 32: 4}
    assert outcome.best == {8: 2, 16: 8} and set(seen) == {4}
    assert outcome.text().splitlines()[0] == "WIDTHS = {"
    text = outcome.text().replace("WIDTHS = ", "")
    assert eval(text) == {8: 2, 16: 8}


def test_a_function_of_the_length_is_a_table_too():
    outcome, _ = tuned(
        Setting("width", ({"W": 2}, {"W": 16}), SHORT),
        lambda: 1 / tuning.width(8)["W"] + tuning.width(16)["W"],
    )
    assert outcome.best == {8: {"W": 16}, 16: {"W": 2}}
    assert tuning.width(8) == {"W": 16} and tuning.width(64) == {"W": 4}
    assert "WIDTH = {\n    8: {'W': 16}," in outcome.text()


def test_a_wrong_result_is_never_timed(monkeypatch):
    right = rank.rank

    def sometimes_wrong(*arguments):
        return right(*arguments) + (tuning.WIDTH == 8)

    monkeypatch.setattr(rank, "rank", sometimes_wrong)
    outcome, said = tuned(Setting("WIDTH", (2, 8), SHORT), lambda: 8 / tuning.WIDTH)
    assert tuning.WIDTH == 4
    assert outcome.wrong == ["WIDTH = 8: WRONG RESULT: rank of (2, 5)"] and outcome.wrong[0] in said
    assert outcome.wrong[0] in autotune.report([outcome], "a GPU")


def test_a_block_that_no_gpu_holds_is_passed_over(monkeypatch):
    from triton.runtime.errors import OutOfResources

    right = rank.rank

    def sometimes_too_large(*arguments):
        if tuning.WIDTH == 8:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return right(*arguments)

    monkeypatch.setattr(rank, "rank", sometimes_too_large)
    outcome, said = tuned(Setting("WIDTH", (2, 8), SHORT), lambda: tuning.WIDTH)
    assert tuning.WIDTH == 2 and outcome.wrong == []
    assert any(line.startswith("WIDTH = 8: OutOfResources: ") for line in said)


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(*arguments):
        raise TypeError("a mistake")

    monkeypatch.setattr(rank, "rank", broken)
    with pytest.raises(TypeError, match="a mistake"):
        tuned(Setting("WIDTH", (2,), SHORT), lambda: 1)
    assert tuning.WIDTH == 4


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_timed_is_checked(operation, monkeypatch):
    """All of what a call returns, not the shape alone."""
    call = autotune.call_of(operation, 12, 3, 2, torch.float32, "cpu", 0)
    assert call.is_right()
    expected = call.expected()
    off = expected[1] + 1 if isinstance(expected, tuple) else expected + 1
    wrong = (expected[0], off) if isinstance(expected, tuple) else off
    monkeypatch.setattr(_ops, f"_{operation}", lambda *arguments: wrong)
    assert not call.is_right()


def test_inputs_take_turns():
    sets = list(autotune._sets(Work(("rank",), (9,)), (9,), "cpu", 27))
    ((first, *others),) = sets
    assert first.arguments[0].shape == (3, 9) and len(others) >= 2
    assert all(not torch.equal(first.arguments[0], other.arguments[0]) for other in others)


def test_settings_are_of_tuning():
    for setting in autotune.SETTINGS:
        assert hasattr(tuning, setting.name), setting.name
        keys = list(setting.keys())
        assert keys, setting.name
        for key, lengths in keys:
            assert lengths
            assert len(setting.values(key)) > 1, (setting.name, key)
            assert set(setting.work.operations) <= set(OPERATIONS)


def test_without_a_gpu_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autotune.main([]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error == "autotune: nothing can be timed here: torch sees no GPU\n"
