"""How costs grow: seconds and peak memory by images, what it costs to schedule a run, and what a second process saves.

    python tools/growth.py [--images 1000 10000] [--runs 10 100 1000] [--engines serial processes ray] [--quick 3]

Writes results/benchmark/growth/store.csv (drawn leaves as JPEG files: building a store, opening it again, a teacher's cache, one
epoch of its student, a SMOTE plan; each size in a process of its own), runs.csv (runs that do no training: everything else a study
does for them) and engines.csv (the quick leaf study by one process and by several, taking turns). 100,000 images take 2 GB as files
and 5 GB as a store: --images 1000 10000 100000. For times worth reading, on a machine that does nothing else."""
import argparse, os, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
import pandas as pd
from PIL import Image
from kd_leaf.core import project_root, stable_hash, write_csv
from kd_leaf.data.resampling import smote
from kd_leaf.data.store import image_store
from kd_leaf.data.synthetic import draw_leaf, synthetic_counts
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.learner import make_learner
from kd_leaf.models.precision import tune_malloc
from kd_leaf.models.features import smote_features
from kd_leaf.models.zoo import create_model
from kd_leaf.study import runner
from kd_leaf.study.config import Study, load_study
from kd_leaf.study.files import peak_rss_mb, provenance, read_records, reset_peak

SIZE, BATCH = 128, 16  # pixels a side, images of a student's step
STUDY = dict(title='growth', profile='quick', dataset='synthetic-leaves', size=16,
             grid=dict(teachers=['cnn4'], students=['cnn4'], balance=['none']), teacher=dict(epochs=1, mode='fp32'),
             student=dict(epochs=1, fraction=.5, views=1, mode='fp32'), kd=dict(loss='soft_target', temperature=4., alpha=.5))


def draw_one(folder, label, i): Image.fromarray(draw_leaf(label, 0, i, 32)).resize((SIZE, SIZE)).save(folder/label/f'{i:06}.jpg')  # drawing is slow


def draw(folder, n):
    "Class folders of `n` drawn leaves"
    labels = [o for o, k in synthetic_counts(n).items() for _ in range(k)]
    for o in {*labels}: (folder/o).mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool: list(pool.map(partial(draw_one, folder), labels, range(n), chunksize=256))


def timed(what, n, f):
    "A row: seconds and peak memory of a call; and what it returned"
    reset_peak()
    start = time.perf_counter()
    out = f()
    return dict(what=what, images=n, seconds=time.perf_counter()-start, peak_rss_mb=peak_rss_mb()), out


def measure_store(folder, n):
    "Rows of one store; called in a fresh process, which holds no memory back, as those of a study"
    tune_malloc()
    before = dict(what='before', images=n, seconds=0., peak_rss_mb=peak_rss_mb())
    built, _ = timed('store built', n, lambda: image_store(folder, SIZE))
    opened, store = timed('store opened again', n, lambda: image_store(folder, SIZE))
    dls = view_dls(store, Views(1), bs=BATCH, device='cpu')
    model = lambda: create_model('shufflenet_v2_x0_5', len(store.vocab))
    taught, cache = timed("a teacher's cache, one view", n, lambda: cache_teacher(model(), dls, precision='fp32_cl'))
    learn = make_learner(dls, model(), cbs=KDCallback(cache))
    with learn.no_bar(), learn.no_logging(): epoch, _ = timed('an epoch of a student', n, lambda: learn.fit(1))
    del learn, cache
    planned, _ = timed('a SMOTE plan', n, lambda: smote(store, store.where('train'), features=smote_features(model(), store, BATCH, 'cpu')))
    return [before, built, opened, taught, epoch, planned]


def store_rows(sizes):
    "Rows of stores of several sizes"
    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as d, ProcessPoolExecutor(1, get_context('spawn')) as pool:
            os.environ['KD_LEAF_CACHE'] = f'{d}/cache'
            draw(Path(d)/'leaves', n)
            rows += pool.submit(measure_store, Path(d)/'leaves', n).result()
        print(pd.DataFrame(rows[-6:]).to_string(index=False, header=n == sizes[0]), flush=True)
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


def shorter(study, share):
    "The same study with a share of the epochs; its processes have less to do once they are up"
    less = lambda o: o | dict(epochs=max(1, round(share*o['epochs']))) if 'epochs' in o else o
    each = {k: {name: less(o) for name, o in getattr(study, k).items()} for k in ('teachers', 'students')}
    return replace(study, teacher=less(study.teacher), student=less(study.student), **each)


def engine_rows(rounds, share):
    "Rows of the quick leaf study by one process and by one a core, taking turns; `records` is a hash of all predictions"
    rows, here = [], os.getcwd()
    for k in range(rounds):
        for engine in ('serial', 'processes'):
            with tempfile.TemporaryDirectory() as d:
                os.chdir(d)
                os.environ['KD_LEAF_CACHE'] = f'{d}/cache'
                study, start = shorter(load_study('leaf', 'quick'), share), time.perf_counter()
                runner.run_study(study, device='cpu', engine=engine)
                found = {r['key']: r['preds_sha256'] for r in read_records(study)}
                seconds = time.perf_counter()-start
                rows.append(dict(engine=engine, round=k+1, epochs=share, runs=len(found), seconds=seconds, records=stable_hash(found)))
                os.chdir(here)
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, nargs='*', default=[1000, 10_000])
    parser.add_argument('--runs', type=int, nargs='*', default=[10, 100, 1000])
    parser.add_argument('--engines', nargs='*', default=['serial', 'processes'], help='for --runs; ray: a local cluster')
    parser.add_argument('--quick', type=int, default=0, help='rounds of the quick leaf study, minutes each')
    parser.add_argument('--epochs', type=float, default=1, help='share of its epochs')
    args = parser.parse_args()
    folder, made = project_root()/'results/benchmark/growth', {k: v for k, v in provenance('cpu').items() if k != 'versions'}
    with tempfile.TemporaryDirectory() as d:
        os.environ['KD_LEAF_CACHE'] = d
        work = dict(runs=lambda: run_rows(args.runs, args.engines) if args.runs else [],
                    store=lambda: store_rows(args.images), engines=lambda: engine_rows(args.quick, args.epochs))
        for name, measure in work.items():
            if rows := measure(): write_csv(folder/f'{name}.csv', pd.DataFrame(rows).assign(**made))


if __name__ == '__main__': main()
