#!/usr/bin/env bash
# What becomes of a Ray Tune trial whose function calls `sys.exit(0)`, as a training script does that was wrapped.
# Guess: the trial ends as if the function had returned, or fails with SystemExit.
# Seen (ray 2.60.0, Python 3.11, Linux): neither. The trial ends in ERROR with a RuntimeError of Tune's own state machine ("should not
#        have reached here", "should have scheduled a stop"), which says nothing of an exit, so the user looks for a fault in Ray. What
#        was reported before is kept, and a trial beside it goes on to its end. Whoever wraps a script catches SystemExit inside the
#        function and says what it was.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[tune]==2.60.0' setuptools==80.9.0
cd "$folder"
export RAY_USAGE_STATS_ENABLED=0 RAY_AIR_NEW_OUTPUT=0
"$folder/venv/bin/python" - "$folder" <<'PYTHON' 2>"$folder/errors" || { cat "$folder/errors" >&2; exit 1; }
import sys

import ray
from ray import tune


def leaves(config):
    for step in range(3):
        tune.report({"step": step})
        if config["leaves"] and step == 1:
            sys.exit(0)


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
found = tune.Tuner(
    leaves,
    param_space={"leaves": tune.grid_search([True, False])},
    run_config=tune.RunConfig(storage_path=sys.argv[1], name="run", verbose=0),
).fit()
(left,) = (result for result in found if result.config["leaves"])
(stayed,) = (result for result in found if not result.config["leaves"])
told = str(left.error)
print(f"left: {type(left.error).__name__}, speaks of an exit: {'Exit' in told}, last step {left.metrics['step']}; beside it: {stayed.metrics['step']}")
assert isinstance(left.error, RuntimeError)
assert "Should not have reached here" in told
assert "SystemExit" not in told
assert (left.metrics["step"], stayed.error, stayed.metrics["step"]) == (1, None, 2)
PYTHON
echo "as described"
