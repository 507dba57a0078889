"""MAD's own data folder: what is found by which setting, and what is refused."""

import pickle
import re

import numpy as np
import pytest

from configs import ConfigError
from tasks import IGNORED, TASKS
from tasks.mad_folder import TASK_NAMES, MadFolder, fingerprint_of, read_split
from tests.mad_folders import N_TEST, N_TRAIN, NAMES, arrays, write_benchmark, write_setting

SIZES = {"n_train": N_TRAIN, "n_test": N_TEST, "seed": 12345}
SMALL = "t-CR_vs-8_sl-16_ntr-6_nte-4_km-1_vm-1_mq-1_fn-0#0_nvs-0_ntc-0_s-7"
RECALL = TASKS["in_context_recall"](vocab_size=8, seq_len=16)


def kind_of(task):
    return task.replace("-", "_")


def small(inputs=None, targets=None):
    """A split of the small setting, of the arrays that are given, or of good ones."""
    tokens = np.arange(60).reshape(4, 15) % 8
    return {"inputs": tokens if inputs is None else inputs, "targets": tokens if targets is None else targets}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("benchmark") / "mad")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", NAMES)
def test_every_task_and_split_is_read_to_the_bit(folder, task, split):
    instance = TASKS[kind_of(task)]()
    setting = MadFolder.find(folder).setting(instance, **SIZES)
    assert setting == folder / NAMES[task]
    found, expected = read_split(setting, instance, SIZES[f"n_{split}"], split), arrays(task, split)
    for name in ("inputs", "targets"):
        array = getattr(found, name)
        assert (array.dtype, array.tobytes()) == (np.dtype(np.int64), np.ascontiguousarray(expected[name]).tobytes())


def test_all_tasks_of_the_benchmark_have_a_name():
    assert {kind_of(task) for task in NAMES} == set(TASK_NAMES)


@pytest.mark.parametrize(
    ("task", "options", "sizes"),
    [
        ("in-context-recall", {"vocab_size": 32}, {}),
        ("in-context-recall", {"seq_len": 256}, {}),
        ("in-context-recall", {"multi_query": False}, {}),
        ("in-context-recall", {}, {"n_train": 800}),
        ("in-context-recall", {}, {"n_test": 1280}),
        ("noisy-in-context-recall", {"frac_noise": 0.4}, {}),
        ("noisy-in-context-recall", {"noise_vocab_size": 8}, {}),
        ("fuzzy-in-context-recall", {"k_motif_size": 2}, {}),
        ("fuzzy-in-context-recall", {"v_motif_size": 1}, {}),
        ("selective-copying", {"n_tokens_to_copy": 32}, {}),
    ],
)
def test_a_setting_that_is_not_there_is_named_with_those_that_are(folder, task, options, sizes):
    instance = TASKS[kind_of(task)](**options)
    with pytest.raises(ConfigError) as caught:
        MadFolder.find(folder).setting(instance, **{**SIZES, **sizes})
    missing, there = re.search(r"has no (\S+); it has (.*)", str(caught.value)).groups()
    differing = [pair for pair in zip(missing.split("_"), NAMES[task].split("_"), strict=True) if len(set(pair)) > 1]
    assert len(differing) == 1
    assert there == NAMES[task]


def test_a_task_without_any_folder_is_told_all_that_there_are(tmp_path):
    write_benchmark(tmp_path, ["compression", "memorization"])
    with pytest.raises(ConfigError, match=f"has no {NAMES['selective-copying']}; it has t-C_.*, t-M_"):
        MadFolder.find(tmp_path).setting(TASKS["selective_copying"](), **SIZES)


def test_shares_are_matched_as_numbers_and_of_seeds_the_one_that_is_meant(tmp_path):
    for name in ("fn-0#0_nvs-0_ntc-0_s-7", "fn-0_nvs-0_ntc-0_s-8"):
        write_setting(tmp_path, f"t-CR_vs-8_sl-16_ntr-6_nte-4_km-1_vm-1_mq-1_{name}", {})
        (tmp_path / f"t-CR_vs-8_sl-16_ntr-6_nte-4_km-1_vm-1_mq-1_{name}").mkdir()
    found = MadFolder.find(tmp_path)
    for seed in (7, 8):
        assert found.setting(RECALL, n_train=6, n_test=4, seed=seed).name.endswith(f"s-{seed}")
    with pytest.raises(ConfigError, match=r"_s-9; it has .*_s-7, .*_s-8"):
        found.setting(RECALL, n_train=6, n_test=4, seed=9)
    next(tmp_path.glob("*s-7")).rmdir()
    assert found.setting(RECALL, n_train=6, n_test=4, seed=9).name.endswith("s-8")  # there is one: it is of any seed


def test_pairs_of_another_seed_and_other_tasks_and_options_are_refused(folder):
    found = MadFolder.find(folder)
    with pytest.raises(ConfigError, match=r"map_seed = 3, but the pairs of t-M_.* are of the seed 12345"):
        found.setting(TASKS["memorization"](map_seed=3), **SIZES)
    with pytest.raises(ConfigError, match="MAD's benchmark has no task needle; it has in_context_recall, "):
        found.setting(TASKS["needle"](), **SIZES)
    with pytest.raises(ConfigError, match="leave probe_is_shown false"):
        found.setting(TASKS["fuzzy_in_context_recall"](probe_is_shown=True), **SIZES)


def test_what_is_no_folder_of_the_benchmark(folder, tmp_path):
    for name in ("t-CR", "t-XX_vs-8", SMALL.replace("s-7", "s-nan")):
        assert MadFolder.find(tmp_path) is None
        (tmp_path / "file").write_text("")
        (tmp_path / name).mkdir()
        if (found := MadFolder.find(tmp_path)) is not None:
            with pytest.raises(ConfigError, match=f"it has {name}"):
                found.setting(RECALL, n_train=6, n_test=4, seed=7)
        (tmp_path / name).rmdir()
    assert MadFolder.find(tmp_path / "nowhere") is None
    with pytest.raises(ConfigError, match=rf"has no settings of MAD \(t-\*\) itself: give {re.escape(str(folder))}"):
        MadFolder.find(folder.parent)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (small(inputs=np.zeros((4, 14), int)), r"inputs.npy: has the shape \[4, 14\], but the setting t-CR_\S+ has \[4, 15\]"),
        (small(targets=np.zeros((3, 15), int)), r"targets.npy: has the shape \[3, 15\]"),
        (small(inputs=np.zeros(60, int)), r"inputs.npy: has the shape \[60\]"),
        (small(inputs=np.zeros((4, 15))), "inputs.npy: has the type float64, but tokens are integers"),
        (small(inputs=np.zeros((4, 15), np.uint64)), "inputs.npy: has the type uint64"),
        (small(inputs=np.zeros((4, 15), bool)), "inputs.npy: has the type bool"),
        (small(inputs=np.full((4, 15), 8)), "inputs.npy: has values from 8 to 8, but the tokens of vs-8 are below it"),
        (small(inputs=np.full((4, 15), IGNORED)), "inputs.npy: has values from -100 to -100"),
        (small(targets=np.full((4, 15), -1)), "targets.npy: has values from -1 to -1, .* or -100"),
        (small(targets=np.full((4, 15), IGNORED)), "targets.npy: all are -100"),
    ],
)
def test_arrays_that_are_not_what_the_setting_says(tmp_path, split, message):
    write_setting(tmp_path, SMALL, {"test": split})
    with pytest.raises(ConfigError, match=f"{re.escape(str(tmp_path / SMALL))}/test/{message}"):
        read_split(tmp_path / SMALL, RECALL, 4, "test")


class Opened:
    """What a pickle of runs when it is read."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("content", ["object", "pickle", "zip", "empty", "short", "text", "header"])
def test_files_that_are_no_arrays_of_numbers(tmp_path, content):
    write_setting(tmp_path, SMALL, {"test": small()})
    path = tmp_path / SMALL / "test" / "inputs.npy"
    if content == "object":
        np.save(path, np.array([[Opened()] * 15] * 4, dtype=object))
    elif content == "zip":
        with path.open("wb") as file:
            np.savez(file, **small())
    else:
        whole = path.read_bytes()
        damaged = {"pickle": pickle.dumps(Opened()), "empty": b"", "short": whole[:-8], "text": b"1 2 3"}
        path.write_bytes({**damaged, "header": whole.replace(b"}", b" ")}[content])
    with pytest.raises(ConfigError, match=r"inputs\.npy: cannot be read as an array of numbers: "):
        read_split(tmp_path / SMALL, RECALL, 4, "test")
    path.unlink()
    with pytest.raises(ConfigError, match=r"inputs\.npy: there is no such file"):
        read_split(tmp_path / SMALL, RECALL, 4, "test")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, ">i8"])
def test_other_integers_are_the_same_tokens(tmp_path, dtype):
    for number, each in enumerate((np.int64, dtype)):
        named = {name: array.astype(each) for name, array in small().items()}
        write_setting(tmp_path / str(number), SMALL, {"test": named})
    first, second = (read_split(tmp_path / str(number) / SMALL, RECALL, 4, "test") for number in (0, 1))
    assert first.inputs.dtype == second.inputs.dtype == np.int64
    assert fingerprint_of(first) == fingerprint_of(second)


def test_the_order_in_which_an_array_is_written_is_not_its_content(tmp_path):
    for number, order in enumerate("CF"):
        named = {name: np.asarray(array, order=order) for name, array in small().items()}
        write_setting(tmp_path / str(number), SMALL, {"test": named})
    first, second = (read_split(tmp_path / str(number) / SMALL, RECALL, 4, "test") for number in (0, 1))
    np.testing.assert_array_equal(first.inputs, second.inputs)
    assert fingerprint_of(first) == fingerprint_of(second)
