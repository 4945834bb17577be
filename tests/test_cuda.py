"What only a GPU shows, on the GPU where there is one; the same on a CPU, so that the tests themselves are tried"
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from kd_leaf.core import device_name, seed_everything
from kd_leaf.data.loaders import SamplePlan, StoreDataset, store_dls
from kd_leaf.data.resampling import LogitAdjustedLoss, log_shares, smote
from kd_leaf.data.store import image_store
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import HideLabels, KDCallback, StopOnNaN
from kd_leaf.distill.features import FeatureKDCallback
from kd_leaf.distill.learner import distill, make_learner, predict_logits
from kd_leaf.ensemble.model import Ensemble
from kd_leaf.ensemble.selector import fit_selector, predict_selector, select
from kd_leaf.evaluate.interpret import grad_cam
from kd_leaf.models.optimizer import FusedAdam
from kd_leaf.models.precision import fastest_precision
from kd_leaf.models.zoo import create_model
from kd_leaf.study.config import load_study
from kd_leaf.study.runner import run_study

CUDA = torch.cuda.is_available()
DEVICE = 'cuda' if CUDA else 'cpu'


@pytest.fixture(scope='module')
def store(): return image_store('synthetic-leaves', 32)


@pytest.fixture(scope='module')
def teacher(store):
    seed_everything(0)
    learn = make_learner(store_dls(store, bs=64, device=DEVICE), 'resnet18', weights='none', precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 2e-3)
    return learn.model.eval()


def views(store, device=DEVICE): return view_dls(store, Views(3), bs=32, epoch_size=128, device=device)


def test_images_lie_on_the_gpu_once(store):
    a, b = store_dls(store, device=DEVICE), views(store)
    held = [dl.dataset.resident for dls in (a, b) for dl in dls]
    assert all(o is held[0] for o in held) and (held[0] is not None) == CUDA
    xb, yb = b.train.one_batch()
    assert xb.device.type == yb.device.type == DEVICE and xb.dtype == torch.float32


def test_a_view_is_the_same_everywhere(store):
    "Pixels to a thousandth; and which image, exactly"
    here, there = views(store, 'cpu'), views(store)
    rows = here.train.rows(2)
    assert (rows == there.train.rows(2)).all()
    (x, y), (x2, y2) = (o.train.views_of(rows[:16], 2) for o in (here, there))
    assert (x-x2.cpu()).abs().max() < 2e-3 and (y == y2.cpu()).all()


@pytest.mark.parametrize('precision', ['fp32', 'fp32_cl', 'bf16'])
def test_a_cache_holds_what_the_teacher_says(store, teacher, tmp_path, precision):
    dls = views(store)
    cache = cache_teacher(teacher, dls, tmp_path/'cache', precision)
    dls.train.epochs = 1
    for xb, _ in dls.train:
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=precision == 'bf16'): now = teacher.eval()(torch.Tensor(xb)).float().cpu()
        assert (cache(*dls.train.last_batch)-now).abs().max() < (.25 if precision == 'bf16' else .02)*max(1, now.abs().max())


@pytest.mark.parametrize('precision', ['fp32', 'fp32_cl', 'bf16', 'compiled'])
def test_a_student_learns_in_each_precision(store, teacher, precision):
    learn = make_learner(views(store), 'cnn4', weights='none', precision=precision, cbs=KDCallback(teacher))
    assert isinstance(learn.opt_func([torch.zeros(1)], lr=1.), FusedAdam) == CUDA
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 5e-3)
    losses = torch.stack([torch.as_tensor(o).cpu() for o in learn.recorder.losses])
    assert losses[-4:].mean() < .9*losses[:4].mean() and learn.kd.seconds > 0
    assert np.isfinite(predict_logits(learn, 1)).all()


def test_cached_and_live_teachers_give_the_same_student(store, teacher, tmp_path, monkeypatch):
    cache, out, asked = cache_teacher(teacher, views(store), tmp_path/'cache'), [], []
    monkeypatch.setattr('kd_leaf.distill.learner._cached', lambda dls, by, *args: by)  # or a live teacher would be cached, too
    monkeypatch.setattr(teacher, 'forward', lambda x, forward=teacher.forward: asked.append(len(x)) or forward(x))
    for by in (cache, teacher):
        learn = distill(views(store), by, 'cnn4', 3, weights='none', precision='fp32', seed=0)
        out.append(np.array([float(o) for o in learn.recorder.losses]))
        assert bool(asked) == (by is teacher)
    assert np.abs(out[0]-out[1]).max() < .02


class NoWait(Callback):
    "Whatever waits for the GPU between the second step of an epoch and its last is an error"
    run_valid, order = False, 100

    def before_batch(self):
        if CUDA and self.iter == 1: torch.cuda.set_sync_debug_mode('error')

    def after_batch(self):
        if CUDA and self.iter == self.n_iter-1: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('cached', [True, False])
def test_no_step_waits_for_the_gpu(store, teacher, tmp_path, cached, precision):
    "Views of real and of SMOTE images, labels hidden, logits adjusted, a teacher from its cache or beside"
    train = store.where('train')
    known, others = smote(store, train[::4]), SamplePlan.of(np.setdiff1d(train, train[::4]))
    plan = SamplePlan(*(np.concatenate([getattr(o, k) for o in (known, others)]) for k in ('i', 'j', 'lam')))
    dls = view_dls(store, Views(2), plan, bs=32, epoch_size=256, device=DEVICE)
    by = cache_teacher(teacher, dls, tmp_path/'cache') if cached else teacher
    loss = LogitAdjustedLoss(log_shares(store, train[::4]), 1.)
    loss.to(DEVICE)
    cbs = [KDCallback(by), HideLabels(known.keys(store)), StopOnNaN(), NoWait()]
    learn = make_learner(dls, 'cnn4', weights='none', precision=precision, loss_func=loss, cbs=cbs)
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3)
    finally:
        if CUDA: torch.cuda.set_sync_debug_mode('default')
    assert learn.loss_func is loss and loss.added.device.type == DEVICE
    assert len(learn.recorder.losses) == 16 and {type(o) for o in learn.recorder.losses} == {float}


@pytest.mark.parametrize('every', [2, 10**6])
def test_a_loss_that_is_not_a_number_is_found(store, every):
    "Within an epoch, or at its end; what was kept of the losses can be plotted"
    class Soon(StopOnNaN): pass
    Soon.every = every
    learn = make_learner(views(store), 'cnn4', weights='none', precision='fp32', cbs=Soon())
    with torch.no_grad(): learn.model[-1].bias.fill_(float('nan'))
    with learn.no_bar(), learn.no_logging(), pytest.raises(FloatingPointError, match='the loss is nan at epoch 0'): learn.fit(1)
    learn.recorder.plot_loss()


@pytest.mark.skipif(not CUDA, reason="fastai's mixed precision is for CUDA")
def test_mixed_precision_and_feature_losses(store, teacher):
    for cb in (KDCallback(copy.deepcopy(teacher)), FeatureKDCallback(copy.deepcopy(teacher), 'attention')):
        learn = make_learner(views(store), 'cnn4', weights='none', precision='fp32', cbs=[cb, MixedPrecision()])
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 2e-3)
        assert all(torch.isfinite(torch.as_tensor(o)) for o in learn.recorder.losses)


def test_precision_is_measured_here(): assert fastest_precision('cnn4', 32, DEVICE) in ('fp32', 'fp32_cl', 'bf16')


def test_selector_and_ensemble(store, teacher):
    valid = store.where('valid')
    other = create_model('cnn4', len(store.vocab), 'none')
    logits = np.stack([predict_logits(make_learner(store_dls(store, device=DEVICE), m, precision='fp32'), 1) for m in (teacher, other)])
    learn = fit_selector(store, valid, logits, epochs=1, device=DEVICE)
    choice = predict_selector(learn, store, valid)
    both = Ensemble([teacher, other], vocab=store.vocab, size=store.size, selector=learn.model).to(DEVICE).eval()
    xb, _ = next(iter(learn.dls.valid.new(StoreDataset(store, SamplePlan.of(valid), 1), bs=64)))
    with torch.inference_mode(): out = both(xb).cpu().numpy()
    assert np.abs(out-select(logits[:, :64], choice[:64])).max() < .02


def test_heat_map(store, teacher):
    pytest.importorskip('captum')
    dls = store_dls(store, device=DEVICE)
    xb, yb = dls[2].one_batch()
    assert grad_cam(teacher, xb[:2], yb[:2]).max() == 1


@pytest.mark.parametrize('engine', ['serial', 'processes'])
def test_a_study_on_this_device(engine, tmp_path, monkeypatch):
    "Teachers, students and their caches, in this process and in two others; a second call has nothing to do"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    study = replace(load_study('leaf', 'quick'), name='tried', size=24, grid=dict(teachers=['resnet18'], students=['cnn4'], balance=['none']))
    study.teacher, study.student = dict(epochs=2, bs=32), dict(epochs=2, views=2, bs=32, fraction=.25)
    study.teachers, study.students = {}, {}
    df = run_study(study, device=DEVICE, engine=engine, workers=2)
    assert len(df) == 3 and (df.device == device_name(DEVICE)).all()
    before = sorted(study.dir.glob('runs/*'))
    run_study(study, device=DEVICE, engine=engine, workers=2)
    assert sorted(study.dir.glob('runs/*')) == before
