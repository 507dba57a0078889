"""A search on Ray in a process of its own, to be interrupted: `python -m tests.launch.searching FOLDER`."""

import signal
import sys
from functools import partial
from pathlib import Path

from launch.scoring.tune_scorer import TuneScorer
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_log import ScoreLog
from tests.launch.scorers import PLACEMENTS, make_scorer, workers


def search(folder: Path) -> None:
    with TuneScorer(partial(make_scorer, folder), folder, workers(), "cpu") as scorer:
        evaluate = Evaluator(scorer, n_batches=2, shares={"task": 1.0}, key="key", log=ScoreLog(folder / "scores.jsonl"))
        for start in range(0, len(PLACEMENTS), 3):
            evaluate(PLACEMENTS[start : start + 3])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    search(Path(sys.argv[1]))
