"The faults found in other distillation code (fasterai, torchdistill, KD_Lib, leaf-disease-ai, FKD, TinyViT, mdistiller, Keras): ours has none of them"
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, accuracy
from kd_leaf.data.resampling import resampling_plan
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.core import seed_everything
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.features import FeatureKDCallback
from kd_leaf.data.loaders import SamplePlan, StoreDataset, store_dls
from kd_leaf.distill.losses import soft_target_loss
from kd_leaf.models.zoo import create_model
from kd_leaf.data.views import Views, view_dls


@pytest.fixture
def dls(store):
    seed_everything(0)
    return store_dls(store, SamplePlan.of(store.where('train')[::2]), bs=32, device='cpu')


@pytest.fixture
def teacher(dls): return create_model('resnet18', dls.c)


def fit(dls, by, epochs=1, cbs=(), **kw):
    "A student taught for a moment"
    learn = Learner(dls, create_model('cnn4', dls.c), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=[KDCallback(by, **kw), *cbs])
    return learn


def test_fasterai_teacher_has_no_gradients(dls, teacher):
    assert all(p.requires_grad for p in teacher.parameters())  # as its maker left it
    fit(dls, teacher)
    assert all(p.grad is None for p in teacher.parameters())


def test_fasterai_validation_is_plain(dls, teacher):
    calls = []
    teacher.register_forward_hook(lambda *a: calls.append(1))
    learn = fit(dls, teacher, alpha=.9)
    assert len(calls) == len(dls.train)
    logged = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))['valid_loss']  # before `get_preds` names its own
    preds, targets = learn.get_preds(act=lambda o: o)
    assert abs(logged-F.cross_entropy(preds, targets).item()) < 1e-4


def test_fasterai_a_learner_may_teach(dls, teacher):
    "And teaches as its module does: the same student comes out"
    def last_layer(by):
        seed_everything(1), dls.train.rng.seed(1)
        return fit(dls, by, alpha=1.).model[-1].weight
    assert torch.equal(last_layer(Learner(dls, teacher, loss_func=CrossEntropyLossFlat())), last_layer(teacher))


def test_torchdistill_teacher_in_train_mode_is_not_overwritten(dls, teacher):
    teacher.train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    fit(dls, teacher)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_torchdistill_teacher_is_not_optimised(dls, teacher):
    learn = fit(dls, teacher)
    ours = {id(p) for g in learn.opt.param_lists for p in g}
    assert not ours & {id(p) for p in teacher.parameters()}


@pytest.mark.parametrize('alpha', [0., .3, 1.])
@pytest.mark.parametrize('T', [1., 4.])
def test_torchdistill_t_squared_is_there_at_every_alpha(dls, teacher, alpha, T):
    seen = []

    class Look(Callback):
        order = 52
        def after_loss(self):
            if not self.training or seen: return
            with torch.no_grad(): t = teacher.eval()(self.xb[0])
            kl = F.kl_div(F.log_softmax(self.pred/T, 1), F.softmax(t/T, 1), reduction='batchmean')
            seen.append((self.learn.loss_grad.item(), (alpha*T**2*kl+(1-alpha)*F.cross_entropy(self.pred, self.yb[0])).item()))

    fit(dls, teacher, cbs=[Look()], alpha=alpha, temperature=T)
    assert abs(seen[0][0]-seen[0][1]) < 1e-4


def test_kd_lib_student_trains_in_every_epoch(dls, teacher):
    modes = []

    class Look(Callback):
        def after_pred(self): modes.append((self.training, self.model.training))

    fit(dls, teacher, epochs=2, cbs=[Look()])
    assert set(modes) == {(True, True), (False, False)}


def test_kd_lib_loss_is_a_divergence_of_distributions():
    "And not the squared difference of two softmaxes, which is at most 2/n_classes"
    s, t = torch.tensor([[40., 0., 0.]]), torch.tensor([[0., 40., 0.]])
    assert abs(soft_target_loss(s, t, 1.).item()-40) < 1e-3


def test_leaf_disease_ai_temperature_is_applied_once():
    s, t = torch.randn(5, 4), torch.randn(5, 4)
    for T in (2., 7.):
        p, q = np.exp(t.numpy()/T), np.exp(s.numpy()/T)
        p, q = p/p.sum(1, keepdims=True), q/q.sum(1, keepdims=True)
        assert abs(soft_target_loss(s, t, T).item()-T*T*(p*np.log(p/q)).sum(1).mean()) < 1e-4


def test_leaf_disease_ai_synthetic_images_are_trained_on(store):
    plan = resampling_plan('smote', store)
    assert plan.n_synthetic > 0
    shown = view_dls(store, Views(n=1), plan, device='cpu').train
    seen = sum(np.isin(shown.last_batch[0], shown.keys[plan.lam > 0]).sum() for _ in shown)
    assert seen == (plan.lam > 0).sum()


@pytest.mark.parametrize('callback', [KDCallback, FeatureKDCallback])
def test_leaf_disease_ai_term_reaches_the_student(dls, teacher, callback):
    "With alpha=1 nothing but the distillation term trains: the first convolution of the student moves, the teacher does not"
    learn = Learner(dls, create_model('cnn4', dls.c), loss_func=CrossEntropyLossFlat())
    before, teachers = learn.model[0][0].weight.detach().clone(), teacher.conv1.weight.detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, wd=0., cbs=callback(teacher, alpha=1.))
    assert (learn.model[0][0].weight-before).abs().max() > 1e-4
    assert torch.equal(teacher.conv1.weight, teachers)


def test_fkd_temperature_stays_free(dls, store, teacher, tmp_path):
    vdls = view_dls(store, Views(n=1), SamplePlan.of(store.where('train')[:64]), bs=32, device='cpu')
    cache = cache_teacher(teacher, vdls, tmp_path)
    def kd_loss(T):
        seed_everything(1), vdls.train.rng.seed(1)
        learn = fit(vdls, cache, temperature=T)
        return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))['kd_loss']
    assert kd_loss(1.) == kd_loss(1.) != kd_loss(8.)


def test_tinyvit_names_with_dots_do_not_collide(store):
    class Named: ids, images, labels, vocab, size = ['a.b.jpg', 'a.b', 'a.c.jpg', 'a'], store.images, store.labels, store.vocab, 32
    assert len(set(SamplePlan.of(range(4)).keys(Named))) == 4


def test_tinyvit_two_classes_are_enough(tmp_path, store):
    two = [k for k in store.where('train') if store.labels[k] < 2]
    class Pair: vocab = store.vocab[:2]; images, labels, splits, ids, size, sha256, name, synthetic = store.images, store.labels, store.splits, store.ids, 32, 'x', 'pair', True
    Pair.where = staticmethod(lambda s: np.array(two))
    vdls = view_dls(Pair, Views(n=1), SamplePlan.of(two), bs=16, device='cpu')
    assert cache_teacher(create_model('cnn4', 2), vdls, tmp_path)(vdls.train.keys, 0).shape == (len(two), 2)


def test_mdistiller_test_is_read_once_after_the_last_epoch(store, monkeypatch, tmp_path):
    from kd_leaf.study import config, runner
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path))
    reads = []
    batch = StoreDataset.batch
    tests = set(store.where('test'))
    monkeypatch.setattr(StoreDataset, 'batch', lambda self, ks: (reads.extend(k for k in self.plan.i[np.asarray(ks)] if k in tests), batch(self, ks))[1])
    run = config.Run(store.name, store.sha256, 'student', 'cnn4', seed=0, size=32, epochs=2, mode='fp32')
    runner.fit_run(run, store, 'cpu')
    assert not reads
    runner.do_run(run, store, 'cpu')
    assert sorted(reads) == sorted(tests)


def test_keras_teacher_may_take_another_size(dls):
    teacher = torch.nn.Sequential(torch.nn.Upsample(size=64), create_model('resnet18', dls.c))
    sizes = []
    teacher[1].register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape[-1]))
    logged = fit(dls, teacher, alpha=1.).recorder
    assert sizes == [64]*len(dls.train)  # the teacher sees 64 px of each training batch, the student 32
    kd_loss, train_loss = (logged.values[-1][logged.metric_names.index(o)-1] for o in ('kd_loss', 'train_loss'))
    assert kd_loss > 0 and abs(train_loss-kd_loss) < .5*kd_loss  # with alpha=1 it is all that is learned


def test_logits_are_not_addressed_by_position(store, teacher, tmp_path):
    "A shuffled loader, and one over half the images, get each image's own logits"
    whole = view_dls(store, Views(n=2), bs=32, device='cpu')
    cache = cache_teacher(teacher, whole, tmp_path)
    half = view_dls(store, Views(n=2), SamplePlan.of(store.where('train')[::-2]), bs=32, device='cpu')
    for loader in (whole.train, half.train):
        for x, _ in loader:
            with torch.inference_mode(): now = teacher.eval()(torch.Tensor(x))
            assert torch.allclose(cache(*loader.last_batch), now, atol=2e-2)


def test_nothing_asks_for_cuda():
    from pathlib import Path
    import kd_leaf
    files = [*Path(kd_leaf.__file__).parent.rglob('*.py')]
    assert len(files) > 20
    for f in files:
        text = f.read_text(encoding='utf-8')
        assert not any(o in text for o in ('.cuda()', "to('cuda", "device='cuda'", "autocast('cuda'")), f
