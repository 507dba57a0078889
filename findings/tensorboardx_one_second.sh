#!/usr/bin/env bash
# Where two tensorboardX writers write that are made in the same folder within one second.
# Guess: each has an event file of its own, as TensorBoard's own writer has (its names hold process and counter).
# Seen (tensorboardX 2.6.5, Python 3.11, Linux): the name holds the second and the host alone, so both open the same file; the second
#        truncates it, and each goes on at its own offset. Of 20 + 20 scalars, closed in either order, a reader gets those of one
#        writer, without an error. Ray Tune's `TBXLoggerCallback` makes a writer a trial, in folders of their own; whoever makes
#        several in one folder gives each its own `filename_suffix`, with which all 40 are read.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorboardX==2.6.5 tensorboard==2.20.0 setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter


def steps_read(name: str, suffixes: tuple[str, str]) -> tuple[int, dict[str, int]]:
    time.sleep(1 - time.time() % 1)  # at the start of a second, so that it does not change between the two
    writers = {tag: SummaryWriter(name, filename_suffix=suffix) for tag, suffix in zip(("a", "b"), suffixes)}
    for step in range(20):
        for tag, writer in writers.items():
            writer.add_scalar(tag, float(step), step)
    for writer in writers.values():
        writer.close()
    files = list(Path(name).iterdir())
    counts = {"a": 0, "b": 0}
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            counts[tag] += len(events.Scalars(tag))
    return len(files), counts


same, apart = steps_read("same", ("", "")), steps_read("apart", (".a", ".b"))
print(f"without suffixes: {same[0]} file, scalars read {same[1]}; with suffixes: {apart[0]} files, {apart[1]}")
assert same[0] == 1
assert sum(same[1].values()) < 40
assert apart == (2, {"a": 20, "b": 20})
PYTHON
echo "as described"
