"""Trials that raise, die, leave or hang, and other work, where a process of its own can import it."""

import errno
import os
import signal
import sys
import time

from torch import nn

from configs import ConfigError
from search.jobs.in_process import _rack
from search.jobs.progressive.candidates import run_candidate


def _raise(error):
    raise error


def _loop():
    while True:
        pass


def _leave_a_child_and_die():
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(4.0)  # and holds open all that its parent had
    os._exit(0)


ENDS = {
    "raise": (lambda: _raise(RuntimeError("broke in two")), "RuntimeError: broke in two"),
    "exit-0": (lambda: sys.exit(0), "the trial ended itself by SystemExit(0)"),
    "exit-word": (lambda: sys.exit("enough"), "the trial ended itself by SystemExit(enough)"),
    "stop": (lambda: _raise(StopIteration), "the trial ended itself by StopIteration()"),
    "leave-0": (lambda: os._exit(0), "the trial left its process with exit status 0 before it was done"),
    "leave-3": (lambda: os._exit(3), "the trial left its process with exit status 3 before it was done"),
    "signal": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "the trial's process was ended by SIGSEGV"),
    "child": (_leave_a_child_and_die, "the trial's process was ended by SIGKILL"),
    "hang": (lambda: time.sleep(1e6), "the trial took longer than trial_timeout allows, 2 s, and was ended"),
    "loop": (_loop, "the trial took longer than trial_timeout allows, 2 s, and was ended"),
}
"""What a trial of that name comes to, and how what is told of it ends; those of other names train."""


def come_to_its_end(name):
    """What the trial of a name does on its way."""
    if name in ENDS:
        ENDS[name][0]()


def last_line(text):
    """What is told of a failure in short."""
    return text.strip().splitlines()[-1]


class Doomed(nn.Module):
    """A model of a vocabulary of 8 that comes to its end when it is used."""

    def __init__(self, name):
        super().__init__()
        self.embedding, self.output, self.name = nn.Embedding(8, 8), nn.Linear(8, 8), name

    def forward(self, tokens):
        come_to_its_end(self.name)
        return self.output(self.embedding(tokens))


def make_model(trial):
    """The model of an architecture, by its name."""
    return Doomed(trial.architecture)


def model_but_of_a_rate(trial):
    """A model that leaves the process where it is made for one learning rate."""
    come_to_its_end("leave-0" if trial.spec.lr == 2e-3 else "usual")
    return Doomed("usual")


def factory(task, vocab_size, max_length):
    """As `benchmark` wants it."""
    del task, max_length
    assert vocab_size == 8
    return Doomed("usual")


def sound_model(trial):
    """The same, mended."""
    del trial
    return Doomed("usual")


def rack(spec, folder, say):
    """A retrained rack, by its folder's name."""
    come_to_its_end(folder.name)
    return _rack(spec, folder, say)


def rack_on_ray(spec, folder, on_evaluation):
    """What a worker does for a rack, by its folder's name; leaves a stroke for each time that it is tried."""
    del spec, on_evaluation
    with folder.with_name(f"{folder.name}.tries").open("a") as file:
        file.write("|")
    come_to_its_end(folder.name)


def candidate(spec, folder, say):
    """A candidate, by its folder's name."""
    come_to_its_end(folder.name)
    return run_candidate(spec, folder, say)


def full_disk(_):
    """Work that a full disk ends."""
    raise OSError(errno.ENOSPC, "no room", "weights")


def bad_input(_):
    """Work that finds its configuration wrong."""
    raise ConfigError("lr: too high")


def interrupted(_):
    """Work that is interrupted over there."""
    raise KeyboardInterrupt


def told_pid(tell):
    """Work that tells where it runs, and goes on for ever."""
    tell(os.getpid())
    time.sleep(1e6)


def talk(tell):
    """Work that tells for ever."""
    while True:
        tell("more")


def slow(tell):
    """Work of a second and a half, told in the middle."""
    time.sleep(1.0)
    tell("half")
    time.sleep(0.5)
    return "done"


def nothing(_):
    """Work that is done at once."""
