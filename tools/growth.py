"""How costs grow: seconds and peak memory of stores by images, and what it costs to schedule a run, by runs.

    python tools/growth.py [--images 1000 10000] [--runs 10 100 1000] [--engines serial processes] [--ray]

Writes results/benchmark/growth/store.csv (drawn leaves as JPEG files: building a store, opening it again, one epoch of its
loader; each in a process of its own) and runs.csv (runs that do no training: everything else a study does for them). 100,000
images take 2 GB as files, 5 GB as a store, and an hour on two cores: --images 1000 10000 100000."""
import argparse, os, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
import pandas as pd
from PIL import Image
from kd_leaf.core import project_root, write_csv
from kd_leaf.data.store import image_store
from kd_leaf.data.synthetic import draw_leaf, synthetic_counts
from kd_leaf.data.views import Views, view_dls
from kd_leaf.study import runner
from kd_leaf.study.config import Study
from kd_leaf.study.files import peak_rss_mb, provenance, reset_peak

SIZE = 128
STUDY = dict(title='growth', profile='quick', dataset='synthetic-leaves', size=16,
             grid=dict(teachers=['cnn4'], students=['cnn4'], balance=['none']), teacher=dict(epochs=1, mode='fp32'),
             student=dict(epochs=1, fraction=.5, views=1, mode='fp32'), kd=dict(loss='soft_target', temperature=4., alpha=.5))


def draw(folder, n):
    "Class folders of `n` drawn leaves"
    labels = [o for o, k in synthetic_counts(n).items() for _ in range(k)]
    for o in {*labels}: (folder/o).mkdir(parents=True)
    for i, o in enumerate(labels): Image.fromarray(draw_leaf(o, 0, i, SIZE)).save(folder/o/f'{i:06}.jpg')


def timed(what, n, f):
    "A row: seconds and peak memory of a call; and what it returned"
    reset_peak()
    start = time.perf_counter()
    out = f()
    return dict(what=what, images=n, seconds=time.perf_counter()-start, peak_rss_mb=peak_rss_mb()), out


def measure_store(folder, n):
    "Rows of one store; called in a fresh process"
    before = dict(what='before', images=n, seconds=0., peak_rss_mb=peak_rss_mb())
    built, _ = timed('store built', n, lambda: image_store(folder, SIZE))
    opened, store = timed('store opened again', n, lambda: image_store(folder, SIZE))
    dls = view_dls(store, Views(1), device='cpu')
    epoch, _ = timed('an epoch of views', n, lambda: sum(len(y) for _, y in dls.train))
    return [before, built, opened, epoch]


def store_rows(sizes):
    "Rows of stores of several sizes"
    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as d, ProcessPoolExecutor(1, get_context('spawn')) as pool:
            os.environ['KD_LEAF_CACHE'] = f'{d}/cache'
            draw(Path(d)/'leaves', n)
            rows += pool.submit(measure_store, Path(d)/'leaves', n).result()
        print(pd.DataFrame(rows[-4:]).to_string(index=False, header=n == sizes[0]), flush=True)
    return rows


class NoTraining:
    "In place of a training: what another run has left, under this run's name"
    def __init__(self, record, arrays): self.record, self.arrays = record, arrays
    def __call__(self, run, store, device, sha256, teacher_store, tick):
        tick(1.)
        return self.record | asdict(run) | dict(key=run.key), self.arrays


def run_rows(numbers, engines):
    "Rows of studies of several sizes by several engines; the first study of each engine pays for its start"
    from unittest.mock import patch
    rows, here = [], os.getcwd()
    store = image_store('synthetic-leaves', 16)
    one = runner.make_runs(Study('growth', seeds=[0], **STUDY), store)[0]
    work = NoTraining(*runner.do_run(one, store, 'cpu'))
    for engine in engines:
        for n in (1, *numbers):
            with tempfile.TemporaryDirectory() as d, patch.object(runner, '_work', work):
                os.chdir(d)
                study = Study('growth', seeds=list(range(-(-n//3))), **STUDY)  # a seed has three runs
                start = time.perf_counter()
                made = len(runner.run_study(study, store, device='cpu', engine=engine))
                rows.append(dict(engine=engine, runs=made, seconds=time.perf_counter()-start))
                os.chdir(here)
            rows[-1]['ms_a_run'] = 1000*rows[-1]['seconds']/made
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, nargs='*', default=[1000, 10_000])
    parser.add_argument('--runs', type=int, nargs='*', default=[10, 100, 1000])
    parser.add_argument('--engines', nargs='*', default=['serial', 'processes'])
    parser.add_argument('--ray', action='store_true', help='a local Ray cluster as well')
    args = parser.parse_args()
    folder, made = project_root()/'results/benchmark/growth', {k: v for k, v in provenance('cpu').items() if k != 'versions'}
    with tempfile.TemporaryDirectory() as d:
        os.environ['KD_LEAF_CACHE'] = d
        runs = run_rows(args.runs, [*args.engines, *['ray']*args.ray]) if args.runs else []
    for name, rows in dict(runs=runs, store=store_rows(args.images)).items():
        if rows: write_csv(folder/f'{name}.csv', pd.DataFrame(rows).assign(**made))


if __name__ == '__main__': main()
