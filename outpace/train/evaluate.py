"""What a run measures of itself: validation loss, HellaSwag, samples. It reads the bare model and
generators of its own, so training goes on as if nothing had been asked.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outpace.core.files import append_json_line, read_json_lines
from outpace.core.published import gpt2_hellaswag
from outpace.core.units import count
from outpace.evals.loss import validation_loss
from outpace.evals.tasks import hellaswag
from outpace.generate.engine import complete
from outpace.generate.sampling import Sampling
from outpace.runtime.precision import autocast
from outpace.runtime.seeds import generator
from outpace.train.assemble import Session

if TYPE_CHECKING:
    from outpace.train.loop import Progress

FINAL_SAMPLES = 2


class Evaluation:
    """Evaluations of one run, each due at its own interval and all at the end."""

    def __init__(self, s: Session, progress: "Progress") -> None:
        self.s, self.progress = s, progress
        self.complete = False
        self.questions = self._questions()

    def is_due(self, step: int) -> bool:
        """Whether anything falls on this step."""
        return bool(self._falls_on(step))

    def due(self, step: int) -> Iterator[str]:
        """Run what falls on this step; yields lines to show."""
        yield from self._run(self._falls_on(step), samples=1)

    def missed(self) -> Iterator[str]:
        """Run what fell on the step of a resume and was cut off by what ended the run before."""
        step = self.progress.step
        if step and step != self.s.plan.max_steps:
            yield from self._run(self._falls_on(step) - self._recorded(), samples=1)

    def final(self) -> Iterator[str]:
        """Run what has not been recorded for the last step; `complete` unless told to stop."""
        everything = {"validation", "hellaswag", "sample"}
        yield from self._run(everything - self._recorded(), samples=FINAL_SAMPLES)
        self.complete = not self.s.group.largest(int(self.s.stop.requested))

    def _run(self, tasks: set[str], *, samples: int) -> Iterator[str]:
        if "validation" in tasks:
            yield from self._validate()
        if "hellaswag" in tasks:
            yield from self._hellaswag()
        if "sample" in tasks:
            yield from self._sample(samples)

    def _falls_on(self, step: int) -> set[str]:
        e = self.s.config.evaluation
        every = {
            "validation": self.s.plan.eval_every_steps,
            "hellaswag": e.hellaswag_every_steps,
            "sample": e.sample_every_steps,
        }
        return {task for task, n in every.items() if n and step % n == 0}

    def _recorded(self) -> set[str]:
        """Tasks that stand in the run folder for the present step."""
        folder, step = self.s.folder, self.progress.step
        done = {str(r.get("task")) for r in read_json_lines(folder.evals) if r.get("step") == step}
        if any(r.get("step") == step for r in read_json_lines(folder.samples)):
            done.add("sample")
        return done

    def _validate(self) -> Iterator[str]:
        s = self.s
        if s.validation is None or s.plan.val_tokens < 1:
            return
        with _evaluating(s.model):
            result = validation_loss(
                s.model,
                s.validation.read,
                tokens=s.plan.val_tokens,
                context=s.plan.context,
                token_bytes=s.tokenizer.token_bytes(),
                device=s.trainable.device,
                precision=s.plan.mixed_precision,
                group=s.group,
                keep_going=self._keep_going,
            )
        if result is None:
            return
        self._record(result.record())
        yield (
            f"step {self.progress.step}: validation loss {result.loss:.4f} nats a token "
            f"(unigram entropy {s.dataset.unigram_entropy:.4f}), perplexity "
            f"{result.perplexity:.2f}, {result.bits_per_byte:.4f} bits a byte, over "
            f"{count(result.tokens_scored)} tokens"
        )

    def _hellaswag(self) -> Iterator[str]:
        s = self.s
        if not self.questions:
            return
        with _evaluating(s.model):
            result = hellaswag.evaluate(
                s.model,
                s.tokenizer,
                self.questions,
                device=s.trainable.device,
                precision=s.plan.mixed_precision,
                group=s.group,
                keep_going=self._keep_going,
            )
        if result is None:
            return
        record, _ = result
        self._record(record)
        yield f"step {self.progress.step}: {hellaswag_line(record)}"

    def _sample(self, number: int) -> Iterator[str]:
        s, e = self.s, self.s.config.evaluation
        if not e.sample_tokens or not s.group.ranks.is_main:
            return
        how, tokenizer = Sampling(), s.tokenizer
        prompt = tokenizer.encode(e.sample_prompt) or [tokenizer.end_of_text]
        with _evaluating(s.model), autocast(s.trainable.device, s.plan.mixed_precision):
            samples = complete(
                s.model,
                prompt,
                max_new_tokens=e.sample_tokens,
                how=how,
                generator=generator(s.plan.seed, "sample", self.progress.step),
                num_samples=number,
                stop_token=tokenizer.end_of_text,
            )
        for i, ids in enumerate(samples):
            text = tokenizer.decode(ids)
            record = {
                "step": self.progress.step,
                "prompt": e.sample_prompt,
                "text": text,
                "seed": s.plan.seed,
                "temperature": how.temperature,
                "top_k": how.top_k,
            }
            append_json_line(s.folder.samples, record)
            yield f"sample {i + 1}: {e.sample_prompt}{text}"

    def _record(self, record: dict[str, Any]) -> None:
        if self.s.group.ranks.is_main:
            where = {
                "step": self.progress.step,
                "tokens": self.progress.step * self.s.plan.tokens_per_step,
                "elapsed_s": self.progress.elapsed_s,
            }
            append_json_line(self.s.folder.evals, {**where, **record})

    def _keep_going(self) -> bool:
        return not self.s.stop.requested

    def _questions(self) -> list[hellaswag.Question]:
        limit = self.s.plan.hellaswag_limit
        path = Path(self.s.config.evaluation.hellaswag_path)
        if limit == 0 or not path.exists() or self.s.tokenizer.name != "gpt2":
            return []
        return hellaswag.subset(hellaswag.load(path), limit)


def hellaswag_line(record: dict[str, Any]) -> str:
    """A score with its standard error, and GPT-2's published one in the same protocol."""
    published = gpt2_hellaswag(record["protocol"], "acc_norm")
    return (
        f"HellaSwag ({record['protocol']}, {record['questions']:,} questions): "
        f"acc_norm {record['acc_norm']:.4f} ± {record['acc_norm_stderr']:.4f}, "
        f"acc {record['acc']:.4f} ± {record['acc_stderr']:.4f}; "
        f"{published.model}: acc_norm {published.value:.4f} on all 10,042 ({published.source})"
    )


class _evaluating:
    """Evaluation mode inside, training mode after."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train()
