"""Where the time of a cached student goes: the parts of a training step, in several precisions, and of the teacher's pass for the cache.

    python tools/profile_step.py [--rounds 3] [--batches 30]

Writes results/benchmark/profile.csv: milliseconds of a batch of 32 leaves by part, median over the batches of a round; the settings take
turns. Needs the images (KD_LEAF_DATA; drawn leaves without them) and, for times worth reading, a machine that does nothing else."""
import argparse, time
from collections import defaultdict
from functools import partial
import numpy as np, pandas as pd, torch
from fastai.basics import Adam, CrossEntropyLossFlat, Learner
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from kd_leaf.core import progress, project_root, write_csv
from kd_leaf.data.loaders import SamplePlan
from kd_leaf.data.store import image_store
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.models.precision import set_precision, tune_malloc
from kd_leaf.models.zoo import create_model
from kd_leaf.study.files import provenance

BATCH, SIZE, TEACHER = 32, 96, 'densenet121'
STUDENTS = ['cnn4', 'shufflenet_v2_x1_0']
SETTINGS = [('fp32', 'fastai'), ('fp32_cl', 'fastai'), ('bf16', 'fastai'), ('fp32_cl', 'fused'), ('compiled', 'fused')]
OPTIMIZERS = dict(fastai=Adam, fused=partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True)))


class StepTimer(Callback):
    "Milliseconds between the events of a training step"
    order, run_valid = 100, False  # after all other callbacks of an event
    def __init__(self): self.ms, self.last = defaultdict(list), 0.
    def lap(self, part):
        now = time.perf_counter()
        self.ms[part].append(1000*(now-self.last))
        self.last = now
    def before_train(self): self.last = time.perf_counter()
    def before_batch(self): self.lap('views and loader')
    def after_pred(self): self.lap('forward')
    def after_loss(self): self.lap('loss and cached logits')
    def after_backward(self): self.lap('backward')
    def after_step(self): self.lap('optimizer')
    def after_batch(self): self.lap('the rest of fastai')


def loaders(store, batches):
    "Views of so many batches of training images"
    plan = SamplePlan.of(np.resize(store.where('train'), batches*BATCH))
    return view_dls(store, Views(1), plan, bs=BATCH, device='cpu')


def step_rows(store, name, precision, optimizer, cache, batches):
    "An epoch of a student; rows of its parts"
    model, timer = create_model(name, len(store.vocab)), StepTimer()
    cbs = [KDCallback(cache), *set_precision(model, precision), timer]
    learn = Learner(loaders(store, batches), model, loss_func=CrossEntropyLossFlat(), opt_func=OPTIMIZERS[optimizer], cbs=cbs)
    learn.dls.valid.n = BATCH  # little, since it is not looked at
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    warm = len(timer.ms['forward'])//4  # the first ones compile, and fill memory
    return [dict(model=name, role='student', precision=precision, optimizer=optimizer, part=k, ms=np.median(v[warm:])) for k, v in timer.ms.items()]


def pass_rows(store, model, precision, batches):
    "The teacher's pass; rows of its parts"
    dl, ms = loaders(store, batches).train, defaultdict(list)
    set_precision(model.eval(), precision)
    for rows in np.arange(batches*BATCH).reshape(batches, BATCH):
        start = time.perf_counter()
        xb, _ = dl.after_batch(dl.views_of(rows, 0))
        made = time.perf_counter()
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'): model(xb)
        ms['views and loader'].append(1000*(made-start)), ms['forward'].append(1000*(time.perf_counter()-made))
    return [dict(model=TEACHER, role='teacher', precision=precision, optimizer='', part=k, ms=np.median(v[batches//4:])) for k, v in ms.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='in which all settings take turns')
    parser.add_argument('--batches', type=int, default=30, help='of each setting in a round')
    args = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    try: store = image_store('plant-pathology-2021', SIZE)
    except FileNotFoundError: store = image_store('synthetic-leaves', SIZE)
    teacher = create_model(TEACHER, len(store.vocab))
    cache = cache_teacher(teacher, loaders(store, args.batches), precision='fp32_cl')
    work = [partial(step_rows, store, name, *s, cache, args.batches) for name in STUDENTS for s in SETTINGS]
    work += [partial(pass_rows, store, teacher, o, args.batches) for o in ('fp32', 'fp32_cl', 'bf16')]
    rows = [row | dict(round=k) for k in range(args.rounds) for f in progress(work, f'round {k+1}') for row in f()]
    made = {k: v for k, v in provenance('cpu').items() if k != 'versions'}
    df = pd.DataFrame(rows).assign(dataset=store.name, size=SIZE, bs=BATCH, **made)
    write_csv(project_root()/'results/benchmark/profile.csv', df)
    print(df.pivot_table(index=['model', 'precision', 'optimizer'], columns='part', values='ms', aggfunc='median').round(1).to_string())


if __name__ == '__main__': main()
