"""Models of several inputs: the same result under every strategy, and bad input in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from attending import LENGTH, Reader, arrays, reading
from equality import assert_bytes, assert_same
from rank_threads import ThreadRun, run_on_threads
from test_memory import measured
from torch import Tensor, nn

import workbench as wb
from workbench.errors import PlanError
from workbench.inputs import check_values, check_workload
from workbench.mixing import mixes_of, notes_on_samples
from workbench.placement import pieces
from workbench.planning import plan
from workbench.verify import verify_workload

STEPS = 5


@cache
def serial(late: bool, kind: str) -> ThreadRun:
    return run_on_threads(reading(late, kind), "serial", STEPS)


# ---------------------------------------------------------------------------- the same result


@pytest.mark.parametrize(
    ("strategy", "options", "late", "kind"),
    [
        ("serial", {"accumulate": 2}, False, "bool"),
        ("data=2", {}, False, "bool"),
        ("data=2", {"accumulate": 2}, False, "float32"),
        ("data=3", {}, False, "bool"),
        ("data=3", {}, True, "float32"),
        ("tensor=2", {}, False, "bool"),
        ("tensor=2", {}, True, "float32"),
        ("tensor=2", {"sequence": "split"}, False, "bool"),
        ("pipeline=2", {"accumulate": 2}, False, "bool"),
        ("pipeline=2", {"accumulate": 2}, True, "bool"),
        ("pipeline=2", {"accumulate": 2}, False, "float32"),
        ("pipeline=2", {"accumulate": 2, "recompute": "yes"}, True, "float32"),
        ("sharded=2", {"stage": 3}, False, "bool"),
        ("data=2,tensor=2", {"accumulate": 2}, False, "bool"),
        ("pipeline=2,data=2", {"accumulate": 2}, False, "bool"),
    ],
)
def test_training_with_a_mask_equals_serial(
    late: bool, kind: str, strategy: str, options: dict[str, Any]
) -> None:
    run = run_on_threads(reading(late, kind), strategy, STEPS, **options)
    assert_same(run, serial(late, kind))
    assert_bytes(run)


def test_serial_training_is_that_of_a_plain_loop() -> None:
    work = reading()
    model, order = work.make_model(), range(3)
    optimizer = work.make_optimizer(model.parameters())
    from workbench.order import Order

    drawn = Order(work.samples, work.batch_size, work.seed)
    losses = []
    for step in order:
        rows = drawn.rows(step, 1, 0)[0].index
        words, mask, y = (torch.from_numpy(a.compute()[rows]) for a in (*work.inputs, work.y))
        assert (words.dtype, mask.dtype) == (torch.int64, torch.bool)
        loss = nn.functional.cross_entropy(model(words, mask), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(serial(False, "bool").losses[:3], losses, rtol=1e-12)


def test_the_mask_counts() -> None:
    (words, mask), y = arrays(21)
    seen = run_on_threads(reading(data=((words, np.ones_like(mask)), y)), "serial", 2)
    assert abs(seen.losses - serial(False, "bool").losses[:2]).max() > 1e-6


def test_a_batch_that_leaves_a_rank_without_samples_and_with_several_inputs() -> None:
    work = reading(batch_size=4)
    expected = run_on_threads(work, "serial", 6)
    for strategy in ("data=3", "data=2,pipeline=2"):
        assert_same(run_on_threads(work, strategy, 6, accumulate=3), expected)


def test_the_test_data_is_scored_with_its_masks() -> None:
    work = reading()
    run = run_on_threads(work, "data=2", 2)
    model = work.make_model().eval()
    state = {name.partition(":")[2]: torch.from_numpy(v) for name, v in run.state.items()
             if name.startswith("parameter:")}  # fmt: skip
    model.load_state_dict(state)
    words, mask, y = (torch.from_numpy(a.compute()) for a in (*work.test_inputs, work.test_y))
    expected = nn.functional.cross_entropy(model(words, mask), y)
    score = run.outcomes[0].score
    assert score is not None
    assert score.samples == 9
    assert score.loss == pytest.approx(expected.item(), rel=1e-12)


def test_inputs_by_name_are_those_in_order() -> None:
    (words, mask), y = arrays(21)
    (test_words, test_mask), test_y = arrays(9, seed=1)
    work = reading(
        data=({"mask": mask, "words": words}, y),
        test_data=({"words": test_words, "mask": test_mask}, test_y),
    )
    assert work.input_names == ("mask", "words")
    assert work.sample_shapes == ((LENGTH,), (LENGTH,))
    assert work.input_dtypes == ("bool", "int64")
    for strategy in ("serial", "data=3", "tensor=2", "pipeline=2", "sharded=2"):
        assert_same(run_on_threads(work, strategy, STEPS), serial(False, "bool"))
    assert verify_workload(work, "data=2,tensor=2").same_result


@pytest.mark.parametrize("strategy", ["data=3", "tensor=2", "pipeline=2", "data=2,tensor=2"])
@pytest.mark.parametrize("late", [False, True])
def test_one_pass_is_proved(strategy: str, late: bool) -> None:
    proof = verify_workload(reading(late), strategy)
    assert proof.same_result, str(proof)
    assert proof.sent_bytes == proof.predicted_bytes


@pytest.mark.parametrize("strategy", ["serial", "data=2", "pipeline=2"])
def test_mixed_precision_leaves_whole_numbers_and_bools(strategy: str) -> None:
    for kind in ("bool", "float32"):
        work = reading(kind=kind, dtype="float32")
        run = run_on_threads(work, strategy, 3, precision="bf16")
        np.testing.assert_allclose(run.losses, serial(False, "bool").losses[:3], rtol=0.05)


# ---------------------------------------------------------------------------- images with others


class Tinted(nn.Module):
    """An image, a mask of its size, and a row of numbers: only the first two have positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.tint = nn.Linear(5, 4)

    def forward(self, tint: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(image)) + self.tint(tint)[:, :, None, None]
        return self.last(hidden * mask)  # type: ignore[no-any-return]


def tinted() -> wb.Workload:
    source = np.random.default_rng(0)
    image = source.normal(size=(6, 3, 10, 7))
    mask = source.random((6, 1, 10, 7)) < 0.5
    torch.manual_seed(0)
    return wb.Workload(
        model=Tinted(),
        data=((source.normal(size=(6, 5)), image, mask), image),
        loss=nn.MSELoss(),
        batch_size=6,
        dtype="float64",
    )


@pytest.mark.parametrize("strategy", ["spatial=3", "spatial=2x2", "data=2,spatial=2", "channel=2"])
def test_of_several_inputs_those_of_the_images_size_are_cut(strategy: str) -> None:
    work = tinted()
    run = run_on_threads(work, strategy, STEPS)
    expected = run_on_threads(work, "serial", STEPS)
    for name, value in expected.state.items():
        np.testing.assert_allclose(run.state[name], value, rtol=0, atol=1e-9, err_msg=name)
    assert_bytes(run)
    if "spatial" in strategy:
        taken = pieces(work, run.plan, 1)
        assert taken["x"][1][1] == (0, 5)
        assert taken["x[1]"][1][2:] == taken["x[2]"][1][2:] == taken["y"][1][2:]
        assert taken["x[1]"][1][2:] != ((0, 10), (0, 7))


def test_a_mask_with_fewer_dims_than_its_image_is_refused_with_what_works() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return self.conv(image) * mask.view(len(mask), 1, *mask.shape[-2:])  # type: ignore[no-any-return]

    image, mask = np.zeros((4, 3, 8, 8)), np.ones((4, 8, 8), bool)
    work = wb.Workload(model=Flat(), data=((image, mask), image), loss=nn.MSELoss(), batch_size=4)
    with pytest.raises(PlanError, match="as one more input, of as many dims"):
        plan(work, "spatial=2")
    assert plan(work.with_(data=((image, mask[:, None]), image)), "spatial=2").ranks == 2


# ---------------------------------------------------------------------------- bytes and memory


@pytest.mark.parametrize("kind", ["bool", "float32"])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [("serial", {}), ("data=2", {}), ("tensor=2", {}), ("pipeline=2", {"accumulate": 4})],
)
def test_memory_counts_what_is_kept_of_every_input(
    monkeypatch: pytest.MonkeyPatch, kind: str, strategy: str, options: dict[str, Any]
) -> None:
    work = reading(kind=kind, batch_size=16, data=arrays(32, kind))
    planned = plan(work, strategy, **options)
    for rank, got in measured(monkeypatch, work, strategy, **options).items():
        want = planned.memory(rank)
        assert got.parameters_bytes == want.parameters_bytes
        assert got.activations_bytes == pytest.approx(want.activations_bytes, rel=0.1)


def test_bytes_of_samples_count_every_input() -> None:
    from workbench.ui.placement_state import chunks_of

    planned = plan(reading(), "serial")
    assert sum(chunks_of(planned, "data", 5).values()) == 21 * (LENGTH * (8 + 1) + 8)


def test_code_that_mixes_samples_of_another_input_is_told() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return self.layer(x) * (weight / weight.sum(0))[:, None]  # type: ignore[no-any-return]

    x, weight = torch.empty(8, 3, device="meta"), torch.empty(8, device="meta")
    (note,) = noted(Mixes(), (x, weight))
    assert note.startswith("code mixes the samples of a batch: Mixes.forward (sum over")
    kinds = (torch.int64, torch.bool)
    masked = [torch.empty(8, LENGTH, dtype=kind, device="meta") for kind in kinds]
    assert noted(Reader(), masked) == []


def noted(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[str]:
    return notes_on_samples(model, inputs, mixes_of(model, inputs), 1.0, ("replica",))


# ---------------------------------------------------------------------------- what is taken


def test_every_input_is_what_one_may_be(tmp_path: Path) -> None:
    (words, mask), y = arrays(21)
    np.save(tmp_path / "words.npy", words)
    lazy = wb.dataset(tmp_path / "words.npy")["x"]
    tensor, chunked = torch.from_numpy(mask), da.from_array(mask, chunks=(4, 3))
    for given in ([lazy, tensor], (lazy, chunked), (torch.from_numpy(words), mask)):
        work = reading(data=(given, y))
        assert work.samples == 21
        assert work.input_dtypes == ("int64", "bool")
        for got, want in zip(work.inputs, (words, mask), strict=True):
            np.testing.assert_array_equal(got.compute(), want)
        run = run_on_threads(work, "data=2", 2)
        np.testing.assert_array_equal(run.losses, run_on_threads(reading(), "data=2", 2).losses)
    assert repr(work) == (
        "<Workload custom: Reader, 21 samples of shape (6,) and (6,), batch 8, float64>"
    )


def test_lazy_layers_get_their_shapes_from_every_input() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.LazyLinear(4), nn.LazyLinear(2)

        def forward(self, x: Tensor, row: Tensor) -> Tensor:
            return self.last(torch.cat([self.first(x), row], 1))  # type: ignore[no-any-return]

    data = ((np.zeros((8, 3)), np.zeros((8, 5))), Y[:8] % 2)
    model = wb.Workload(model=Lazy, data=data, batch_size=4).make_model()
    assert (model.first.weight.shape, model.last.weight.shape) == ((4, 3), (2, 9))
    deep = ((data[0][0], data[0][1][..., None]), data[1])
    with pytest.raises(PlanError, match=r"sample of shape \(3,\) and \(5, 1\)"):
        wb.Workload(model=Lazy, data=deep, batch_size=4).make_model()


def test_a_tuple_of_one_is_one_input() -> None:
    x, y = np.zeros((12, 3), np.uint8), np.arange(12) % 2
    model = nn.Linear(3, 2)
    work = wb.Workload(model=model, data=((x,), y), batch_size=4)
    assert (work.input_dtypes, work.sample_shape) == (("float32",), (3,))
    assert plan(work, "data=2").ranks == 2
    named = wb.Workload(model=model, data=({"input": x}, y), batch_size=4)
    assert run_on_threads(named, "data=2", 2).losses.tolist() == pytest.approx(
        run_on_threads(work, "serial", 2).losses.tolist()
    )


WORDS, MASK = arrays(21)[0]
Y = arrays(21)[1]


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ((WORDS, MASK[:-1]), r"21 samples in x\[0\] and 20 in x\[1\]; .* cut all to 20"),
        ((WORDS[:-1], MASK[:-1]), r"20 samples in x\[0\] and 21 in y; .* cut all to 20"),
        ({"words": WORDS, "mask": MASK[:3]}, r"21 samples in x\['words'\] and 3 in x\['mask'\]"),
        ((), "x is an empty tuple; give one array, or a tuple"),
        ({}, "x is an empty dict"),
        ((WORDS, (MASK, MASK)), r"x\[1\] is a tuple of arrays; .* one flat tuple"),
        (((WORDS, MASK), (WORDS, MASK)), r"x\[0\] is a tuple of arrays"),
        ({"words": WORDS, "mask": [MASK]}, r"x\['mask'\] is a list of arrays"),
        ((WORDS, MASK.tolist()), r"x\[1\] is a list; give a dask array"),
        ((WORDS, None), r"x\[1\] is a NoneType"),
        (WORDS.tolist(), "x is a list; give a dask array"),
        ({"words": WORDS, 3: MASK}, "x has the key 3, which is no name of an argument"),
    ],
    ids=str,
)
def test_data_of_several_inputs_that_cannot_be_used_is_refused(x: Any, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        reading(data=(x, Y), test_data=None)


def test_data_that_is_no_pair_names_the_pair() -> None:
    with pytest.raises(PlanError, match=r"pair \(x, y\), where x is .* got a tuple of 3"):
        reading(data=(WORDS, MASK, Y))


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (WORDS, r"The test data has x, and the data to learn from x\[0\] and x\[1\]"),
        ({"words": WORDS, "mask": MASK}, r"has x\['words'\] and x\['mask'\], and the data to"),
    ],
)
def test_test_data_has_the_same_inputs(test: Any, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        reading(test_data=(test, Y))


class Takes(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3)
        self.forward = {  # type: ignore[method-assign]
            1: lambda words: self.embed(words).mean(1),
            3: lambda words, mask, kinds: self.embed(words).mean(1),
        }[inputs]


@pytest.mark.parametrize(
    ("x", "takes", "reason"),
    [
        ((WORDS, MASK), 1, r"2 inputs for the model \(x\[0\], x\[1\]\), and Takes takes \(words\)"),
        ((WORDS, MASK), 3, r"takes \(words, mask, kinds\): missing a required argument: 'kinds'"),
        (WORDS, 3, r"1 input for the model \(x\), .* missing a required argument: 'mask'"),
        ({"words": WORDS, "seen": MASK}, 1, r"x\['seen'\].* unexpected keyword argument 'seen'"),
    ],
)
def test_a_model_that_takes_more_or_fewer_inputs_is_refused(
    x: Any, takes: int, reason: str
) -> None:
    work = reading(model=lambda: Takes(takes), data=(x, Y), test_data=None)
    with pytest.raises(PlanError, match=reason):
        check_workload(work)


def test_whole_numbers_that_a_model_wants_as_real_ones_are_named() -> None:
    work = tinted()
    _, image, mask = (x.compute() for x in work.inputs)
    tint, levels = np.ones((6, 5), np.int32), (255 * mask).astype(np.uint8)
    for x, named in (
        ((tint, image, levels), r"give x\[0\] as real numbers, with \.astype\('float64'\)"),
        ((tint, image.astype(int), mask), r"give x\[0\] and x\[1\] as real numbers"),
    ):
        with pytest.raises(PlanError, match=named):
            plan(work.with_(data=(x, image)), "data=2")


def test_a_value_that_is_no_number_is_found_in_every_input() -> None:
    (words, mask), y = arrays(21, "float32")
    mask[13, 2] = np.nan
    with pytest.raises(PlanError, match=r"^x\[1\]\[13, 2\] is nan; the data must be finite"):
        check_values(reading(data=((words, mask), y)), 3)
    named = reading(data=({"words": words, "mask": mask}, y), test_data=None)
    with pytest.raises(PlanError, match=r"^x\['mask'\]\[13, 2\] is nan"):
        check_values(named, 3)
    with pytest.raises(PlanError, match=r"^test x\[1\]\[13, 2\] is nan"):
        check_values(reading(data=arrays(21, "float32"), test_data=((words, mask), y)), 3)
