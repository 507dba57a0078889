"""A Tune callback: curves and hyper-parameters of trials for TensorBoard, with those that failed or diverged as such."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from ray.tune.logger import LoggerCallback
from ray.tune.result import AUTO_RESULT_KEYS
from tensorboardX import SummaryWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.summary import hparams

from launch.tune.reports import FAILED

SESSION_END = "_hparams_/session_end_info"


class TensorBoardLog(LoggerCallback):
    """Draws every number that a trial reports, over the trial's own count of what it has done (the key `time`).

    Ray's own TBXLoggerCallback counts from 1 again when a trial is tried again, leaves out NaN, so that a loss that diverged
    stays at its last finite value, and calls all trials successful.
    """

    def __init__(self, time: str) -> None:
        self._time = time
        self._writers: dict[str, SummaryWriter] = {}
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._failed: set[str] = set()

    def log_trial_start(self, trial: Any) -> None:
        """A trial that is tried again starts a new file, with its first report."""
        self._close(trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Draw the numbers of a report."""
        del iteration
        time = int(result.get(self._time, 0))
        if result.get(FAILED):
            self._failed.add(trial.trial_id)
        writer = self._writers.get(trial.trial_id) or self._open(trial, time)
        for name, value in result.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in AUTO_RESULT_KEYS:
                self._names[trial.trial_id].add(f"ray/tune/{name}")
                # A bare add_scalar would print a line for each NaN.
                writer.file_writer.add_summary(_scalar(f"ray/tune/{name}", value), time)
        writer.flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:  # noqa: FBT001, FBT002 - as Ray calls it
        """Write the hyper-parameters of a trial, whatever became of it."""
        writer = self._writers.get(trial.trial_id) or self._open(trial, None)
        chosen = {name: value for name, value in trial.config.items() if isinstance(value, str | bool | int | float)}
        experiment, start, _ = hparams(
            hparam_dict=chosen, metric_dict=dict.fromkeys(sorted(self._names.pop(trial.trial_id, ())), 0.0)
        )
        has_failed = failed or trial.trial_id in self._failed
        for summary in (experiment, start, _end("STATUS_FAILURE" if has_failed else "STATUS_SUCCESS")):
            writer.file_writer.add_summary(summary)
        self._close(trial)

    def _open(self, trial: Any, time: int | None) -> SummaryWriter:
        trial.init_local_path()
        number = sum(1 for _ in Path(trial.local_path).glob("events.*"))  # a file of the same second has the same name
        # What an earlier try drew from here on is hidden.
        writer = SummaryWriter(trial.local_path, purge_step=time, filename_suffix=f".{number}")
        self._writers[trial.trial_id] = writer
        return writer

    def _close(self, trial: Any) -> None:
        writer = self._writers.pop(trial.trial_id, None)
        if writer is not None:
            writer.close()


def _scalar(name: str, value: float) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=float(value))])


def _end(status: str) -> Summary:
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=Status.Value(status)), version=0)
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=SESSION_END, metadata=SummaryMetadata(plugin_data=plugin))])
