"""A journal of Optuna studies that a kill has torn: cut back, told, and written on."""

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from configs.storage import refuse_links
from launch.tune.journal import open_journal

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}


def draw(storage, n_draws):
    study = optuna.create_study(study_name="one", storage=storage, direction="maximize", load_if_exists=True)
    for _ in range(n_draws):
        trial = study.ask(SPACE)
        study.tell(trial, trial.params["lr"])
    return study


@pytest.fixture
def journal(tmp_path):
    """Three draws; the last line tells of the third's end."""
    path = tmp_path / "optuna.journal"
    draw(JournalStorage(JournalFileBackend(str(path))), 3)
    return path


def cut(content):
    return content[:-20]


def cut_at_its_end(content):
    return content[:-1]


def glue(content):
    """What Optuna makes of a torn line: its next one stands behind the stump."""
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:-2]) + lines[-2][:30] + lines[-1]


def spoil(line):
    return lambda content: content + line + b"\n"


@pytest.mark.parametrize(
    ("damage", "n_dropped"),
    [
        (cut, 1),
        (cut_at_its_end, 1),
        (glue, 1),
        (spoil(b"\xff\xfe"), 1),
        (spoil(b"[1, 2]"), 1),
        (spoil(b'{"key": 1}'), 1),
        (spoil(bytes(40)), 1),
        (spoil(b"[" * 100_000), 1),
        (lambda content: content.replace(b'"trial_id":2,"state"', b'"tryal_id":2,"state"'), 1),
        (lambda content: content.replace(b'{"op_code":5,', b'{"op_code":99,', 1), 8),
        (lambda content: content.replace(b'\\"name\\"', b'\\"nome\\"', 1), 8),
        (lambda content: content.replace(b'"directions"', b'"dyrections"'), 10),
        (lambda content: content + bytes(40), 1),
        (lambda _: b"", 0),
        (lambda content: content, 0),
    ],
)
def test_what_a_kill_tore_is_cut_back_and_the_studies_go_on(journal, damage, n_dropped):
    journal.write_bytes(damage(journal.read_bytes()))
    storage, told = open_journal(journal)
    assert told == n_dropped
    study = draw(storage, 1)
    n_draws = len(study.trials)
    again, told = open_journal(journal)
    assert told == 0
    assert len(optuna.load_study(study_name="one", storage=again).trials) == n_draws


def test_the_lock_of_a_process_that_was_killed_is_not_waited_for(journal):
    journal.with_name("optuna.journal.lock").symlink_to(journal)
    journal.with_name("optuna.journal.lock1234.rename").symlink_to(journal)
    storage, _ = open_journal(journal)
    draw(storage, 1)  # else it would wait for half a minute
    assert [path.name for path in journal.parent.iterdir()] == ["optuna.journal"]


def test_a_run_goes_on_in_whose_folder_a_kill_has_left_the_lock(journal):
    storage, _ = open_journal(journal)
    storage._backend._lock.acquire()
    assert journal.with_name("optuna.journal.lock").exists()
    refuse_links(journal.parent)


def test_a_journal_behind_a_link_is_left_whole_when_it_is_cut_back(tmp_path, journal):
    journal.write_bytes(cut(journal.read_bytes()))
    before, link = journal.read_bytes(), tmp_path / "run.journal"
    link.symlink_to(journal)
    assert open_journal(link)[1] == 1
    assert journal.read_bytes() == before
