"Distillation as a citizen of fastai: its callbacks, its ways to predict, export and mixed precision, each tried with a teacher"
import contextlib, copy
from unittest import mock
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.vision.all import (Callback, CrossEntropyLossFlat, CSVLogger, CutMix, EarlyStoppingCallback, GradientAccumulation,
                               ImageDataLoaders, Learner, MixUp, Resize, SaveModelCallback, accuracy, load_learner, resnet18, vision_learner)
from PIL import Image
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.features import FeatureKDCallback
from kd_leaf.distill.learner import distill, make_learner, split_head
from kd_leaf.models.precision import Bf16
from kd_leaf.models.weights import OwnStats
from kd_leaf.models.zoo import create_model


pytestmark = pytest.mark.usefixtures('cache_elsewhere')


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield learn


def student(dls, *cbs, **kw): return make_learner(dls, 'cnn4', precision='fp32', cbs=list(cbs), **kw)


def fit(learn, *cbs, epochs=1):
    with quiet(learn): learn.fit(epochs, 1e-3, cbs=list(cbs))
    return learn


def last(learn): return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))


def test_one_callback_needs_no_list(dls, teacher):
    learn = make_learner(dls, 'cnn4', precision='fp32', cbs=KDCallback(teacher))
    assert hasattr(learn, 'kd')
    with quiet(learn): learn.fit(1, cbs=GradientClip())
    seen = []

    class Note(Callback):
        def after_fit(self): seen.append(self.n_epoch)

    with learn.no_bar(): distill(dls, teacher, 'cnn4', epochs=1, precision='fp32', cbs=Note())
    assert seen == [1]


def test_save_model_early_stopping_and_csv(dls, teacher, tmp_path):
    learn = student(dls, KDCallback(teacher))
    learn.path = tmp_path
    fit(learn, SaveModelCallback(monitor='accuracy', fname='best'), EarlyStoppingCallback(monitor='valid_loss', patience=0, min_delta=99),
        CSVLogger(fname='log.csv'), epochs=3)
    assert (tmp_path/'models'/'best.pth').exists()
    assert len(learn.recorder.values) == 2  # the second epoch was not better by 99
    header, *rows = (tmp_path/'log.csv').read_text().splitlines()
    assert 'kd_loss,hard_loss' in header and len(rows) == 2


def test_monitors_the_distillation_term(dls, teacher, tmp_path):
    learn = student(dls, KDCallback(teacher))
    learn.path = tmp_path
    fit(learn, SaveModelCallback(monitor='kd_loss', fname='best', comp=np.less))
    assert (tmp_path/'models'/'best.pth').exists()


@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_mixed_images_go_to_the_teacher(dls, teacher, mixer):
    "What the teacher sees is what the student sees, and the labels are mixed as fastai mixes them"
    seen = []

    class Note(Callback):
        run_valid, order = False, 52
        def after_loss(self):
            with torch.no_grad(): t = teacher.eval()(self.xb[0])
            kd = 16*F.kl_div(F.log_softmax(self.pred/4, 1), F.log_softmax(t/4, 1), reduction='batchmean', log_target=True)
            hard = self.learn.loss_func(self.pred, *self.yb)
            seen.append((self.learn.loss.item(), (.5*kd+.5*hard).item()))

    fit(student(dls), KDCallback(teacher), mixer(), Note())
    assert len(seen) == len(dls.train) and np.allclose(*zip(*seen), rtol=1e-4)


def test_mixed_images_are_refused_where_they_would_be_wrong(dls, vdls, teacher):
    with pytest.raises(ValueError, match='MixUp mixes images'): fit(student(vdls), KDCallback(cache_teacher(teacher, vdls)), MixUp())
    with pytest.raises(ValueError, match='which MixUp takes away'): fit(student(dls), KDCallback(teacher, 'dkd'), MixUp())


def test_distill_with_mixup_asks_the_teacher_itself(vdls, teacher, tmp_path):
    for mixer in (MixUp(), MixUp): distill(vdls, teacher, 'cnn4', epochs=1, precision='fp32', cbs=mixer)
    assert not (tmp_path/'cache'/'logits').exists()
    distill(vdls, teacher, 'cnn4', epochs=1, precision='fp32')
    assert len(list((tmp_path/'cache'/'logits').iterdir())) == 1


def test_distill_with_plain_loaders_asks_the_teacher_itself(dls, teacher, tmp_path):
    distill(dls, teacher, 'cnn4', epochs=1, precision='fp32')
    assert not (tmp_path/'cache'/'logits').exists()


def test_distill_caches_no_more_views_than_it_shows(store, plan, teacher):
    vdls = view_dls(store, Views(n=20), plan, bs=16, device='cpu')
    by = []

    class Note(Callback):
        def before_fit(self): by.append(self.learn.kd.teacher)

    learn = distill(vdls, teacher, 'cnn4', epochs=2, precision='fp32', cbs=Note())
    assert by[0].n_views == 2
    with pytest.raises(ValueError, match='holds 2 views, 3 are shown'): fit(learn, KDCallback(by[0]))  # a third epoch


def test_gradient_accumulation_and_clipping(dls, teacher): fit(student(dls), KDCallback(teacher), GradientAccumulation(32), GradientClip(1.))


def test_lr_find_does_not_move_the_views(vdls, teacher):
    learn = student(vdls, KDCallback(teacher))
    with quiet(learn): learn.lr_find(num_it=12, show_plot=False)
    assert not hasattr(learn, 'views_shown')
    fit(learn)
    assert learn.views_shown == 1


@pytest.mark.parametrize('mode, dtype', [('fp16', torch.float16), ('bf16', torch.bfloat16)])
def test_to_fp16_runs_the_teacher_in_half(dls, teacher, mode, dtype):
    "In the dtype of the Learner's mixed precision, on the device of the batch; outside of it in float32"
    seen = set()
    handle = teacher[0][0].register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    fit(student(dls), KDCallback(teacher))
    assert seen == {torch.float32}
    seen.clear()
    fit(student(dls, MixedPrecision(amp_mode=mode)), KDCallback(teacher))
    handle.remove()
    assert seen == {dtype}


def test_own_bf16_callback(dls, teacher):
    learn = fit(make_learner(dls, 'cnn4', precision='bf16', cbs=KDCallback(teacher, precision='bf16')))
    assert np.isfinite(last(learn)['kd_loss']) and 'forward' not in vars(learn.model)


def test_freeze_fine_tune_and_discriminative_rates(dls, teacher):
    learn = student(dls, KDCallback(teacher))
    with quiet(learn): learn.fine_tune(1, 1e-3, freeze_epochs=1)
    learn = student(dls, KDCallback(teacher))
    with quiet(learn): learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    assert 0 < float(learn.opt.hypers[0]['lr']) < float(learn.opt.hypers[1]['lr'])/50
    body, head = learn.opt.param_lists
    assert len(head) == 2 and sum(p.numel() for p in [*body, *head]) == sum(p.numel() for p in learn.model.parameters())
    assert {id(p) for p in head} == {id(p) for p in learn.model[-1].parameters()}


@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'densenet121', 'tf_efficientnet_lite0'])
def test_splitter_of_any_network(name):
    net = create_model(name, 3)
    body, head = split_head(net)
    assert sum(p.numel() for p in [*body, *head]) == sum(p.numel() for p in net.parameters()) and {len(p) for p in head} == {3}


def test_vision_learner_with_a_teacher(dls, teacher):
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, cbs=KDCallback(teacher))
    fit(learn)
    assert 'kd_loss' in last(learn)


def test_plain_fastai_loaders(tmp_path, store):
    "A folder of images and fastai's own DataLoaders, without our store"
    for k in [*store.where('train')[:24], *store.where('train')[-24:]]:
        folder = tmp_path/'images'/store.vocab[store.labels[k]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(store.images[k]).save(folder/f'{k}.png')
    dls = ImageDataLoaders.from_folder(tmp_path/'images', valid_pct=.25, seed=0, item_tfms=Resize(32), bs=8, num_workers=0, device='cpu')
    teacher = make_learner(dls, 'cnn4', precision='fp32')
    learn = distill(dls, teacher, 'cnn4', epochs=1, precision='fp32', seed=0)
    assert learn.predict(next((tmp_path/'images').rglob('*.png')))[0] in dls.vocab


def test_losses_on_record_are_numbers(dls):
    "A tensor a step would break up the memory that batches need; what fastai makes of the losses stays"
    learn = fit(student(dls))
    assert len(learn.recorder.losses) == len(dls.train) and {type(o) for o in learn.recorder.losses} == {float}
    learn.recorder.plot_loss()
    with quiet(learn): assert learn.lr_find(num_it=12, show_plot=False).valley > 0


def test_export_leaves_the_teacher_at_home(dls, tmp_path):
    "Also after a fit that was interrupted, with precision callbacks and features"
    big = create_model('resnet18', dls.c)

    class Interrupt(Callback):
        def after_batch(self): raise KeyboardInterrupt

    learn = student(dls, KDCallback(big, lambda s, t, T: (s-t).abs().mean()), FeatureKDCallback(big, 'hint'), Bf16())
    fit(learn)
    with quiet(learn), contextlib.suppress(KeyboardInterrupt): learn.fit(1, cbs=Interrupt())
    learn.export(tmp_path/'student.pkl')
    assert (tmp_path/'student.pkl').stat().st_size < 3*sum(p.nbytes for p in learn.model.parameters())
    again = load_learner(tmp_path/'student.pkl')
    assert torch.allclose(again.get_preds(dl=dls.valid)[0], learn.get_preds()[0], atol=1e-5)
    assert 'forward' not in vars(again.model)
    assert learn.kd.teacher is big  # and the Learner that was exported trains on
    fit(learn)


def test_tta(dls, teacher):
    learn = fit(student(dls, KDCallback(teacher)))
    preds, targets = learn.tta(n=2)
    assert preds.shape == (len(dls.valid.dataset), dls.c) and torch.allclose(preds.sum(1), torch.ones(len(preds)), atol=1e-4)


def test_get_preds_and_validate_need_no_teacher(dls, teacher):
    calls = []
    learn = fit(student(dls, KDCallback(teacher)))
    handle = teacher.register_forward_hook(lambda *a: calls.append(1))
    learn.get_preds(), learn.validate()
    handle.remove()
    assert not calls


def test_distributed_is_refused_for_a_cache(vdls, teacher):
    cache = cache_teacher(teacher, vdls)
    with mock.patch('kd_leaf.distill.callbacks.num_distrib', lambda: 2), pytest.raises(ValueError, match='cannot teach training in fastai'):
        fit(student(vdls), KDCallback(cache))
    with mock.patch('kd_leaf.distill.callbacks.num_distrib', lambda: 2): fit(student(vdls), KDCallback(teacher))  # the network itself may


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'mixer_s16_224'])
def test_own_normalisation_is_timms(name, tmp_path):
    "And survives a copy, saving, loading and `export`"
    timm = pytest.importorskip('timm')
    net = create_model(name, 5).eval()
    assert isinstance(net, OwnStats)
    size = net.net.pretrained_cfg['input_size'][-1]
    normalise = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net.net)).transforms[-1]
    from torchvision.transforms import Normalize
    pixels = torch.rand(2, 3, size, size)
    xb = Normalize((.485, .456, .406), (.229, .224, .225))(pixels)
    with torch.inference_mode():
        want = net.net(normalise(pixels))
        for other in (net, copy.deepcopy(net)): assert torch.allclose(other(xb), want, atol=1e-3)
        torch.save(net.state_dict(), tmp_path/'w.pth')
        assert torch.allclose(create_model(name, 5, tmp_path/'w.pth').eval()(xb), want, atol=1e-3)
        torch.save(net.net.state_dict(), tmp_path/'plain.pth')  # timm's own file
        assert torch.allclose(create_model(name, 5, tmp_path/'plain.pth').eval()(xb), want, atol=1e-3)


def test_own_normalisation_is_exported(dls, tmp_path):
    learn = Learner(dls, create_model('tf_efficientnet_lite0', dls.c), CrossEntropyLossFlat())
    learn.export(tmp_path/'s.pkl')
    again = load_learner(tmp_path/'s.pkl')
    assert again.model.mean == (.5, .5, .5)
    assert torch.allclose(again.get_preds(dl=dls.valid)[0], learn.get_preds()[0], atol=1e-5)
