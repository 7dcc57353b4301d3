"""`outpace train`: train GPT-2; the same command continues an interrupted run."""

from outpace.config.load import load


def run(argv: list[str]) -> int:
    """Parse, train, write the report. Returns 0 if finished, 75 if stopped and resumable; raises
    OutpaceError. Signal handlers and PyTorch's switches are restored afterwards, for programs that
    call this."""
    config, set_by = load(argv)

    from outpace.core.errors import StorageError
    from outpace.core.log import say, warn
    from outpace.core.runfolder import RunFolder
    from outpace.runtime.distributed import ranks_from_environment
    from outpace.train.run import run as train
    from outpace.train.stop import StopRequest

    with StopRequest(config.schedule.max_hours) as stop:
        code, folder = train(config, set_by, ["train", *argv], stop)
        if ranks_from_environment().is_main:
            try:
                from outpace.report.page import write_report

                say(f"report {write_report([folder], RunFolder(folder).report)}")
            except (StorageError, ImportError) as error:  # the run itself is complete
                warn(f"no report was written: {error}")
    return code
