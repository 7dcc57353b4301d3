"""Peak memory of a training step, from its settings alone. No torch.

There are a few moments of a step at which memory may peak. What is alive at each is a constant plus
a part that grows with the tokens of a micro-batch. This counts what PyTorch's allocator hands out
to tensors on a GPU, plus a workspace. It leaves out the CUDA context (about 0.5 GB, outside the
allocator) and fragmentation, for which a plan leaves room.

    N parameters   C channels   L layers   H heads   T context   V padded vocabulary
    e bytes of a compute value (fp32 4, else 2)

`bench/memory_tracker.py` counts the same step under fake tensors; the tests compare the two.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from outpace.config.presets import GPT2Shape
from outpace.model.cost import Precision, block_weights, parameters

CHUNK_TOKENS = {"cuda": 8192, "cpu": 1024}
"""Tokens whose logits exist at a time in the chunked losses (`ops/cross_entropy/chunked.py`)."""
WORKSPACE = 64 * 2**20
"""What cuBLAS and cuBLASLt take from the allocator on Hopper, each 32 MiB (torch docs,
CUBLAS_WORKSPACE_CONFIG and CUBLASLT_WORKSPACE_SIZE)."""


Attention = Literal["fused", "eager", "reference"]


@dataclass(frozen=True)
class StepSettings:
    """What the memory of a training step depends on."""

    shape: GPT2Shape
    precision: Precision = "bf16"
    attention: Attention = "fused"
    """eager and reference store the T x T matrix, reference all of it in fp32."""
    cross_entropy: str = "eager"
    """A row of the cross-entropy table."""
    bf16_residual: bool = False
    fp8_head: bool = False
    checkpointing: str = "none"
    """none, gelu or block."""
    optimizer: str = "adamw"
    compiled: bool = False
    accumulates: bool = True
    """Several micro-batches per step, so that gradients of the earlier ones are held."""
    ddp: bool = False
    device: str = "cuda"


@dataclass(frozen=True)
class Moment:
    """A moment of the step, and the bytes that are alive then."""

    name: str
    fixed: float
    per_token: float
    per_chunk_token: float = 0.0
    """Bytes per token of one chunk of the loss."""
    chunk_tokens: int = CHUNK_TOKENS["cuda"]

    def bytes(self, tokens: int) -> float:
        chunk = min(tokens, self.chunk_tokens)
        return self.fixed + self.per_token * tokens + self.per_chunk_token * chunk


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one training process."""

    moments: tuple[Moment, ...]

    def peak(self, micro_batch_tokens: int) -> float:
        return self.at(micro_batch_tokens).bytes(micro_batch_tokens)

    def at(self, micro_batch_tokens: int) -> Moment:
        """The moment of the peak."""
        return max(self.moments, key=lambda moment: moment.bytes(micro_batch_tokens))

    def most_sequences(self, context: int, room: float) -> int:
        """The largest micro-batch, in sequences of `context` tokens, whose peak is within `room`
        bytes; 0 when none is."""
        return bisect_right(range(1, 1 << 40), room, key=lambda n: self.peak(n * context))


def training_memory(s: StepSettings) -> Memory:
    """What a step with these settings needs."""
    shape, e = s.shape, _compute_bytes(s)
    C, V, N = shape.n_embd, shape.padded_vocab_size, parameters(shape, padded=True)
    head = V * C  # numbers in the head's weight, and in its gradient
    # Weights and two moments in fp32 (one for Muon's matrices); gradients of earlier micro-steps;
    # DDP's buckets, in which gradients live from the last backward on.
    buckets = 4 * N if s.ddp else 0
    weights = 12 * N - (4 * block_weights(shape) if s.optimizer == "muon" else 0)
    always = weights + (4 * N if s.accumulates else 0) + buckets + WORKSPACE
    kept = _kept(s)
    blocks = 1 if s.checkpointing == "block" else shape.n_layer  # whose insides are kept at a time
    masks = float(blocks * shape.context**2) if s.attention != "fused" else 0.0
    # The head's gradient is held until it is added to that of the embedding, the same parameter.
    waiting = 4 * head
    sums = 3 if s.accumulates else 2  # both of these, and while accumulating also their sum
    moments = (
        *_loss_moments(s, always + masks, kept),
        Moment(
            "the backward of a block",
            always + masks + blocks * _cast_block(s) + waiting,
            _kept_by_blocks(s) + _block_backward(s),
        ),
        Moment(
            "the end of the backward",
            weights + 4 * N + buckets + WORKSPACE + sums * waiting,
            2 * e * C,
        ),
        Moment("the update", weights + 4 * N + WORKSPACE + _update(s), 0.0),
    )
    return Memory(moments)


def _update(s: StepSettings) -> float:
    """Temporary tensors of the optimiser, beside weights, moments and gradients."""
    match s.optimizer:
        case "adamw_foreach":  # the root of the second moment
            return 4 * parameters(s.shape, padded=True)
        case "muon":  # the iteration in bf16 over the MLP's matrices, the largest of one shape
            return 9 * 4 * s.shape.n_layer * s.shape.n_embd**2
        case _:
            return 0.0


def _loss_moments(s: StepSettings, always: float, kept: float) -> list[Moment]:
    """Head and cross-entropy: the last of the forward and the first of the backward."""
    shape, e = s.shape, _compute_bytes(s)
    half, C, V = e < 4, shape.n_embd, shape.padded_vocab_size
    head = V * C
    always += shape.n_layer * _cast_block(s) + (2 * head if half else 0)
    chunk = CHUNK_TOKENS[s.device]
    in_fp8 = V if s.fp8_head else 0  # the gradient of the logits, a byte each
    if s.compiled and s.device == "cuda" and s.cross_entropy != "linear":
        return _compiled_loss_moments(s, always, kept)
    made = (e + 4) * head if half else 4 * head  # by a product, then in the parameter's type
    match s.cross_entropy:
        case "compiled":  # logits and their gradient
            return [Moment("the loss", always, kept + 2 * e * V)]
        case "triton":  # the gradient over the logits; the operands of the products
            operands = 4 * C if half else 8 * C
            if s.fp8_head:  # beside the logits; the products come when those are gone
                return [Moment("the loss", always, kept + e * V + in_fp8 + operands)]
            return [Moment("the loss", always + made, kept + e * V + operands)]
        case "chunked":
            forward = kept + (4 * C if half else 0) + e * C
            sums = (4 + e) * head if half else 4 * head  # in fp32 the product adds to them
            return [
                Moment("the loss", always + sums, forward, e * V + in_fp8, chunk),
                Moment("the loss", always + 8 * head, kept + 2 * e * C),
            ]
        case "linear":  # logits in fp32
            fixed = 10 * head if half else 4 * head
            inside = 4 * V + (8 if half else 4) * C
            return [Moment("the loss", always + fixed, kept + 4 * C, inside, chunk)]
        case _:  # eager, the most: log-softmax, gradients through the loss and through the softmax
            return [Moment("the loss", always, kept + 12 * V)]


def _compiled_loss_moments(s: StepSettings, always: float, kept: float) -> list[Moment]:
    """The same in a graph of the compiler's: the gradient of the logits always takes their place,
    and a product's result waits in the compute type for the sum that it goes into."""
    shape, e, chunk = s.shape, _compute_bytes(s), CHUNK_TOKENS[s.device]
    C, V = shape.n_embd, shape.padded_vocab_size
    in_fp8 = V if s.fp8_head else 0
    product = e * V * C  # a gradient of the head's weight
    match s.cross_entropy:
        case "triton":  # that of the hidden states is made in the forward, the weight's is not yet
            fixed = always + (0 if e < 4 else product)
            again = _layer(s) if s.checkpointing == "block" else 0.0  # the last block comes before
            return [Moment("the loss", fixed, kept + e * V + in_fp8 + e * C + again)]
        case "chunked" if e == 4:  # products add to a sum that is not written in place
            return [Moment("the loss", always + 2 * product, kept + e * C, e * V, chunk)]
        case "chunked":  # every chunk's product waits
            a_token = kept + e * C + product / chunk
            return [Moment("the loss", always, a_token, e * V + in_fp8 - product / chunk, chunk)]
        case _:
            return [Moment("the loss", always + product, kept + e * V + 2 * in_fp8)]


def _compute_bytes(s: StepSettings) -> int:
    return 4 if s.precision == "no" else 2


def _cast_block(s: StepSettings) -> float:
    """A block's weights in the compute type, kept for the backward."""
    C = s.shape.n_embd
    return 0.0 if s.precision == "no" else 2.0 * (12 * C * C + 9 * C)


def _kept(s: StepSettings) -> float:
    """Bytes per token that autograd keeps from the forward for the backward, without the loss."""
    C = s.shape.n_embd
    last = C * (_norm_input_bytes(s) + _compute_bytes(s)) + 24  # ln_f, ids and targets
    return _kept_by_blocks(s) + last + (C if s.shape.dropout else 0)


def _kept_by_blocks(s: StepSettings) -> float:
    if s.checkpointing == "block":
        return float(s.shape.n_layer * (2 if s.bf16_residual else 4) * s.shape.n_embd)
    return s.shape.n_layer * _layer(s)


def _layer(s: StepSettings) -> float:
    """Bytes per token that one block keeps: the inputs of two LayerNorms and their statistics, the
    inputs of its four linear maps and of GELU, q, k and v, and attention's log-sum-exp."""
    C, H, T, e = s.shape.n_embd, s.shape.n_head, s.shape.context, _compute_bytes(s)
    ins = 2 * _norm_input_bytes(s) * C + 16
    linear = e * C * (1 + 1 + 1 + (0 if s.checkpointing == "gelu" else 4))
    gelu = 4 * e * C
    # Of the matrix: the softmax in fp32, and what multiplies v where that is of another type.
    attention = {
        "fused": 3 * e * C + 4 * H,
        "eager": 3 * e * C + H * T * (4 if e == 4 else 4 + e),
        "reference": 3 * 4 * C + H * T * 4,
    }[s.attention]
    dropout = 0  # a byte a number; of the matrix also what it leaves
    if s.shape.dropout:
        dropout = 2 * C + (0 if s.attention == "fused" else 5 * H * T)
    return ins + linear + gelu + attention + dropout


def _norm_input_bytes(s: StepSettings) -> int:
    """CUDA's autocast runs LayerNorm in fp32: eager, it keeps an fp32 copy of a bf16 input; the
    compiler keeps the input and converts it again."""
    return 2 if s.bf16_residual and s.compiled else 4


def _block_backward(s: StepSettings) -> float:
    """Bytes per token that exist, beside what was kept, during the backward of the last block."""
    C, H, T, e = s.shape.n_embd, s.shape.n_head, s.shape.context, _compute_bytes(s)
    again = 0.0
    if s.checkpointing == "gelu":
        again = 4 * e * C
    if s.checkpointing == "block":
        again = _layer(s) - (0 if s.bf16_residual else 4 * C)  # its input is there already
    grad = 2 if s.bf16_residual else 4
    mlp = (grad + 5 * e) * C
    if s.attention == "fused":
        return again + mlp
    # Gradients of weights and scores, fp32; what the MLP and the second LayerNorm kept is gone, and
    # the weights in the compute type.
    matrix = 6 if s.attention == "eager" and e == 2 else 8
    return again + max(mlp, matrix * H * T + (grad - 10 * e - 4) * C)
