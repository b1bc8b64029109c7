"""A recording as model files see it: typed handles, readable shapes, live buffers.

A model's `forward` runs once with a `Recorder`; every call appends one step and returns a `Handle`.
When Python drops a handle, its buffer is free for later steps: reference counting is the liveness
analysis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import FORMATS, padded
from slmq.plan.handle import Handle, Rope, _Buffer

if TYPE_CHECKING:
    from slmq.plan.experts import Experts, Routing
    from slmq.plan.linear import Linear

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class Recording(Protocol):
    """What `forward` is given. `p` in model files.

    `Recorder` says what each step computes; the quantizer records one layer at a time.
    """

    @property
    def n_ctx(self) -> int:
        """Most positions of a sequence, chosen when the model is loaded: some ropes need it."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Names the steps recorded inside; "layer I" is one that calibration can take apart."""

    def embed(
        self,
        weight: Linear,
        scale: float = 1.0,
        positions: Linear | None = None,
        types: Linear | None = None,
    ) -> Handle:
        """Rows of the embedding at the run's token ids."""

    def rmsnorm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        """Rows divided by their root mean square."""

    def head_norm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        """`rmsnorm` of every head by itself."""

    def layernorm(
        self, x: Handle, norm: tuple[F32, F32 | None], eps: float, head_dim: int | None = None
    ) -> Handle:
        """Rows with their mean subtracted, divided by their standard deviation."""

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        """x @ weight.T; of several weights in one step, whose results `split()` parts."""

    def gated(self, x: Handle, gate: Linear, up: Linear, activation: str) -> Handle:
        """f(x @ gate.T) * (x @ up.T), f by its name, such as "silu"."""

    def xielu(self, x: Handle, up: float, down: float, mid: float) -> Handle:
        """xIELU, an activation with parameters of its layer."""

    def rope(self, frequencies: F32, factor: float = 1.0) -> Rope:
        """Angles position * frequency."""

    def rotate(self, x: Handle, rope: Rope, head_dim: int) -> Handle:
        """Heads turned by rope, for models that norm them behind it."""

    def scaled(self, x: Handle, factor: float) -> Handle:
        """x times one number."""

    def scale_by_position(self, x: Handle, growth: float, every: int) -> Handle:
        """Rows that grow with the logarithm of their position."""

    def attention(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        *,
        head_dim: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        causal: bool = True,
        bias: F32 | None = None,
        sinks: F32 | None = None,
    ) -> Handle:
        """Attention over all cached positions, or over the whole text."""

    def attention_to(
        self,
        q: Handle,
        layer: int,
        *,
        head_dim: int,
        kv_heads: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
    ) -> Handle:
        """Attention to the keys and values of an earlier one."""

    def convolution(
        self,
        x: Handle,
        weight: F32,
        *,
        bias: F32 | None = None,
        before: Handle | None = None,
        behind: Handle | None = None,
        activation: str | None = None,
    ) -> Handle:
        """Every channel convolved with its latest inputs, which the sequence's state holds."""

    def decays(self, a: Handle, b: Handle, rate: F32, bias: F32) -> Handle:
        """What states of the delta rule keep, and how much they learn: a column a head each."""

    def delta_rule(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        decays: Handle,
        *,
        key_dim: int,
        value_dim: int,
        tiled: bool = False,
    ) -> Handle:
        """What every head's state, which goes along with the sequence, makes of its query."""

    def gate(self, x: Handle, gate: Handle, activation: str) -> Handle:
        """f(gate) * x."""

    def route(self, logits: Handle, routing: Routing) -> Handle:
        """The experts that every row goes to, and what each of them counts."""

    def mixture(
        self,
        x: Handle,
        routes: Handle,
        experts: Experts,
        activation: str,
        add: Handle | None = None,
    ) -> Handle:
        """What the experts of a row make of it, added up."""

    def select(self, x: Handle, pool: str = "row") -> Handle:
        """The rows that the run asks for, or what pooling makes of several."""


class Recorder:
    """Records a model's forward pass. `p` in model files.

    Parameters
    ----------
    recording : _native.Recording
        What steps are appended to.
    activations : {"a8o16g32", "a16g32", "a8g32"}
        What inputs of integer weights are rounded to.
    n_ctx : int
        Most positions of a sequence, chosen when the model is loaded: some ropes depend on it.
    adapters : bool
        Whether adapters may add to the results of `linear` and `gated`.

    Attributes
    ----------
    slots : list of Linear
        The weights that adapters may add to, in the order of their numbers.
    """

    def __init__(
        self,
        recording: _native.Recording,
        activations: str = "a8o16g32",
        n_ctx: int = 1,
        *,
        adapters: bool = False,
    ) -> None:
        self.n_ctx = n_ctx
        self.slots: list[Linear] = []
        if adapters:
            recording.take_adapters()
        self._recording = recording
        self._activations = activations
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names the steps recorded inside, for printing and profiling."""
        self._scope.append(name)
        self._recording.scope(".".join(self._scope))
        yield
        self._scope.pop()
        self._recording.scope(".".join(self._scope))

    def embed(
        self,
        weight: Linear,
        scale: float = 1.0,
        positions: Linear | None = None,
        types: Linear | None = None,
    ) -> Handle:
        """float32[m, hidden]: rows of the embedding at the run's token ids, times `scale`.

        A table that `Reader.table` left in its file is read row by row, where it lies. `positions`
        and `types` are learned: the rows of a token's type (which of two texts it belongs to) and
        of its position are added.

        Raises
        ------
        ValueError
            If the model is loaded for more positions than were learned.
        """
        if positions is not None and self.n_ctx > positions.n:
            raise ValueError(
                f"n_ctx: expected at most {positions.n}, the positions that this model has "
                f"learned, got {self.n_ctx}"
            )
        added = [learned for learned in (positions, types) if learned is not None]
        if added and any(table.columns is not None for table in [weight, *added]):
            raise ValueError("learned positions need embeddings with their columns in order")
        if isinstance(weight.held, _native.RowTable) and not added:
            return Handle(self._own(self._recording.lookup(weight.held, scale)), 0, weight.k)
        number = self._recording.embed(
            weight.matrix,
            scale,
            None if positions is None else positions.matrix,
            None if types is None else types.matrix,
        )
        x = Handle(self._own(number), 0, weight.k)
        if weight.columns is None:
            return x
        return self.gather(x, np.argsort(weight.columns).astype(np.int32))

    def gather(self, x: Handle, columns: I32) -> Handle:
        """Column c of the result is column columns[c] of x: float32[m, len(columns)].

        `linear` and its kin record it for weights that are stored with their columns in another
        order; a second call with the same order gives the same handle.
        """
        key = columns.tobytes()
        if key not in x._gathered:
            number = self._recording.gather(x.slice, columns)
            x._gathered[key] = Handle(self._own(number), 0, len(columns))
        return x._gathered[key]

    def rmsnorm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        """x / sqrt(mean(x^2) + eps) * weight (+ add), row by row (Zhang and Sennrich, 2019)."""
        number = self._recording.rmsnorm(x.slice, weight, eps, None if add is None else add.slice)
        return Handle(self._own(number), 0, x.width)

    def head_norm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        """`rmsnorm` of every head by itself: heads of len(weight) channels, one weight for all."""
        added = None if add is None else add.slice
        number = self._recording.head_norm(x.slice, weight, eps, added)
        return Handle(self._own(number), 0, x.width)

    def layernorm(
        self, x: Handle, norm: tuple[F32, F32 | None], eps: float, head_dim: int | None = None
    ) -> Handle:
        """(x - mean) / sqrt(variance + eps) * weight (+ bias), row by row (Ba et al., 2016).

        `norm` is weight and bias. With `head_dim` every head of so many channels by itself, and
        they have the values of all heads.
        """
        weight, bias = norm
        number = self._recording.layernorm(x.slice, weight, bias, head_dim or x.width, eps)
        return Handle(self._own(number), 0, x.width)

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        """x @ weight.T (+ bias) (+ add). Several weights run as one step; `split()` parts them.

        `activation` of the result, without a step in between: "gelu", "gelu_tanh" (Hendrycks and
        Gimpel, 2016; its tanh approximation), "relu", "relu2" (its square), "silu" or "tanh". With
        `softcap` > 0 every y of that becomes softcap * tanh(y / softcap).
        """
        listed = [weights] if not isinstance(weights, Sequence) else list(weights)
        self.slots += listed
        number = self._recording.linear(
            [self._operand(x, w) for w in listed],
            [(w.matrix, w.bias) for w in listed],
            None if add is None else add.slice,
            activation,
            softcap,
        )
        parts, offset, width = [], 0, 0
        for w in listed:
            parts.append((offset, w.n))
            width = offset + w.n
            offset += padded(w.n, 32)
        return Handle(self._own(number), 0, width, tuple(parts) if len(parts) > 1 else ())

    def gated(self, x: Handle, gate: Linear, up: Linear, activation: str) -> Handle:
        """f(x @ gate.T) * (x @ up.T), without a step in between (Shazeer, 2020).

        `activation` is f: "silu" (SwiGLU), "gelu_tanh" or "gelu" (GeGLU), "sigmoid" (GLU), "relu2".
        """
        self.slots += [gate, up]
        number = self._recording.gated(
            [self._operand(x, gate), self._operand(x, up)],
            (gate.matrix, gate.bias),
            (up.matrix, up.bias),
            activation,
        )
        return Handle(self._own(number), 0, gate.n)

    def xielu(self, x: Handle, up: float, down: float, mid: float) -> Handle:
        """up x^2 + mid x where x > 0, else down (exp(x) - 1 - x) + mid x (Huang, 2024)."""
        number = self._recording.xielu(x.slice, up, down, mid)
        return Handle(self._own(number), 0, x.width)

    def rope(self, frequencies: F32, factor: float = 1.0) -> Rope:
        """Angles position * frequency for rotate-half rope (Su et al., 2021); once per run."""
        number = self._recording.rope(frequencies, factor)
        rotary = 2 * len(frequencies)
        return Rope(Handle(self._own(number), 0, rotary), rotary)

    def rotate(self, x: Handle, rope: Rope, head_dim: int) -> Handle:
        """Every head of `head_dim` channels turned by rope, as a step of its own.

        `attention` turns what it is given; this is for models that norm heads behind rope.
        """
        number = self._recording.rotate(x.slice, rope.handle.slice[0], rope.rotary, head_dim)
        return Handle(self._own(number), 0, x.width)

    def scaled(self, x: Handle, factor: float) -> Handle:
        """x * factor, all of it."""
        return Handle(self._own(self._recording.scale(x.slice, factor)), 0, x.width)

    def scale_by_position(self, x: Handle, growth: float, every: int) -> Handle:
        """x times 1 + growth * log(1 + n), n the whole multiples of `every` in its position.

        Queries so scaled keep attention sharp over long texts (Meta, "Llama 4", 2025).
        """
        number = self._recording.scale_by_position(x.slice, growth, every)
        return Handle(self._own(number), 0, x.width)

    def attention(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        *,
        head_dim: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        causal: bool = True,
        bias: F32 | None = None,
        sinks: F32 | None = None,
    ) -> Handle:
        """Causal attention of q over all cached positions; rotates q and k, appends k and v.

        Query heads share KV heads in order (GQA, Ainslie et al., 2023). `window` > 0 limits a
        query to that many latest positions. `scale` defaults to 1 / sqrt(head_dim). `softcap` > 0
        lets a scaled score s count as softcap * tanh(s / softcap) (Gemma 2, 2024).

        If not `causal`, a query sees its whole text, which one run must hold, or `window` positions
        on either side of its own. All layers of a model are causal, or none. `bias` is added to
        scores: float32[heads, 2 n - 1] for keys that stand n - 1 before to n - 1 behind a query,
        of texts of at most n tokens. `sinks` is float32[heads]: a score that every query of a head
        has beside those of keys, of a value of zeros (gpt-oss, 2025).
        """
        number = self._recording.attention(
            q.slice,
            k.slice,
            v.slice,
            -1 if rope is None else rope.handle.slice[0],
            heads=q.width // head_dim,
            kv_heads=k.width // head_dim,
            head_dim=head_dim,
            rotary=0 if rope is None else rope.rotary,
            scale=float(head_dim) ** -0.5 if scale is None else scale,
            window=window,
            softcap=softcap,
            causal=causal,
            bias=None if bias is None else bias.reshape(-1),
            sinks=sinks,
        )
        return Handle(self._own(number), 0, q.width)

    def attention_to(
        self,
        q: Handle,
        layer: int,
        *,
        head_dim: int,
        kv_heads: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
    ) -> Handle:
        """Causal attention of q to the keys and values of an earlier attention of the recording.

        `layer` is the number of that one: 0, 1, ... in the order in which they were recorded. It
        must have `kv_heads` heads of `head_dim` channels. Only q is rotated, nothing is appended,
        so a layer without keys of its own takes no room in the cache.
        """
        number = self._recording.attention(
            q.slice,
            None,
            None,
            -1 if rope is None else rope.handle.slice[0],
            heads=q.width // head_dim,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary=0 if rope is None else rope.rotary,
            scale=float(head_dim) ** -0.5 if scale is None else scale,
            window=window,
            shared=layer,
        )
        return Handle(self._own(number), 0, q.width)

    def convolution(
        self,
        x: Handle,
        weight: F32,
        *,
        bias: F32 | None = None,
        before: Handle | None = None,
        behind: Handle | None = None,
        activation: str | None = None,
    ) -> Handle:
        """behind * f(bias + sum over j of weight[:, j] * u[position - taps + 1 + j]).

        u is before * x, zero in front of a text; `weight` is float32[channels, taps], 2 to 8 taps.
        Each channel is by itself. The inputs of the last taps - 1 positions are the sequence's
        state: what a run leaves, the next one begins with. `activation` is f, as `linear` names it.
        """
        number = self._recording.convolution(
            x.slice,
            np.ascontiguousarray(weight).reshape(-1),
            bias,
            None if before is None else before.slice,
            None if behind is None else behind.slice,
            activation,
        )
        return Handle(self._own(number), 0, x.width)

    def decays(self, a: Handle, b: Handle, rate: F32, bias: F32) -> Handle:
        """exp(-rate * softplus(a + bias)) of every head, then sigmoid(b) of every head.

        What `delta_rule` multiplies states by, and the share of a change that they make.
        """
        number = self._recording.decays(a.slice, b.slice, rate, bias)
        return Handle(self._own(number), 0, 2 * a.width)

    def delta_rule(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        decays: Handle,
        *,
        key_dim: int,
        value_dim: int,
        tiled: bool = False,
    ) -> Handle:
        """The gated delta rule (Yang et al., "Gated Delta Networks", 2024), token by token.

        A head's state is float32[key_dim, value_dim] and begins as zeros. It becomes
        decay * state + outer(key, share * (value - decay * key @ state)); the result is
        query @ state. A head of q and k serves several of v: in a row, or if `tiled` as many heads
        apart as k has.
        """
        number = self._recording.delta_rule(
            q.slice,
            k.slice,
            v.slice,
            decays.slice,
            heads=v.width // value_dim,
            key_heads=k.width // key_dim,
            key_dim=key_dim,
            value_dim=value_dim,
            tiled=tiled,
        )
        return Handle(self._own(number), 0, v.width)

    def gate(self, x: Handle, gate: Handle, activation: str) -> Handle:
        """f(gate) * x, f by its name: "silu", "gelu_tanh", "gelu", "sigmoid" or "relu2"."""
        number = self._recording.gate(x.slice, gate.slice, activation)
        return Handle(self._own(number), 0, x.width)

    def route(self, logits: Handle, routing: Routing) -> Handle:
        """The numbers of every row's experts, ascending, then their weights: see `Routing`."""
        number = self._recording.route(
            logits.slice,
            routing.top_k,
            routing.scores,
            routing.normalized,
            routing.eps,
            routing.scale,
            routing.bias,
        )
        return Handle(self._own(number), 0, 2 * routing.top_k)

    def mixture(
        self,
        x: Handle,
        routes: Handle,
        experts: Experts,
        activation: str,
        add: Handle | None = None,
    ) -> Handle:
        """Row by row the sum of weight * expert(x), in the order of experts (+ add).

        An expert is down @ (f(gate @ x) * (up @ x)), f by its name as in `gated`; biases are added.
        Only the experts of a run's rows are read. Adapters do not reach them.

        Raises
        ------
        ValueError
            If a matrix is stored with its columns in another order.
        """
        if any(weight.columns is not None for weight in experts.matrices):
            raise ValueError("experts need matrices with their columns in order")
        gate, up, down = (
            [(weight.matrix, weight.bias) for weight in weights]
            for weights in (experts.gate, experts.up, experts.down)
        )
        number = self._recording.mixture(
            x.slice,
            routes.slice[0],
            gate,
            up,
            down,
            activation,
            self._activations,
            None if add is None else add.slice,
            experts.limit,
            experts.alpha,
        )
        return Handle(self._own(number), 0, experts.down[0].n)

    def select(self, x: Handle, pool: str = "row") -> Handle:
        """The rows that the run asks for, or what pooling makes of those that an output spans.

        `pool` is "row" (no pooling), "mean", "max", "mean_sqrt_len" (their sum by the root of their
        number) or "weighted_mean" (row i of a text counts i + 1 times).
        """
        number = self._recording.select(x.slice, pool)
        return Handle(self._own(number), 0, x.width)

    def finish(self, logits: Handle, columns: int = -1) -> _native.Plan:
        """End the recording; the plan's runs are for `logits`.

        They must have as many columns as the vocabulary has tokens, or at least `columns`.
        """
        return self._recording.finish(logits.slice[0], columns)

    def _own(self, number: int) -> _Buffer:
        return _Buffer(self._recording, number)

    def _operand(self, x: Handle, weight: Linear) -> int:
        """The buffer that a weight reads: columns in its order; integers for integer weights."""
        if weight.columns is not None:
            x = self.gather(x, weight.columns)
        fmt = FORMATS[weight.matrix.format]
        if not fmt.quantized:
            if x.offset != 0:
                raise ValueError("float weights need all columns of a buffer")
            return x.slice[0]
        whole_rows = fmt.row_panels
        if whole_rows not in x._quantized:
            number = self._recording.quantize(x.slice, self._activations, whole_rows)
            x._quantized[whole_rows] = self._own(number)
        return x._quantized[whole_rows].number
