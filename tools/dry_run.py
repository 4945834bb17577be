"""Every kind of run of the profile `gpu`, for a step or two, on drawn leaves: what would fail after hours fails here in minutes.

    python tools/dry_run.py --out results/drills/gpu_dry_run.csv

Torchvision's weights are stood in for by random ones of the same names and shapes where they cannot be fetched, so that the
way from their file into a network is gone, too. Nothing of this is a result."""
import argparse, os, tempfile, time, warnings
from contextlib import chdir
from pathlib import Path

import pandas as pd
import torch, torchvision
from kd_leaf.core import write_csv
from kd_leaf.models.zoo import is_timm
from kd_leaf.study.config import load_study, make_runs
from kd_leaf.study.run import architecture
from kd_leaf.study.runner import run_study
from kd_leaf.study.selectors import run_selectors
from kd_leaf.study.spec import list_studies, variant_groups
from kd_leaf.data.store import image_store

KIND = ['role', 'model', 'teacher', 'weights', 'loss', 'balance', 'teaching', 'unlabelled', 'augment', 'mode', 'tta']


def small(fields):
    "Fields of a run with what takes long made small"
    least = dict(epochs=1, views=1, size=48, bs=8, fraction=.1)
    return fields | {k: min(fields[k], v) for k, v in least.items() if k in fields}


def shrunk(name):
    "A study at profile gpu, one seed, 32 pixels, an epoch of a few images"
    study = load_study(name, 'gpu', [0])
    study.dataset, study.size = 'synthetic-leaves', 32
    study.teacher, study.student = (small(o | dict(fraction=.1, bs=8)) for o in (study.teacher, study.student))
    study.kd, study.selector = small(study.kd), dict(epochs=1)
    for own in (study.teachers, study.students): own |= {k: small(v) for k, v in own.items()}
    groups = {k: [small(v) for v in vs] for k, vs in variant_groups(study.grid).items()}
    study.grid = study.grid | (dict(variants=groups) if groups else {})
    return study


def stand_ins(runs, folder):
    "Random weights under the names of torchvision's files"
    checkpoints = Path(folder)/'hub/checkpoints'
    checkpoints.mkdir(parents=True, exist_ok=True)
    for name in {architecture(r.model) for r in runs if r.weights == 'imagenet'}:
        if is_timm(name): continue
        file = checkpoints/torchvision.models.get_model_weights(name).DEFAULT.url.rsplit('/', 1)[-1]
        if not file.exists(): torch.save(torchvision.models.get_model(name, weights=None).state_dict(), file)


def dry_run(name):
    "Runs of a study, small; a row a kind"
    study, began = shrunk(name), time.time()
    store = image_store(study.dataset, study.size)
    runs = make_runs(study, store)
    stand_ins(runs, os.environ['TORCH_HOME'])
    df = run_study(study, store, engine='serial')
    selectors = run_selectors(study, store, **study.selector)
    kinds = df[KIND].fillna('').drop_duplicates()
    made = int((selectors.role == 'ensemble').sum())
    return dict(study=name, kinds=len(kinds), runs=len(df), of=len(runs), selectors=made, seconds=round(time.time()-began))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='*', help='all by default')
    parser.add_argument('--out', type=Path, help='a CSV of what was done')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    out = args.out and args.out.absolute()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        os.environ |= dict(TORCH_HOME=folder, KD_LEAF_CACHE=f'{folder}/cache')
        rows = []
        for name in args.studies or list_studies():
            rows.append(dry_run(name))
            print(rows[-1], flush=True)
    if out: write_csv(out, pd.DataFrame(rows))


if __name__ == '__main__': main()
