"""Folders as MAD's public benchmark has them, made of its own instances."""

from pathlib import Path

import numpy as np

INSTANCES = Path(__file__).parent / "data" / "mad"
N_TRAIN, N_TEST = 48, 32

NAMES = {
    "in-context-recall": "t-CR_vs-16_sl-128_ntr-48_nte-32_km-1_vm-1_mq-1_fn-0#0_nvs-0_ntc-0_s-12345",
    "noisy-in-context-recall": "t-NR_vs-32_sl-128_ntr-48_nte-32_km-1_vm-1_mq-1_fn-0#2_nvs-16_ntc-0_s-12345",
    "fuzzy-in-context-recall": "t-FR_vs-16_sl-128_ntr-48_nte-32_km-3_vm-3_mq-1_fn-0#0_nvs-0_ntc-0_s-12345",
    "memorization": "t-M_vs-256_sl-32_ntr-48_nte-32_km-1_vm-1_mq-1_fn-0#0_nvs-0_ntc-0_s-12345",
    "compression": "t-C_vs-16_sl-32_ntr-48_nte-32_km-1_vm-1_mq-1_fn-0#0_nvs-0_ntc-0_s-12345",
    "selective-copying": "t-SC_vs-16_sl-256_ntr-48_nte-32_km-1_vm-1_mq-1_fn-0#0_nvs-0_ntc-16_s-12345",
}
"""The folders of the baselines, by the names of our tasks, spelt as the benchmark spells them."""

SIZES = {"n_train": N_TRAIN, "n_test": N_TEST, "n_validation": 16}


def arrays(task, split):
    """Inputs and targets of a split: those of another seed than ours, in an order that nothing of ours draws."""
    found = np.load(INSTANCES / f"{task}_{split}.npz")
    rows = slice(None, -1 - (N_TRAIN if split == "train" else N_TEST), -1)
    return {name: found[name][rows] for name in ("inputs", "targets")}


def write_setting(folder: Path, name, splits):
    """One setting's folder."""
    for split, named in splits.items():
        (folder / name / split).mkdir(parents=True)
        for array, values in named.items():
            np.save(folder / name / split / f"{array}.npy", values)


def write_benchmark(folder: Path, tasks=tuple(NAMES)):
    """The baselines of tasks; the folder."""
    for task in tasks:
        write_setting(folder, NAMES[task], {split: arrays(task, split) for split in ("train", "test")})
    return folder


def listing(folder: Path):
    """All that lies in a folder, with contents and times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.read_bytes(), path.stat().st_mtime_ns) for path in files]
