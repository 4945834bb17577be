"Ensembles on disk, in a graph, with bad input; what looks inside a model leaves it as it was"
import json, subprocess, sys, warnings
import numpy as np, pytest, torch
from torch import nn
from kd_leaf.ensemble.layer import RuleLayer
from kd_leaf.ensemble.cost import latency_ms
from kd_leaf.ensemble.model import Ensemble, load_ensemble
from kd_leaf.ensemble.rules import ensembles, fit_ensemble, oracle
from kd_leaf.ensemble.selector import fit_selector, predict_selector, select, selector_net
from kd_leaf.evaluate import interpret, metrics
from kd_leaf.models.zoo import create_model

VOCAB, NAMES = ['blight', 'healthy', 'rust'], ['cnn4', 'cnn4', 'shufflenet_v2_x1_0']


@pytest.fixture(scope='module')
def members():
    torch.manual_seed(0)
    return [create_model(name, len(VOCAB), weights='none').eval() for name in NAMES]


@pytest.fixture(scope='module')
def xb(): return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def said():
    "Logits (3, 300, 3) that know something, and the targets"
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    return np.float32(2*np.eye(3)[targets]+rng.normal(0, 2, (3, 300, 3))), targets


def make(members, rule=None, **kw): return Ensemble(members, rule, NAMES, VOCAB, 32, **kw).eval()


@pytest.fixture
def saved(members, tmp_path):
    make(members).save(tmp_path/'three')
    return tmp_path/'three'


@torch.inference_mode()
def answers(model, xb): return model(xb)


@pytest.mark.parametrize('kind', ensembles)
def test_a_rule_in_torch_is_the_rule_in_numpy(kind, said):
    rule = fit_ensemble(kind, *said)
    assert np.abs(RuleLayer(rule)(torch.tensor(said[0])).numpy()-rule(said[0])).max() < 1e-5


@pytest.mark.parametrize('kind', ensembles)
def test_saved_and_loaded_bit_for_bit(kind, members, said, xb, tmp_path):
    model = make(members, fit_ensemble(kind, *said))
    model.save(tmp_path/'e')
    again = load_ensemble(tmp_path/'e')
    assert torch.equal(answers(again, xb), answers(model, xb)) and again.configuration == model.configuration


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('width', [16, 8])
def test_selectors_saved_and_loaded_bit_for_bit(soft, width, members, xb, tmp_path):
    model = make(members, selector=selector_net(3, width).eval(), soft=soft)
    model.save(tmp_path/'e')
    again = load_ensemble(tmp_path/'e')
    assert torch.equal(answers(again, xb), answers(model, xb)) and again.configuration == model.configuration


@pytest.mark.parametrize('soft', [False, True])
def test_a_selector_answers_as_select_does(soft, members, xb):
    model = make(members, selector=selector_net(3).eval(), soft=soft)
    with torch.inference_mode(): logits, choice = model.member_logits(xb), model.selector(xb)
    assert np.abs(answers(model, xb).numpy()-select(logits, choice, soft)).max() < 1e-4


def test_configuration_is_json_and_tells_rules_apart(members, said):
    told = [json.dumps(make(members, fit_ensemble(kind, *said)).configuration, sort_keys=True) for kind in ensembles]
    told += [json.dumps(make(members, selector=selector_net(3), soft=soft).configuration, sort_keys=True) for soft in (False, True)]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize('kind', ensembles)
def test_gradients_reach_the_members(kind, said, xb):
    model = make([create_model(o, 3, weights='none') for o in NAMES], fit_ensemble(kind, *said))
    model(xb)[:, 0].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.members.parameters())


@pytest.mark.parametrize('selector', [None, 'hard', 'soft'])
def test_one_tensor_graph(selector, members, xb):
    net = None if selector is None else selector_net(2).eval()
    model = Ensemble(members[:2], selector=net, soft=selector == 'soft').eval()
    graph = torch.export.export(model, (xb[:3],), dynamic_shapes=dict(xb={0: torch.export.Dim('n', min=2, max=64)}))
    with torch.inference_mode(): assert torch.allclose(graph.module()(xb), model(xb), atol=1e-5)


def test_saving_without_classes_leaves_nothing(members, tmp_path):
    for lacks in (dict(vocab=None), dict(names=None), dict(size=None), dict(names=NAMES[::-1]), dict(vocab=VOCAB[:2])):
        given = dict(names=NAMES, vocab=VOCAB, size=32) | lacks
        with pytest.raises(ValueError): Ensemble(members, **given).save(tmp_path/'e')
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_ensemble(saved, members, xb, monkeypatch):
    from kd_leaf.core import DiskFull
    from kd_leaf.ensemble import model as module
    before = answers(load_ensemble(saved), xb)
    whole = module.save_weights

    def full(m, path):
        if path.name.startswith('1'): raise OSError(28, 'No space left on device')
        return whole(m, path)
    monkeypatch.setattr(module, 'save_weights', full)
    with pytest.raises(DiskFull, match='no space left in'): make(members).save(saved)
    assert torch.equal(answers(load_ensemble(saved), xb), before)
    assert [o.name for o in saved.parent.iterdir()] == ['three']


def test_a_folder_of_the_users_is_left_alone(members, tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='notes.txt'): make(members).save(tmp_path)
    assert [o.name for o in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.parametrize('file', ['0.safetensors', '2.safetensors', 'selector.safetensors'])
def test_a_flipped_byte_is_noticed(file, members, tmp_path):
    make(members, selector=selector_net(3)).save(tmp_path/'e')
    data = bytearray((tmp_path/'e'/file).read_bytes())
    data[-3] ^= 1
    (tmp_path/'e'/file).write_bytes(data)
    with pytest.raises(ValueError, match=f'{file} is not what was saved'): load_ensemble(tmp_path/'e')


def edit(saved, **kw):
    note = saved/'ensemble.json'
    note.write_text(json.dumps(json.loads(note.read_text()) | kw))


def test_another_number_of_classes_is_refused(saved):
    edit(saved, vocab=VOCAB+['scab'])
    with pytest.raises(ValueError, match='0.safetensors has 3 classes, ensemble.json names 4'): load_ensemble(saved)


@pytest.mark.parametrize('text', ['', '{"names": [', '[]', '3', '{}', '{"names": 3}', '\x00\x01'])
def test_a_foreign_note_is_named(saved, text):
    (saved/'ensemble.json').write_text(text)
    with pytest.raises(ValueError, match='ensemble.json'): load_ensemble(saved)


def test_other_damage_is_named(saved):
    whole = json.loads((saved/'ensemble.json').read_text())
    for bad, message in ((dict(names=['cnn5', *NAMES[1:]]), 'unknown model'), (dict(names=NAMES[::-1]), 'does not hold a'),
                         (dict(rule=dict(arithmetic='mixtur', weights=None, bias=None)), 'unknown rule'),
                         (dict(rule={}), 'in its rule'), (dict(sha256={}), 'is not what was saved')):
        edit(saved, **whole | bad)
        with pytest.raises(ValueError, match=message): load_ensemble(saved)
    edit(saved, **whole)
    (saved/'1.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='1.safetensors'): load_ensemble(saved)


def test_fitting_names_what_is_wrong(said):
    logits, targets = said
    nan = logits.copy()
    nan[1, 3, 0] = np.nan
    bad = {'expected .members, 300, classes': (logits[0], targets), 'for 299 targets': (logits, targets[1:]),
           r'member \[1\] are not finite': (nan, targets), 'of no member': ([], targets), 'no images': (logits[:, :0], targets[:0]),
           'all need the same': ([logits[0], logits[1][:, :2]], targets), 'from 0 to 2': (logits, targets+1)}
    for kind in ensembles:
        for message, given in bad.items():
            with pytest.raises(ValueError, match=message): fit_ensemble(kind, *given)
    with pytest.raises(ValueError, match=r'fewer of class \[2\]'): fit_ensemble('stacking', logits, np.where(targets == 2, 0, targets))
    for kind in ensembles: assert fit_ensemble(kind, logits[:1], targets)(logits[:1]).shape == (300, 3)


def test_fitting_does_not_warn(said):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for kind in ensembles: fit_ensemble(kind, *said)
        two = said[1] < 2
        fit_ensemble('stacking', said[0][:, two, :2], said[1][two])


def test_the_oracle_asks_one_member(said):
    logits, targets = said
    asked = oracle(logits, targets).argmax(1)
    assert (asked[None] == logits.argmax(-1)).any(0).all()
    assert ((asked == targets) == (logits.argmax(-1) == targets).any(0)).all()
    assert oracle(np.log([[[.5, .4, .1]], [[.1, .4, .5]]]), [1]).argmax() != 1  # the mean's answer, and no member's


def test_a_selector_reads_the_store_it_is_given():
    from types import SimpleNamespace
    from kd_leaf.data.store import image_store
    store = image_store('synthetic-leaves', 32)
    idx = store.where('valid')
    logits = np.random.default_rng(0).normal(size=(2, len(idx), len(store.vocab)))
    selector = fit_selector(store, idx, logits, epochs=1, device='cpu')

    class Other(SimpleNamespace):
        def __len__(self): return len(self.images)
    kept = {k: getattr(store, k) for k in ('labels', 'splits', 'ids', 'size', 'vocab')}
    other = Other(images=np.array(store.images[::-1]), **kept)
    assert np.allclose(predict_selector(selector, other, [0, 1]), predict_selector(selector, store, [len(store)-1, len(store)-2]))
    selector.model.train()
    predict_selector(selector, store, [0])
    assert selector.model.training
    with pytest.raises(FloatingPointError, match='lower lr'): fit_selector(store, idx, logits*1e38, 'gate', epochs=3, lr=10., device='cpu')


@pytest.mark.parametrize('inplace', [False, True])
def test_grad_cam_with_relus_in_place(inplace, xb):
    def net(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model = net(inplace)
    model[1].eval()
    modes = [m.training for m in model.modules()]
    maps = interpret.grad_cam(model, xb, [0]*len(xb), '1')
    plain = interpret.grad_cam(net(False), xb, [0]*len(xb), '1')
    assert np.allclose(maps, plain, atol=1e-6) and maps.max() == 1
    interpret.embed(model, [(xb, torch.zeros(len(xb)))])
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    frozen = net(inplace).requires_grad_(False)
    assert np.allclose(interpret.grad_cam(frozen, xb, [0]*len(xb), '1'), plain, atol=1e-6)


def test_captum_is_an_extra_with_a_message(xb, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ImportError, match=r"pip install 'kd_leaf\[interpret\]'"): interpret.grad_cam(create_model('cnn4', 3, weights='none'), xb, [0]*12)


def test_latency_leaves_mode_and_threads(members):
    model, threads = create_model('cnn4', 3, weights='none').train(), torch.get_num_threads()
    assert 0 < latency_ms(model, 32, seconds=.01) < 1000
    assert model.training and torch.get_num_threads() == threads


def test_metrics_name_what_is_wrong(said):
    (a, b, _), targets = said
    for f in (metrics.scores, metrics.reliability, metrics.fit_temperature):
        with pytest.raises(ValueError, match='do not fit 299 targets'): f(a, targets[1:])
        with pytest.raises(ValueError, match='from 0 to 2'): f(a, targets+1)
        with pytest.raises(ValueError, match='not finite'): f(a*np.nan, targets)
    with pytest.raises(ValueError, match='do not fit 300 targets'): metrics.mcnemar(a, b[1:], targets)
    with pytest.raises(ValueError, match='do not pair'): metrics.paired_bootstrap(a[None], b[None, 1:], targets)
    with pytest.raises(ValueError, match='n=0'): metrics.paired_bootstrap(a[None], b[None], targets, n=0)
    with pytest.raises(ValueError, match='level=95'): metrics.paired_bootstrap(a[None], b[None], targets, level=95)
    with pytest.raises(ValueError, match='not finite'): metrics.paired_bootstrap(a[None], b[None]*np.nan, targets)
    for p in ([.5, 1.5], [np.nan], [[.5]], 'ab', .5, ['x']):
        with pytest.raises(ValueError, match='between 0 and 1'): metrics.holm(p)
    assert metrics.holm([]).shape == (0,)


def test_rules_need_no_torch():
    code = 'import sys; import kd_leaf.ensemble.rules, kd_leaf.evaluate.metrics; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
