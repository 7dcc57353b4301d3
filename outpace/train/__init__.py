"""The training run, in the order in which it happens:

    run           from flags to exit code; calls all that follows
    corpus        the dataset that is read
    planner       decides every `auto`: plan_compute, plan_batch, plan_schedule, with what
                  capabilities finds out; plan has the result, plan_lines prints it
    alike         all processes have the same settings and data
    assemble      the objects that train; initial has their first weights
    resume        continues from a checkpoint, or refuses to; progress is how far training has come
    loop          step after step; step is one of them, clock and display tell how fast
    evaluate      what is due between steps: validate, score_lines
    save          what a checkpoint holds
    guard         what is a bad step; lagged_guard asks it, incident keeps the batch, rollback goes
                  back
    stop          requests to save or stop; watchdog ends what hangs

and beside it: forecast (speed, time, cost of a plan), load_model (any model by reference),
environment (what bits depend on), reminders (what is said as a run begins).
"""
