"""The figures of docs/reliability.md and the table of faults in README.md."""

import tomllib

from rendering import ROOT, read, where


def reliability_figures() -> str:
    """A table with a row for each part of benchmarks/reliability.py that has been run."""
    rows = ["| measured | figure | how |", "|---|---|---|"]
    if r := read("reliability-kills"):
        rows.append(
            f"| `kill -9` at random moments | **{r['kills']}** kills, {r['inside_a_save']} inside "
            f"a save: {r['acknowledged_checkpoints_lost']} acknowledged checkpoints lost, "
            f"{r['bad_checkpoints_published']} bad ones published; final weights "
            f"{'equal' if r['same_as_uninterrupted'] else 'NOT equal'} to an uninterrupted run's "
            f"| one run of {r['steps']:,} steps, a save at each step, seed {r['seed']} |"
        )
    if r := read("reliability-flips"):
        files = ", ".join(f"{name} {n}" for name, n in r["by_file"].items())
        rows.append(
            f"| one flipped bit | **{r['found']} of {r['flipped']}** found | at random places in "
            f"each file: {files} |"
        )
    if r := read("reliability-resume"):
        rows.append(
            f"| exact resume | **{r['exact']} of {r['points']}** points | resumed after every step "
            f"of a run of 30 steps, dropout on; {r['hashes_compared']:,} hashes of weights and "
            "moments compared |"
        )
    if r := read("reliability-stall"):
        front, behind = r["in front"], r["behind"]
        rows.append(
            f"| training waits for a save of 124M ({r['bytes'] / 1e9:.2f} GB) | "
            f"**{behind['stall_s']['median']:.2f} s** if it is written in the background, "
            f"{front['stall_s']['median']:.2f} s if not: {r['ratio']:.1f} times less | "
            f"median of {behind['stall_s']['n']}, in turns; the first save, which allocates "
            f"the buffers, {behind['first_stall_s']:.2f} s; written within "
            f"{behind['write_s']['median']:.1f} s |"
        )
    if r := read("reliability-bad-input"):
        kinds = ", ".join(f"{k} {sum(c.values())}" for k, c in r["exit_codes"].items())
        rows.append(
            f"| bad input | **{r['tried']:,}** tried, {len(r['tracebacks_or_exit_1'])} tracebacks "
            f"or exits with 1 | {kinds} |"
        )
    if r := read("reliability-cost"):
        rows.append(
            f"| cost of all guards | **{r['ratio_of_medians'] - 1:+.1%}** of a step by medians, "
            f"{r['median_of_ratios'] - 1:+.1%} by the median of the pairs' ratios | "
            f"{r['pairs']} pairs of steps with and without, in turns: "
            f"{r['step_ms_with']['median']:.0f} and {r['step_ms_without']['median']:.0f} ms |"
        )
    places = {where(r) for part in ("kills", "stall", "cost") if (r := read(f"reliability-{part}"))}
    return "\n".join([*rows, "", "; ".join(sorted(places)) + ". `make reliability`"])


def fault_table() -> str:
    """A table of all faults in tests/faults/catalogue.toml: promise, tests, and their last
    result."""
    catalogue = tomllib.loads((ROOT / "tests" / "faults" / "catalogue.toml").read_text())
    last = read("faults") or {"faults": {}}
    rows = ["| fault | promise | test | last result |", "|---|---|---|---|"]
    for name, entry in catalogue.items():
        found = last["faults"].get(name)
        files = result = "none"
        if found:
            files = ", ".join(f"`{f}.py`" for f in found["files"])
            result = ", ".join(
                f"{found[k]} {k}" for k in ("passed", "failed", "skipped") if found.get(k)
            )
        rows.append(f"| {name} {entry['fault']} | {entry['promise']} | {files} | {result} |")
    where_and_when = f"\n{where(last)}. `make test-faults`" if "machine" in last else ""
    return "\n".join([*rows, where_and_when])
