"""What a run's folder holds after a write that failed, or that a kill cut short."""

import pandas as pd
import pytest

from configs import ConfigError
from configs.storage import whole_file, write_text
from search.jobs.mad.spec import MadSpec
from search.runs.figures import picture
from search.runs.run_folder import TrialLog, run_folder, saved_spec, tell_damage, write_parquet

SPEC = MadSpec.model_validate({"architectures": {"own": None}, "tasks": ["memorization"]})


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(tmp_path):
    with run_folder(tmp_path, SPEC):
        killed = whole_file(tmp_path / "scores.png")
        unfinished = killed.__enter__()
    assert unfinished.exists()
    with run_folder(tmp_path, SPEC):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "spec.json"]


def test_three_kills_while_a_checkpoint_is_written_leave_one_file(tmp_path):
    killed = [whole_file(tmp_path / "stages/01/checkpoint.safetensors") for _ in range(3)]
    for write in killed:
        with run_folder(tmp_path, SPEC):
            unfinished = write.__enter__()
            unfinished.write_bytes(b"half")
            unfinished.with_name(".tmpA1b2C3").write_bytes(b"half")  # as safetensors has it while it writes
    with run_folder(tmp_path, SPEC):
        assert list((tmp_path / "stages/01").iterdir()) == []


@pytest.mark.parametrize("name", [".lock", "spec.json", "caches", "trials.jsonl", "stages/01"])
def test_a_link_in_the_folder_is_refused_and_nothing_behind_it_is_touched(tmp_path, name):
    out, theirs = tmp_path / "run", tmp_path / "theirs"
    with run_folder(out, SPEC):
        pass
    theirs.mkdir()
    (theirs / "file").write_text("kept")
    (out / name).unlink(missing_ok=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(theirs / "file" if "." in name else theirs)
    with pytest.raises(ConfigError, match=f"{name}: is a link to"), run_folder(out, SPEC):
        pass
    assert [(path.name, path.read_text()) for path in theirs.iterdir()] == [("file", "kept")]


def test_a_folder_that_the_user_reaches_through_a_link_is_his_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with run_folder(tmp_path / "run", SPEC):
        assert (tmp_path / "disk/spec.json").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", None])
def test_a_damaged_specification_is_refused_with_a_remedy_that_works(tmp_path, damage):
    with run_folder(tmp_path, SPEC):
        pass
    path = tmp_path / "spec.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"epochs": 200', b'"epochs": 201') if damage is None else damage)
    remedy = f"if the run in {tmp_path} is the one that is asked for, delete this file: what is done there is used again"
    with pytest.raises(ConfigError, match=f"{path}: damaged: .*; {remedy}"), run_folder(tmp_path, SPEC):
        pass
    path.unlink()
    with run_folder(tmp_path, SPEC):
        assert path.read_bytes() == whole


def test_the_remedy_for_a_missing_specification_is_not_to_delete_it(tmp_path):
    with run_folder(tmp_path, SPEC):
        pass
    whole = (tmp_path / "spec.json").read_bytes()
    (tmp_path / "spec.json").unlink()
    with pytest.raises(ConfigError, match=rf"spec\.json: is missing; the command that has run in {tmp_path} writes it again"):
        saved_spec(tmp_path)
    with run_folder(tmp_path, SPEC):
        assert (tmp_path / "spec.json").read_bytes() == whole


def test_lines_of_a_log_that_are_none_of_ours_are_dropped_and_told(tmp_path):
    log, said = TrialLog(tmp_path / "trials.jsonl"), []
    log.add_all([{"key": "a", "loss": 1.0}, {"key": "b", "loss": 2.0}])
    whole = log.path.read_bytes()
    with log.path.open("ab") as file:
        file.write(b'[1]\n{"loss": 1}\n\xff\n' + whole.splitlines()[1].replace(b"2.0", b"0.5") + b"\n{")
    again = TrialLog(log.path)
    assert {key: row["loss"] for key, row in again.rows.items()} == {"a": 1.0, "b": 2.0}
    tell_damage(again, said.append, "they run again")
    assert said == [f"{log.path}: 5 damaged line(s) were dropped; they run again"]
    assert log.path.read_bytes() == whole
    assert TrialLog(log.path).n_damaged == 0


def test_a_table_of_racks_that_all_diverged_has_no_accuracies(tmp_path):
    write_parquet([{"name": "one", "accuracies": {}}, {"name": "two", "accuracies": {}}], tmp_path / "trials.parquet")
    assert pd.read_parquet(tmp_path / "trials.parquet")["accuracies"].isna().all()


def draw(path):
    with picture(path, 1, 1):
        pass


WRITERS = {
    "text": lambda path: write_text(path, "text"),
    "table": lambda path: write_parquet([{"loss": 1.0}], path),
    "picture": draw,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, writer):
    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        writer(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
