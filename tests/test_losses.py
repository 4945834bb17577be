"Every loss teaches a student, and says what torchdistill's and fasterai's functions say where these have it"
import pytest, torch, torch.nn.functional as F
from fastai.basics import CrossEntropyLossFlat, Learner
from kd_leaf.core import seed_everything
from kd_leaf.data.store import image_store
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.features import FeatureKDCallback
from kd_leaf.data.loaders import SamplePlan, store_dls
from kd_leaf.distill.losses import feature_losses, losses
from kd_leaf.models.zoo import create_model


@pytest.mark.parametrize('loss', [*losses, *feature_losses])
def test_teaches(loss):
    "The term goes down, in a student that hears nothing but it"
    store = image_store('synthetic-leaves', 32)
    seed_everything(0)
    dls = store_dls(store, SamplePlan.of(store.where('train')[::6]), bs=16, augment=False, device='cpu')
    teacher = create_model('cnn4', dls.c)
    kd = FeatureKDCallback(teacher, loss, alpha=1.) if loss in feature_losses else KDCallback(teacher, loss, 4., alpha=1.)
    learn = Learner(dls, create_model('cnn4', dls.c), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 3e-3, cbs=kd)
    first, *_, last = [row[1] for row in learn.recorder.values]
    assert learn.recorder.metric_names[2] == 'kd_loss' and last < first


@pytest.fixture
def logits():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(8, 5, generator=g)*2 for _ in range(2)], torch.randint(5, (8,), generator=g)


@pytest.fixture
def maps():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(8, c, 4, 4, generator=g) for c in (6, 6)]


def peer(module): return pytest.importorskip(module, reason=f'{module.split(".")[0]} is not installed: pip install kd_leaf[bench]')
def io(**kw): return {'m': {'output': kw['s']}}, {'m': {'output': kw['t']}}


def test_soft_target_and_dist_are_torchdistills(logits):
    td, ((s, t), _) = peer('torchdistill.losses.mid_level'), logits
    dist = td.DISTLoss('m', 'output', 'm', 'output', beta=1., gamma=1., tau=4.)
    assert torch.allclose(losses['dist'](s, t, 4.), dist(*io(s=s, t=t)), atol=1e-5)
    kd = td.KDLoss('m', 'output', 'm', 'output', temperature=4., alpha=1., reduction='batchmean')  # its default alpha=None raises TypeError
    assert torch.allclose(losses['soft_target'](s, t, 4.), 4**2*kd(*io(s=s, t=t)), atol=1e-5)  # without targets it leaves T² out


def test_feature_losses_are_torchdistills(maps):
    td, (s, t) = peer('torchdistill.losses.mid_level'), maps
    at = td.ATLoss({'p': dict(student=dict(io='output', path='m'), teacher=dict(io='output', path='m'))})
    rkd = td.RKDLoss('m', 'm', dist_factor=1., angle_factor=2., reduction='mean')
    for name, theirs in dict(attention=at, rkd=rkd).items(): assert torch.allclose(feature_losses[name](s, t), theirs(*io(s=s, t=t)), rtol=1e-4, atol=1e-6), name


def test_sp_has_rows_of_norm_2(maps):
    "torchdistill's `normalize(x, 1)` hands 1 to p, not to dim: its rows have an L1 norm of 1, the paper's (and ours) an L2 norm"
    td, (s, t) = peer('torchdistill.losses.mid_level'), maps
    def with_norm(p):
        a, b = (F.normalize(o.flatten(1)@o.flatten(1).T, p=p, dim=1) for o in (s, t))
        return (a-b).pow(2).mean()
    assert torch.allclose(feature_losses['sp'](s, t), with_norm(2), rtol=1e-4)
    assert torch.allclose(td.SPKDLoss('m', 'm', 'batchmean')(*io(s=s, t=t)), with_norm(1), rtol=1e-4)


def test_losses_are_fasterais(logits, maps):
    fl, ((s, t), y), (a, b) = peer('fasterai.distill.losses'), logits, maps
    assert torch.allclose(losses['soft_target'](s, t, 5.), fl.SoftTarget(s, t, T=5), atol=1e-5)
    assert torch.allclose(losses['logit_mse'](s, t), fl.Logits(s, t), atol=1e-6)
    assert torch.allclose(losses['dkd'](s, t, 4., y), fl.DecoupledKD(s, t, T=4, target=y), rtol=1e-3)
    assert torch.allclose(feature_losses['hint'](a, b), fl.FitNet({'m': a}, {'m': b}), atol=1e-6)
    assert torch.allclose(feature_losses['sp'](a, b), fl.Similarity({'m': a}, {'m': b}, s), rtol=1e-4)
