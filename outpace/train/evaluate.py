"""Evaluations during a run: validation loss, HellaSwag, samples. They use the bare model and their
own random generators, so they do not change the training.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outpace.core.crash import is_out_of_memory
from outpace.core.errors import DataError, NumericsError, OutOfMemory
from outpace.core.files import read_json_lines
from outpace.core.log import warn
from outpace.data.stream import TokenStream
from outpace.evals import task
from outpace.evals.loss import Loss, validation_loss
from outpace.evals.memory import no_memory
from outpace.evals.tasks import hellaswag
from outpace.generate.engine import complete
from outpace.generate.sampling import Sampling
from outpace.runtime.precision import autocast
from outpace.runtime.seeds import generator
from outpace.train.assemble import Session
from outpace.train.progress import Progress
from outpace.train.score_lines import loss_line, task_line
from outpace.train.validate import validate

FINAL_SAMPLES = 2
ALWAYS_S = 20.0
"""Evaluations at intervals may always take this long in total, however short the training."""


class Evaluation:
    """Evaluations of one run, each due at its own interval and all at the end."""

    def __init__(
        self,
        s: Session,
        progress: Progress,
        *,
        tell: Callable[[str], None],
        watch: Callable[[str], None],
    ) -> None:
        """`tell` gets results, and `watch` the progress of an evaluation, as text."""
        self.s, self.progress, self.tell, self.watch = s, progress, tell, watch
        self.questions_fault = ""
        self.asked = self._questions()
        self.share = _TimeShare(s, progress)

    def is_due(self, step: int) -> bool:
        """Whether any evaluation is due at this step."""
        return bool(self._due_at(step))

    def run_due(self, step: int) -> None:
        """Run what is due at this step."""
        tasks = self._due_at(step)
        ours = self.s.config.evaluation.eval_every_steps == "auto"
        if ours and "validation" in tasks and self.share.refuses():
            tasks -= {"validation"}
            self.share.say_why(step, self.tell)
        self._run(tasks, samples=1)

    def run_missed(self) -> None:
        """After a resume, run what was due at this step and was interrupted. When fine-tuning,
        measure the loss before the first step."""
        step = self.progress.step
        tasks = self._due_at(step)
        if step == 0:
            tasks &= {"validation"} if self.s.plan.init_from else set()
        if step != self.s.plan.max_steps:
            self._run(tasks - self._recorded(), samples=1)

    def run_final(self) -> bool:
        """Run what has not been recorded for the last step. Returns False if told to stop."""
        everything = {"validation", "hellaswag", "sample"}
        self._run(everything - self._recorded(), samples=FINAL_SAMPLES)
        self.share.summarise(self.tell)
        return not self.s.group.max(int(self.s.stop.requested))

    def _run(self, tasks: set[str], *, samples: int) -> None:
        if not tasks:
            return
        self.s.watchdog.beat(f"evaluating step {self.progress.step}")
        with self.share.counted("validation" in tasks):
            if "validation" in tasks:
                with self._giving_up("validation"):
                    self._validate()
            if "hellaswag" in tasks:
                with self._giving_up("hellaswag"):
                    self._hellaswag()
            if "sample" in tasks:
                with self._giving_up("sample"):
                    self._sample(samples)

    @contextlib.contextmanager
    def _giving_up(self, task: str) -> Iterator[None]:
        """Record an evaluation that runs out of memory or is not finite as failed, and go on."""
        try:
            yield
        except (OutOfMemory, NumericsError) as error:
            failed = "out of memory" if isinstance(error, OutOfMemory) else "not finite"
            self._record({"task": task, "failed": failed})
            if self.s.group.ranks.is_main:
                where = f"{task} at step {self.progress.step:,}"
                warn(f"[{error.name}] {where} is {failed} and left out; training goes on")

    def _due_at(self, step: int) -> set[str]:
        """The tasks whose interval ends at this step."""
        e = self.s.config.evaluation
        every = {
            "validation": self.s.plan.eval_every_steps,
            "hellaswag": e.hellaswag_every_steps,
            "sample": e.sample_every_steps,
        }
        return {task for task, n in every.items() if n and step % n == 0}

    def _recorded(self) -> set[str]:
        """Tasks recorded for the present step in the run folder, which only the first process may
        have."""
        folder, step = self.s.folder, self.progress.step
        found = {
            (str(r.get("task")), str(r.get("protocol")))
            for r in read_json_lines(folder.evals)
            if r.get("step") == step and "failed" not in r
        }
        done = {name for name, _ in found}
        if any(("hellaswag", asked.protocol) not in found for asked in self.asked):
            done.discard("hellaswag")
        if any(r.get("step") == step for r in read_json_lines(folder.samples)):
            done.add("sample")
        return set(self.s.group.broadcast(done))

    def _validate(self) -> None:
        s = self.s

        def score(stream: TokenStream, tokens: int) -> Loss | None:
            return validation_loss(
                s.model,
                stream.read,
                tokens=tokens,
                context=s.plan.context,
                token_bytes=s.tokenizer.token_bytes(),
                precision=s.plan.mixed_precision,
                group=s.group,
                keep_going=partial(self._keep_going, "validation loss"),
            )

        with _evaluating(s.model):
            result = validate(score, s.mixture, s.plan.val_tokens)
        if result is None:
            return
        record = result.record()
        self._record(record)
        line = loss_line(record, s.mixture.name, s.mixture.unigram_entropy)
        self.tell(f"step {self.progress.step}: {line}")

    def _hellaswag(self) -> None:
        s = self.s
        if self.questions_fault:
            self._record({"task": "hellaswag", "failed": self.questions_fault})
        for asked in self.asked:
            with _evaluating(s.model):
                result = task.evaluate(
                    s.model,
                    asked,
                    precision=s.plan.mixed_precision,
                    group=s.group,
                    keep_going=partial(self._keep_going, "HellaSwag"),
                )
            if result is None:
                return
            record, _ = result
            self._record(record)
            self.tell(f"step {self.progress.step}: {task_line(record)}")

    def _sample(self, number: int) -> None:
        s, e = self.s, self.s.config.evaluation
        if not e.sample_tokens or not s.group.ranks.is_main:
            return
        how, tokenizer = Sampling(), s.tokenizer
        prompt = tokenizer.encode(e.sample_prompt) or [tokenizer.end_of_text]
        try:
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
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise no_memory() from error
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
            s.folder.record(s.folder.samples, record)
            self.tell(f"sample {i + 1}: {e.sample_prompt}{text}")

    def _record(self, record: dict[str, Any]) -> None:
        if self.s.group.ranks.is_main:
            where = {
                "step": self.progress.step,
                "tokens": self.progress.step * self.s.plan.tokens_per_step,
                "elapsed_s": self.progress.elapsed_s,
            }
            folder = self.s.folder
            folder.record(folder.evals, {**where, **record})

    def _keep_going(self, what: str, done: float) -> bool:
        self.s.watchdog.beat()
        self.watch(f"{what}: {done:.0%}")
        return not self.s.group.anyone(self.s.stop.requested)

    def _questions(self) -> list[task.Asked]:
        """HellaSwag in each protocol asked for, in tokens; nothing where it cannot be scored."""
        limit, wanted = self.s.plan.hellaswag_limit, self.s.config.evaluation.hellaswag_protocol
        path = Path(self.s.config.evaluation.hellaswag_path)
        if limit == 0 or not path.exists() or self.s.tokenizer.name != "gpt2":
            return []
        try:
            questions = task.subset(hellaswag.load(path), limit)
            protocols = hellaswag.PROTOCOLS if wanted == "both" else (wanted,)
            return [hellaswag.ask(questions, p, self.s.tokenizer) for p in protocols]
        except DataError as error:  # questions are not worth a run
            self.questions_fault = error.what
            if self.s.group.ranks.is_main:
                warn(f"[HELLASWAG] {error.what}: not scored; training goes on; do: {error.do}")
            return []


class _TimeShare:
    """The time that evaluations took in this process, compared with training."""

    def __init__(self, s: Session, progress: Progress) -> None:
        self.s, self.progress = s, progress
        self._trained_before = progress.elapsed_s
        self._took = self._last = 0.0
        """Seconds, of all evaluations and of the newest with a validation loss."""
        self._said = False

    @contextlib.contextmanager
    def counted(self, whole: bool) -> Iterator[None]:
        """Time inside counts; if `whole`, it also predicts what the next evaluation will take."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self._took += seconds
            if whole:
                self._last = seconds

    def refuses(self) -> bool:
        """Whether to skip an evaluation whose interval is `auto`, because evaluations would take
        more than their share; the same answer in all processes."""
        allowed = max(ALWAYS_S, self.s.config.evaluation.eval_time_share * self._trained)
        return bool(self.s.group.max(int(self._took + self._last > allowed)))

    def say_why(self, step: int, tell: Callable[[str], None]) -> None:
        """Tell, once, why an evaluation is skipped."""
        if not self._said:
            self._said = True
            share = f"{self.s.config.evaluation.eval_time_share:.0%}"
            tell(
                f"step {step}: not evaluated, to keep evaluations within {share} of the training "
                "time (--eval_time_share, or set --eval_every_steps)"
            )

    def summarise(self, tell: Callable[[str], None]) -> None:
        """Tell the totals."""
        if self._took and self._trained:
            tell(f"evaluation took {self._took:.1f} s, training {self._trained:.1f} s")

    @property
    def _trained(self) -> float:
        return self.progress.elapsed_s - self._trained_before


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, training mode after."""
    model.eval()
    try:
        yield
    finally:
        model.train()
