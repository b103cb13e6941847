"""Every option of the model against a reference written out here, and against finite differences."""

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.config import ModelConfig
from pipeline.layout import kv_projections, parse_layout
from pipeline.model.attention_mask import AttentionMask, attention_mask, flex
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import gate_blocks
from pipeline.model.position import alibi_slopes, positions_in_document

VOCAB, LENGTH = 23, 12
LAYOUTS = ["2sf", "sf:2sf", "sf 2s:2f", "sf s:f 2s f s", ":3sf"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalization": "pre"},
    {"norm": "rmsnorm"},
    {"normalization": "pre", "norm": "rmsnorm", "bias": False},
    {"position": "rope"},
    {"position": "alibi"},
    {"activation": "geglu"},
    {"activation": "swiglu", "bias": False},
    {"narrow_kv": "shared"},
    {"narrow_kv": "grouped:2", "position": "rope", "normalization": "pre"},
    {"normalization": "pre", "position": "rope", "activation": "geglu", "rotary_base": 30.0},
]


def name_of(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "bert"


every_option = pytest.mark.parametrize("options", OPTIONS, ids=name_of)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def build(layout: str, *, heads: int = 4, **options: Any) -> NarrowBertForPretraining:
    torch.manual_seed(3)
    config = ModelConfig(layout=layout, num_attention_heads=heads, **{
        "hidden_size": 16, "ffn_hidden_size": 24, "max_position_embeddings": LENGTH, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "init_method_std": 0.4,
    } | options)  # fmt: skip
    model = NarrowBertForPretraining(config, VOCAB)
    with torch.no_grad():  # initialised biases and norms are zeros and ones: errors there would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rows() -> dict[str, torch.Tensor]:
    """Three rows, one padded, with unsorted positions and a slot that does not count."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([LENGTH, LENGTH - 4, LENGTH])
    key_mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(1, VOCAB, (3, LENGTH), generator=generator)
    return {
        "input_ids": ids * key_mask,
        "narrow_positions": torch.tensor([[3, 11, 0], [7, 2, 5], [9, 4, 10]]),
        "key_mask": key_mask[:, None, None, :],
        "labels": torch.randint(0, VOCAB, (3, 3), generator=generator),
        "label_mask": torch.tensor([[True, True, True], [True, True, False], [True, True, True]]),
        "document_ids": torch.tensor([[0] * 5 + [1] * 7, [0] * 12, [0] * 2 + [1] * 6 + [2] * 4]),
    }


class Reference:
    """The model's definition for one row without padding: one position, one head at a time, in fp64."""

    def __init__(self, model: NarrowBertForPretraining) -> None:
        self.weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
        self.config = model.config
        self.size = self.config.hidden_size // self.config.num_attention_heads

    def logits(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        layout = parse_layout(self.config.layout)
        state = [self.embed(token, place) for place, token in enumerate(ids)]
        for index, letter in enumerate(layout.full):
            name = f"encoder.full_sublayers.{index}"
            state = [self.sublayer(name, letter, x, place, state, None) for place, x in enumerate(state)]
        narrow = [state[position] for position in positions]
        if self.config.normalization == "pre" and "s" in layout.narrow:
            state = [self.norm("encoder.frozen_norm", x) for x in state]
        return torch.stack([self.narrow(x, place, state) for x, place in zip(narrow, positions, strict=True)])

    def narrow(self, x: torch.Tensor, place: int, state: list[torch.Tensor]) -> torch.Tensor:
        reads = iter(self.projections())
        for index, letter in enumerate(parse_layout(self.config.layout).narrow):
            projection = next(reads) if letter == "s" else None
            x = self.sublayer(f"encoder.narrow_sublayers.{index}", letter, x, place, state, projection)
        if self.config.normalization == "pre":
            x = self.norm("encoder.final_norm", x)
        x = self.norm("head.norm", self.gelu(self.linear("head.dense", x)))
        return self.weights["embeddings.word_embeddings.weight"] @ x + self.weights["head.bias"]

    def embed(self, token: int, place: int) -> torch.Tensor:
        tables = {kind: self.weights.get(f"embeddings.{kind}_embeddings.weight") for kind in ("word", "token_type")}
        total = tables["word"][token] + tables["token_type"][0]
        if self.config.position == "absolute":
            total = total + self.weights["embeddings.position_embeddings.weight"][place]
        return self.norm("embeddings.norm", total)

    def sublayer(
        self, name: str, letter: str, x: torch.Tensor, place: int, state: list[torch.Tensor], projection: int | None
    ) -> torch.Tensor:
        pre = self.config.normalization == "pre"
        read = self.norm(f"{name}.norm", x) if pre else x
        if letter == "f":
            total = x + self.feed_forward(name, read)
        else:
            if projection is None and pre:  # full: each position normalised by this sublayer's own norm
                state = [self.norm(f"{name}.norm", other) for other in state]
            total = x + self.linear(f"{name}.linear_proj", self.attend(name, read, place, state, projection))
        return total if pre else self.norm(f"{name}.norm", total)

    def feed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        inner = self.linear(f"{name}.linear_fc1", x)
        if self.config.activation == "gelu":
            return self.linear(f"{name}.linear_fc2", self.gelu(inner))
        block = self.config.ffn_hidden_size // gate_blocks(self.config)
        gates, values = [], []
        for start in range(0, len(inner), 2 * block):
            gates.append(inner[start : start + block])
            values.append(inner[start + block : start + 2 * block])
        gate, value = torch.cat(gates), torch.cat(values)
        activated = gate / (1 + torch.exp(-gate)) if self.config.activation == "swiglu" else self.gelu(gate)
        return self.linear(f"{name}.linear_fc2", activated * value)

    def attend(
        self, name: str, x: torch.Tensor, place: int, state: list[torch.Tensor], projection: int | None
    ) -> torch.Tensor:
        size, heads = self.size, []
        for head in range(self.config.num_attention_heads):
            if projection is None:
                query, key, value = (
                    (f"{name}.linear_qkv", slice((3 * head + i) * size, (3 * head + i + 1) * size)) for i in range(3)
                )
            else:
                first = 2 * (head * len(set(self.projections())) + projection)
                query = f"{name}.linear_q", slice(head * size, (head + 1) * size)
                key, value = (
                    ("encoder.narrow_kv.linear", slice((first + i) * size, (first + i + 1) * size)) for i in range(2)
                )
            q = self.turn(self.linear(query[0], x, query[1]), place)
            keys = self.linear(key[0], torch.stack(state), key[1])
            scores = torch.stack([q @ self.turn(k, other) / math.sqrt(size) for other, k in enumerate(keys)])
            if self.config.position == "alibi":
                slope = [1 / 4, 1 / 16, 1 / 64, 1 / 256][head]
                scores = scores - slope * torch.tensor([float(abs(place - other)) for other in range(len(state))])
            heads.append(scores.softmax(0) @ self.linear(value[0], torch.stack(state), value[1]))
        return torch.cat(heads)

    def projections(self) -> list[int]:
        return kv_projections(self.config.narrow_kv, parse_layout(self.config.layout).narrow.count("s"))

    def turn(self, x: torch.Tensor, place: int) -> torch.Tensor:
        if self.config.position != "rope":
            return x
        half = self.size // 2
        pairs = torch.complex(x[:half], x[half:])
        angles = place / self.config.rotary_base ** (2 * torch.arange(half, dtype=torch.float64) / self.size)
        turned = pairs * torch.exp(1j * angles)
        return torch.cat((turned.real, turned.imag))

    def linear(self, name: str, x: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        bias = self.weights[f"{name}.bias"][part] if self.config.bias else 0.0
        return x @ self.weights[f"{name}.weight"][part].T + bias

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.config.norm == "rmsnorm":
            return x / (x.square().mean() + self.config.layernorm_epsilon).sqrt() * self.weights[f"{name}.weight"]
        centred = x - x.mean()
        scaled = centred / (centred.square().mean() + self.config.layernorm_epsilon).sqrt()
        return scaled * self.weights[f"{name}.weight"] + (self.weights[f"{name}.bias"] if self.config.bias else 0.0)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@every_option
@every_layout
def test_the_model_equals_its_definition(layout: str, options: dict[str, Any]) -> None:
    model, batch = build(layout, **options).eval(), rows()
    reference = Reference(model)
    inputs = batch["input_ids"], batch["narrow_positions"], batch["key_mask"]
    with torch.no_grad():
        fused = model.logits(*inputs)  # fp32 takes torch's fused attention, any other type plain products
        plain = model.double().logits(*inputs)
        for row, length in enumerate(batch["key_mask"].sum(dim=(1, 2, 3)).tolist()):
            ids, positions = batch["input_ids"][row, :length].tolist(), batch["narrow_positions"][row].tolist()
            expected = reference.logits(ids, positions)
            assert (plain[row] - expected).abs().max() < 1e-5  # rope's angles are fp32
            assert (fused[row] - expected).abs().max() < 1e-4


MIXTURE = "sf s:f 2s f s"
ISOLATED = [{"document_attention": "isolated", "position": position} for position in ("absolute", "alibi")]
# Every option where every kind of sublayer is, and every layout with none and with most of them.
CASES = [(MIXTURE, options) for options in OPTIONS + ISOLATED]
CASES += [(layout, options) for layout in LAYOUTS if layout != MIXTURE for options in (OPTIONS[0], OPTIONS[-1])]


@pytest.mark.parametrize(
    ("layout", "options"), CASES, ids=lambda case: case if isinstance(case, str) else name_of(case)
)
def test_gradients_of_every_parameter_are_the_finite_differences(layout: str, options: dict[str, Any]) -> None:
    model, batch = build(layout, heads=2, hidden_size=8, ffn_hidden_size=6, **options).double(), rows()
    inputs = (batch[name] for name in ("input_ids", "narrow_positions", "key_mask", "document_ids"))
    logits = functools.partial(model.logits, *inputs)

    def loss() -> torch.Tensor:  # in fp64: the model's own loss computes in fp32
        return F.cross_entropy(logits().flatten(0, 1), batch["labels"].flatten())

    loss().backward()
    step = 1e-5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            direction = torch.randn_like(parameter)
            losses = []
            for move in (step, -2 * step):
                parameter.add_(direction, alpha=move)
                losses.append(loss())
            parameter.add_(direction, alpha=step)
            difference = (losses[0] - losses[1]) / (2 * step)
            assert torch.isclose((parameter.grad * direction).sum(), difference, rtol=1e-5, atol=1e-8), name


def test_full_rotary_shift_changes_nothing_but_absolute_positions_do() -> None:
    # Relative positions: the same tokens further right, with nothing before them to see, give the same result.
    for position, equal in (("rope", True), ("alibi", True), ("absolute", False)):
        model, batch = build("sf:2sf", position=position).eval(), rows()
        ids, places = batch["input_ids"][:, :8], torch.tensor([[1, 6], [0, 7], [3, 2]])
        moved = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), dim=1)
        seen = (torch.arange(12) >= 4)[None, None, None].expand(3, 1, 1, 12)
        difference = model.logits(ids, places, None) - model.logits(moved, places + 4, seen)
        assert bool(difference.abs().max() < 1e-4) is equal, position


def test_narrow_positions_are_those_of_the_whole_row() -> None:
    # With a narrow side alone, moving the gathered position to slot 0 must not move it to position 0.
    for position in ("rope", "alibi"):
        model, batch = build(":2sf", position=position).eval(), rows()
        together = model.logits(batch["input_ids"], batch["narrow_positions"], None)
        for slot in range(3):
            alone = model.logits(batch["input_ids"], batch["narrow_positions"][:, slot : slot + 1], None)
            assert torch.allclose(together[:, slot : slot + 1], alone, atol=1e-5)


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8, torch.device("cpu")).tolist() == [2.0**-i for i in range(1, 9)]
    # Not a power of two: those of 4 heads, then the first, third, ... of 8.
    assert alibi_slopes(6, torch.device("cpu")).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    assert alibi_slopes(1, torch.device("cpu")).tolist() == [2.0**-8]


def test_positions_start_again_in_each_document() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 3, 3]], dtype=torch.int16)
    assert positions_in_document(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]


# --- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("position", ["absolute", "rope", "alibi"])
@every_layout
def test_isolated_documents_equal_documents_alone(layout: str, position: str, dtype: torch.dtype) -> None:
    model = build(layout, position=position, document_attention="isolated").eval().to(dtype)
    batch, everything = rows(), torch.arange(LENGTH).expand(3, -1)
    with torch.no_grad():
        packed = model.logits(batch["input_ids"], everything, batch["key_mask"], batch["document_ids"])
        for row, length in enumerate(batch["key_mask"].sum(dim=(1, 2, 3)).tolist()):
            for document in batch["document_ids"][row].unique():
                here = (batch["document_ids"][row] == document)[:length].nonzero().flatten()
                ids = batch["input_ids"][row : row + 1, here]
                alone = model.logits(ids, torch.arange(len(here))[None], None, torch.zeros_like(ids))
                assert torch.allclose(packed[row, here], alone[0], atol=1e-4)


def test_shared_documents_do_see_each_other() -> None:
    batch = rows()
    inputs = batch["input_ids"], batch["narrow_positions"], batch["key_mask"], batch["document_ids"]
    isolated = build("sf:sf", document_attention="isolated").logits(*inputs)
    shared = build("sf:sf").logits(*inputs)
    assert (isolated - shared)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-2
    assert torch.allclose(isolated[1], shared[1], atol=1e-5)  # a row of one document
    with pytest.raises(ValueError, match="give document_ids"):
        build("sf:sf", document_attention="isolated").logits(*inputs[:3])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("slopes", [None, torch.tensor([0.25, 0.0625])], ids=["plain", "alibi"])
@pytest.mark.parametrize("queries", [torch.arange(LENGTH), rows()["narrow_positions"]], ids=["full", "narrow"])
def test_the_block_form_for_cuda_sees_what_the_mask_shows(queries: torch.Tensor, slopes: torch.Tensor | None) -> None:
    # FlexAttention computes forward on CPU as well, which is enough to compare what may be seen.
    batch, generator = rows(), torch.Generator().manual_seed(1)
    q = torch.randn(3, 2, queries.shape[-1], 16, generator=generator)
    k, v = (torch.randn(3, 2, LENGTH, 16, generator=generator) for _ in range(2))
    mask, blocks = (
        attention_mask(
            batch["key_mask"], batch["document_ids"], slopes, queries, LENGTH, q.dtype, use_blocks=use_blocks
        )
        for use_blocks in (False, True)
    )  # fmt: skip
    assert mask.bias is not None
    assert blocks.bias is None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bias)
    with torch.no_grad():
        assert torch.allclose(flex(q, k, v, blocks), expected, atol=1e-5)
        everything = F.scaled_dot_product_attention(q, k, v)
        assert not torch.allclose(flex(q, k, v, blocks), everything, atol=1e-2)


def test_without_padding_documents_and_alibi_there_is_no_mask() -> None:
    mask = attention_mask(None, None, None, torch.arange(4), 4, torch.float32, use_blocks=True)
    assert mask == AttentionMask()


# --- recomputation --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, OPTIONS[-2], OPTIONS[-1]], ids=name_of)
@every_layout
def test_recomputation_gives_the_same_gradients_to_the_bit_with_dropout(layout: str, options: dict[str, Any]) -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "recompute": recompute}
        model = build(layout, **options, **dropout)
        torch.manual_seed(11)
        losses.append(model(**rows()).loss_sum)
        losses[-1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert losses[0] == losses[1]
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.equal(gradients[1][name]), name


def test_recomputation_keeps_less() -> None:
    def kept_bytes(recompute: bool) -> int:
        model, seen = build("4sf:4sf", hidden_size=32, ffn_hidden_size=128, recompute=recompute), {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(**rows())
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        del output
        return sum(size for pointer, size in seen.items() if pointer not in weights)

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_recompute_changes_no_parameter_name() -> None:
    model = build("sf:2sf")
    again = NarrowBertForPretraining(dataclasses.replace(model.config, recompute=True), VOCAB)
    assert list(model.state_dict()) == list(again.state_dict())
