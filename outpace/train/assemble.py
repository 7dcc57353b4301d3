"""From a plan to the objects that train."""

from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from outpace.config.schema import RunConfig
from outpace.core.errors import UsageError
from outpace.core.runfolder import RunFolder
from outpace.data.loader import BatchShape, Loader
from outpace.data.shards import Dataset, TokenStream
from outpace.model.gpt2 import GPT2
from outpace.ops.attention import BACKENDS
from outpace.optim import OPTIMIZERS
from outpace.optim.groups import parameter_groups
from outpace.runtime.compile import why_not as compile_why_not
from outpace.runtime.distributed import Group
from outpace.runtime.precision import DTYPES, fast_fp32_matmul, grad_scaler
from outpace.runtime.seeds import generator, use_deterministic_kernels
from outpace.tokenizer import Tokenizer, get_tokenizer
from outpace.train.load_model import load_model
from outpace.train.plan import Capabilities, Plan, check_pretrained_context
from outpace.train.step import Trainable
from outpace.train.stop import StopRequest


@dataclass
class Session:
    """All that the loop works with."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    group: Group
    dataset: Dataset
    tokenizer: Tokenizer
    model: GPT2
    trainable: Trainable
    loader: Loader
    validation: TokenStream | None
    stop: StopRequest
    identity: dict[str, object]


def choose_device(asked: str, local_rank: int) -> torch.device:
    """The device of this process; UsageError when a GPU was asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("NO-GPU", "--device cuda, but PyTorch sees no GPU", do="--device cpu")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= (gpus := torch.cuda.device_count()):
        raise UsageError(
            "TOO-FEW-GPUS",
            f"process {local_rank} of this host has no GPU of its own: there are {gpus}",
            do=f"start at most {gpus} processes a host, or add --device cpu",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def capabilities(device: torch.device) -> Capabilities:
    """What this machine can do, found out by asking."""

    def attention(
        backend: str, precision: str, head_dim: int, dropout: float
    ) -> tuple[str | None, str]:
        module, dtype = BACKENDS.load(backend), DTYPES[precision]
        return (
            module.why_not(device, dtype, head_dim),
            module.kernel(device, dtype, head_dim, dropout),
        )

    return Capabilities(attention, lambda: compile_why_not(device))


def assemble(
    config: RunConfig,
    plan: Plan,
    *,
    folder: RunFolder,
    group: Group,
    dataset: Dataset,
    device: torch.device,
    stop: StopRequest,
    identity: dict[str, object],
) -> Session:
    """Build model, optimiser, loss scaler and loader as planned. Weights are the seed's, or
    those of `--init_from`; a checkpoint is loaded over them later."""
    if plan.mixed_precision != "no":
        fast_fp32_matmul()
    use_deterministic_kernels(plan.deterministic)
    model = GPT2(plan.shape, BACKENDS.load(plan.attention_backend).attend)
    if config.model.init_from:
        _load_initial(model, config.model.init_from)
    else:
        model.init_weights(generator(plan.seed, "init"))
    model.to(device).train()
    ranks = group.ranks
    ddp = None
    if ranks.world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    forward: torch.nn.Module = ddp or model
    if plan.compile:
        forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
    o = config.optimizer
    optimizer = OPTIMIZERS.load(o.optimizer)(
        parameter_groups(model, o.weight_decay), plan.lr, betas=(o.beta1, o.beta2), eps=o.eps
    )
    trainable = Trainable(
        model=model,
        forward=forward,
        optimizer=optimizer,
        scaler=grad_scaler(device, plan.mixed_precision),
        device=device,
        precision=plan.mixed_precision,
        grad_clip=o.grad_clip,
        seed=plan.seed,
        ddp=ddp,
        dropout=plan.dropout,
    )
    shape = BatchShape(
        plan.micro_batch_size, plan.gradient_accumulation_steps, ranks.rank, ranks.world_size
    )
    loader = Loader(dataset, shape, context=plan.context, seed=plan.seed, device=device)
    return Session(
        config=config,
        plan=plan,
        folder=folder,
        group=group,
        dataset=dataset,
        tokenizer=get_tokenizer(dataset.tokenizer),
        model=model,
        trainable=trainable,
        loader=loader,
        validation=dataset.stream("val") if dataset.tokens("val") > 1 else None,
        stop=stop,
        identity=identity,
    )


def _load_initial(model: GPT2, reference: str) -> None:
    """Copy the weights that `--init_from` names; a shorter context takes the first positions."""
    source = load_model(reference, torch.device("cpu")).model
    check_pretrained_context(model.shape.context, source.shape.context, reference)
    weights = source.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"][: model.shape.context]
    for name, p in model.state_dict().items():
        if name not in weights or weights[name].shape != p.shape:
            raise UsageError(
                "INIT-FROM",
                f"{reference} has another shape ({name})",
                do="give the same --model_size, --n_layer, --n_head and --n_embd as the model has",
            )
    model.load_state_dict(weights)
