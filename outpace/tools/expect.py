"""A run's plan and forecast, on this machine or on another by name."""

from dataclasses import asdict, dataclass
from typing import Any

from outpace.config.load import SetBy
from outpace.config.schema import RunConfig
from outpace.runtime import calibration
from outpace.runtime.device import choose_device
from outpace.runtime.distributed import ranks_from_environment
from outpace.runtime.hardware import Machine
from outpace.runtime.machines import by_device_name
from outpace.tools.elsewhere import plan_elsewhere
from outpace.train.assemble import make_loader
from outpace.train.corpus import OPENWEBTEXT, facts_of, is_default_prepared
from outpace.train.forecast import Forecast, forecast, rates_here, sheet_rates
from outpace.train.initial import take_shape
from outpace.train.plan import DatasetFacts, Plan
from outpace.train.plan_lines import assumed, data_line
from outpace.train.resume import saved_shape
from outpace.train.run import plan_for, plan_run


@dataclass(frozen=True)
class Expected:
    """A plan with its forecast."""

    plan: Plan
    machine: Machine
    facts: DatasetFacts
    data: str
    """The dataset in words."""
    forecast: Forecast

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.plan.record(),
            "machine": vars(self.machine),
            "dataset": vars(self.facts),
            "predicted": asdict(self.forecast),
        }


def expect(config: RunConfig, set_by: SetBy, price_per_hour: float) -> Expected:
    """The plan and forecast for this machine, predicted from its calibration, else from its data
    sheet. DataError if the dataset is too small for a step, as in `outpace train`."""
    config = take_shape(config, set_by, saved_shape(config, []))
    ranks = ranks_from_environment()
    if config.data.dataset == "auto" and not is_default_prepared():
        device = choose_device(config.compute.device, ranks.local_rank)
        facts = OPENWEBTEXT
        plan, machine = plan_for(config, set_by, ranks, facts, device)
        data = f"{assumed('auto')}; `outpace train` would prepare pydocs and train on it"
    else:
        plan, machine, mixture, device = plan_run(config, set_by, ranks)
        make_loader(plan, mixture, 0, device)  # refuses a dataset that is too small
        facts, data = facts_of(mixture, config), data_line(mixture, plan)
    gpu = by_device_name(machine.device_name) if machine.device == "cuda" else None
    rates, why_not = rates_here(plan, gpu, calibration.read(machine, plan.mixed_precision))
    predicted = forecast(
        config,
        plan,
        facts,
        rates,
        why_not=why_not,
        peak_flops=machine.peak(plan.mixed_precision),
        watts=gpu.watts if gpu else None,
        price_per_hour=price_per_hour,
    )
    return Expected(plan, machine, facts, data, predicted)


def expect_elsewhere(
    config: RunConfig, set_by: SetBy, machine: str, price_per_hour: float
) -> Expected:
    """The plan and forecast for the GPUs that `--machine` names, predicted from their data
    sheet."""
    config = take_shape(config, set_by)
    plan, there, gpu, facts, data = plan_elsewhere(config, set_by, machine)
    predicted = forecast(
        config,
        plan,
        facts,
        sheet_rates(gpu, plan),
        peak_flops=there.peak(plan.mixed_precision),
        watts=gpu.watts,
        price_per_hour=price_per_hour,
    )
    return Expected(plan, there, facts, data, predicted)
