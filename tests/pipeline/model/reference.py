"""The definition of the model, written out plainly."""

import math

import torch

from pipeline.layout import kv_projections, parse_layout
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import gate_blocks


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
        is_normed = pre and not (self.config.skip_first_norm and name == "encoder.full_sublayers.0")
        read = self.norm(f"{name}.norm", x) if is_normed else x
        if letter == "f":
            total = x + self.feed_forward(name, read)
        else:
            if projection is None and is_normed:  # full: each position normalised by this sublayer's own norm
                state = [self.norm(f"{name}.norm", other) for other in state]
            attended = self.attend(name, letter, read, place, state, projection)
            total = x + self.linear(f"{name}.linear_proj", attended)
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
        self, name: str, letter: str, x: torch.Tensor, place: int, state: list[torch.Tensor], projection: int | None
    ) -> torch.Tensor:
        size, heads = self.size, []
        seen = range(len(state))
        if letter == "w":
            seen = [other for other in seen if abs(place - other) <= self.config.attention_window / 2]
        state = [state[other] for other in seen]
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
            q = self.turn(letter, self.linear(query[0], x, query[1]), place)
            keys = self.linear(key[0], torch.stack(state), key[1])
            turned = [self.turn(letter, k, other) for other, k in zip(seen, keys, strict=True)]
            scores = torch.stack([q @ k / math.sqrt(size) for k in turned])
            if self.config.position == "alibi":
                slope = [1 / 4, 1 / 16, 1 / 64, 1 / 256][head]
                scores = scores - slope * torch.tensor([float(abs(place - other)) for other in seen])
            heads.append(scores.softmax(0) @ self.linear(value[0], torch.stack(state), value[1]))
        return torch.cat(heads)

    def projections(self) -> list[int]:
        return kv_projections(self.config.narrow_kv, parse_layout(self.config.layout).narrow.count("s"))

    def turn(self, letter: str, x: torch.Tensor, place: int) -> torch.Tensor:
        if self.config.position != "rope":
            return x
        base = self.config.local_rotary_base if letter == "w" else self.config.rotary_base
        half = self.size // 2
        pairs = torch.complex(x[:half], x[half:])
        angles = place / base ** (2 * torch.arange(half, dtype=torch.float64) / self.size)
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
