"""The table of tasks, one file each. A task renders a row and sums up scores; where rows come from
is `rows.py`, and how they are scored `evals/scoring.py`.
"""

from outpace.core.registry import Registry

TASKS = Registry(
    "task",
    {
        "hellaswag": "outpace.evals.tasks.hellaswag:TASK",
        "lambada": "outpace.evals.tasks.lambada:TASK",
        "piqa": "outpace.evals.tasks.piqa:TASK",
        "arc_easy": "outpace.evals.tasks.arc_easy:TASK",
        "winogrande": "outpace.evals.tasks.winogrande:TASK",
    },
)
