"""Models of the transformers package, as they are published: GPT-2, BERT, ViT and ResNet.

Made from a config with random weights; nothing is downloaded. The table in docs/strategies.md says
what these tests show.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import ThreadRun, run_on_threads
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.planning import plan
from workbench.workload import Workload

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STRATEGIES = (
    "data=2",
    "sharded=2",
    "tensor=2",
    "pipeline=2",
    "spatial=2",
    "channel=2",
    "data=2,tensor=2",
    "pipeline=2,data=2",
)


class Logits(nn.Module):
    """The scores out of the dict that such a model returns, classes in dim 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        scores: Tensor = self.model(*inputs).logits
        return scores.transpose(1, 2) if scores.ndim == 3 else scores


def gpt2() -> Workload:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return workload(transformers.GPT2LMHeadModel(config), words(12), words(12))


def bert_model() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def bert() -> Workload:
    return workload(bert_model(), words(12), classes())


def masked_bert() -> Workload:
    return workload(bert_model(), (words(12), mask(12)), classes())


def vit() -> Workload:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return workload(transformers.ViTForImageClassification(config), images(16), classes())


def resnet() -> Workload:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return workload(transformers.ResNetForImageClassification(config), images(32), classes())


def words(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 40, (8, count))


def mask(count: int) -> np.ndarray:
    """Ones for the words of each sample, of which some have few, and zeros after them."""
    return (np.arange(count) < np.arange(2, 10)[:, None]).astype("int64")


def classes() -> np.ndarray:
    return np.arange(8) % 3


def images(size: int) -> np.ndarray:
    return np.random.default_rng(size).random((8, 3, size, size), np.float32)


def workload(model: nn.Module, x: Any, y: np.ndarray) -> Workload:
    return Workload(
        model=Logits(model),
        data=(x, y),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        batch_size=8,
        dtype="float64",
    )


MODELS: dict[str, Callable[[], Workload]] = {
    "GPT-2": gpt2,
    "BERT": bert,
    "BERT with a mask": masked_bert,
    "ViT": vit,
    "ResNet": resnet,
}

REFUSED = {
    ("GPT-2", "spatial=2"): "has none",
    ("GPT-2", "channel=2"): "this model has none",
    ("BERT", "spatial=2"): "has none",
    ("BERT", "channel=2"): "this model has none",
    ("BERT with a mask", "spatial=2"): "has none",
    ("BERT with a mask", "channel=2"): "this model has none",
    ("ViT", "spatial=2"): "mixes its positions",
}


@cache
def serial(name: str) -> tuple[Workload, ThreadRun]:
    torch.manual_seed(0)
    work = MODELS[name]()
    return work, run_on_threads(work, "serial", 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_equals_serial_or_is_refused(name: str, strategy: str) -> None:
    work, expected = serial(name)
    if why := REFUSED.get((name, strategy)):
        with pytest.raises(PlanError, match=why):
            run_on_threads(work, strategy, 3)
        return
    state = run_on_threads(work, strategy, 3).state
    assert state.keys() == expected.state.keys()
    for key, value in expected.state.items():
        np.testing.assert_allclose(state[key], value, rtol=0, atol=1e-9, err_msg=key)


def test_a_mask_by_its_name_is_one_in_order_and_counts() -> None:
    expected = serial("BERT with a mask")[1]
    torch.manual_seed(0)
    named = {"attention_mask": mask(12), "input_ids": words(12)}
    work = Workload(
        model=bert_model(),
        data=(named, classes()),
        loss=partial(of_scores, nn.CrossEntropyLoss()),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        batch_size=8,
        dtype="float64",
    )
    for strategy in ("serial", "data=2", "pipeline=2"):
        losses = run_on_threads(work, strategy, 3).losses
        np.testing.assert_allclose(losses, expected.losses, rtol=1e-10)
    assert abs(expected.losses - serial("BERT")[1].losses).max() > 1e-6


def of_scores(loss: nn.Module, output: Any, targets: Tensor) -> Tensor:
    found: Tensor = loss(output.logits, targets)
    return found


@pytest.mark.parametrize("name", ["GPT-2", "BERT"])
def test_what_is_advised_of_positions_of_words_works(name: str) -> None:
    work, expected = serial(name)
    with pytest.raises(PlanError, match=r"has none; use data=2\.$"):
        plan(work, "spatial=2")
    with pytest.raises(PlanError, match='Or give fallback="gather"'):
        plan(work, "spatial=2", spatial_dims=1)
    state = run_on_threads(work, "spatial=2", 3, spatial_dims=1, fallback="gather").state
    for key, value in expected.state.items():
        np.testing.assert_allclose(state[key], value, rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "BERT with a mask", "ViT"])
def test_positions_between_the_blocks_of_a_published_model_are_cut(name: str) -> None:
    work, expected = serial(name)
    run = run_on_threads(work, "tensor=2", 3, sequence="split")
    for key, value in expected.state.items():
        np.testing.assert_allclose(run.state[key], value, rtol=0, atol=1e-9, err_msg=key)
    (said,) = [note for note in run.plan.notes if note.startswith("positions of the sequence")]
    norms = [
        layer
        for layer in said.rpartition(" in ")[2].split(", ")
        if "norm" in layer.lower() or "ln_" in layer
    ]
    assert len(norms) >= 3  # of two blocks, the first of which may be given whole arrays


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("GPT-2", "attn.c_attn", "attn.c_proj"),
        ("GPT-2", "mlp.c_fc", "mlp.c_proj"),
        ("BERT", "attention.self.query", "attention.output.dense"),
        ("ViT", "attention.q_proj", "attention.o_proj"),
    ],
)
def test_blocks_of_published_models_are_split_in_pairs(name: str, first: str, last: str) -> None:
    found = plan(serial(name)[0], "tensor=2")
    ways = {p.layer.name: p.choice for p in found.layers}
    of = [(way, layer) for layer, way in ways.items() if layer.endswith((first, last))]
    assert len(of) == 4  # two blocks
    assert {way for way, layer in of if layer.endswith(first)} == {"filters"}
    assert {way for way, layer in of if layer.endswith(last)} == {"channels"}
    gathered = {c.name for c in found.collectives if c.name.endswith(": whole output")}
    assert not [name for name in gathered if first in name or last in name]


def test_a_turned_weight_is_cut_in_its_own_dims() -> None:
    found = plan(gpt2(), "tensor=2")
    arrays = {a.name.partition("h.0.")[2]: a for a in found.arrays if "h.0." in a.name}
    shapes = {
        name: [found.owned(arrays[name], rank).shape for rank in (0, 1)]
        for name in ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight")
    }
    assert shapes == {
        "attn.c_attn.weight": [(16, 24)] * 2,
        "attn.c_attn.bias": [(24,)] * 2,
        "attn.c_proj.weight": [(8, 16)] * 2,
    }


class Conv1D(nn.Module):
    """Of the same name, but computes something else."""

    def __init__(self, makes: int, reads: int) -> None:
        super().__init__()
        self.nf = makes
        self.weight = nn.Parameter(torch.randn(reads, makes))
        self.bias = nn.Parameter(torch.zeros(makes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, -1) @ self.weight + self.bias


def test_another_class_of_that_name_is_not_taken_for_a_linear_layer() -> None:
    from workbench.layers.carriers import carrier_of

    assert carrier_of(Conv1D(3, 2)) is None
    assert carrier_of(transformers.pytorch_utils.Conv1D(3, 2)) is not None


def test_the_table_of_the_docs_says_the_same() -> None:
    page = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for name in MODELS:
        row = next(line for line in rows if line.startswith(f"| {name} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")[1:]]
        for strategy, cell in zip(STRATEGIES, cells, strict=True):
            assert cell.startswith("refused" if (name, strategy) in REFUSED else "works"), row
